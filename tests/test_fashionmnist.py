"""The main script as its users meet it: files, repetition, interruption, several processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from fashion import report, style
from fashion.data import load_sample

import matplotlib
import pytest
import torch

import fashionmnist
from models import MODELS

ROOT = Path(__file__).parents[1]
SIZES = ("--limit", 200, "--epochs", 1, "--batch-size", 100)
FLOAT32 = ("--precision", "float32", "--device", "cpu")
NETWORK_FILES = {"loss.png", "confusion.png", "correct.png", "incorrect.png"}
SERIES_FILES = {
    *("metrics.json", "comparison.json", "suspect_labels.csv", "report.html", "comparison.png"),
    *("dataset.png", "disagreements.png", "learning_curves.png", "calibration.png"),
    "suspect_labels.png",
}
DPI = style.STYLE["savefig.dpi"]


def read_runs(folder, start=""):
    """Return the content of the runs in a folder whose names begin with a text."""
    return [torch.load(path, weights_only=True) for path in folder.glob(f"runs/{start}*.pt")]


def assert_same(first, second):
    """Check that two state dictionaries are equal bit for bit."""
    assert first.keys() == second.keys()
    assert [key for key, value in first.items() if not torch.equal(value, second[key])] == []


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """The outputs of two processes that trained both networks, without dataset and network."""
    folder, nothing = tmp_path_factory.mktemp("outputs"), tmp_path_factory.mktemp("none")
    options = [*SIZES, "--runs", 3, *FLOAT32, "--data-dir", nothing, "--out", folder]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, "fashionmnist.py", *map(str, options)],
        cwd=ROOT,
        env=os.environ | dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    return folder


def test_files_are_written_and_listed_and_say_that_they_are_of_the_sample(outputs):
    names = {f"{name}_{ending}" for name in MODELS for ending in NETWORK_FILES}
    names |= {f"{name}.safetensors" for name in MODELS} | SERIES_FILES
    assert {path.name for path in outputs.iterdir()} == names | {"runs", "stdout"}
    output, title = (outputs / "stdout").read_text(), "Fashion-MNIST sample, 10,000 images"
    assert all(str(outputs / name) in output for name in names)
    assert title in output and "cannot be downloaded" in output
    assert "The sample of 12,000 images that comes with the project is used instead" in output
    assert title in (outputs / "report.html").read_text()

    metrics = json.loads((outputs / "metrics.json").read_bytes())["models"]
    for name, entry in metrics.items():
        (content,) = read_runs(outputs, f"{name}-seed0")
        assert entry["dataset"].startswith(title) and entry["history"] == content["history"]
        correct = content["logits"]["test"].argmax(1) == load_sample().test_labels
        assert entry["test_accuracy"] == pytest.approx(correct.double().mean().item())
        assert entry["tested_at"] == content["tested_at"]


def test_processes_of_torchrun_reach_the_numbers_of_one(outputs):
    assert len(read_runs(outputs)) == 6 and not list(outputs.rglob("*.part"))
    dataset = load_sample(200)
    # Each of the two has half of the cores; sums have the same order with as many threads.
    affinity = getattr(os, "sched_getaffinity", None)
    torch.set_num_threads(max(1, (len(affinity(0)) if affinity else os.cpu_count()) // 2))
    for name, model in MODELS.items():
        recipe = replace(model.recipe, epochs=1, batch_size=100)
        for seed in range(3):
            alone = fashionmnist.train(name, recipe, seed, dataset, precision="float32")
            (same,) = read_runs(outputs, f"{name}-seed{seed}")
            assert_same(alone.model.state_dict(), same["weights"])
    torch.set_num_threads(1)


def test_repeated_command_trains_nothing_and_leaves_the_other_network_alone(
    outputs, tmp_path, call, monkeypatch
):
    monkeypatch.setitem(style.STYLE, "savefig.dpi", DPI)
    folder = shutil.copytree(outputs, tmp_path / "copy")
    before = {path: path.read_bytes() for path in (*folder.glob("runs/*"), *folder.glob("ffn*"))}
    for picture in folder.glob("cnn*.png"):
        picture.unlink()
    # Settings of the user that would make other pictures.
    look = {"text.usetex": True, "image.origin": "lower", "axes.facecolor": "black"}
    with matplotlib.rc_context(look):
        options = ("--sample", *SIZES, *FLOAT32, "--models", "cnn", "--out", folder)
        status, output, _ = call(fashionmnist, *options)
    assert status == 0 and "is finished already" in output
    assert "epoch  train loss" not in output and "FFN, seed" not in output
    assert before == {path: path.read_bytes() for path in before}
    for ending in NETWORK_FILES:
        assert (folder / f"cnn_{ending}").read_bytes() == (outputs / f"cnn_{ending}").read_bytes()
    assert "ffn_confusion.png" in (folder / "report.html").read_text()


LONGER = ("--sample", "--limit", 300, "--models", "ffn", "--epochs", 4, "--batch-size", 100)
KILLED = """
import os, signal
import fashionmnist
def replace(part, path, saved=[], original=os.replace):
    saved.append(path)
    if len(saved) == 3:  # the state after the third epoch is written, but not yet in its place
        os.kill(os.getpid(), signal.SIGKILL)
    original(part, path)
os.replace = replace
fashionmnist.main()
"""


def test_killed_training_continues_and_ends_bit_for_bit_the_same(tmp_path, call, monkeypatch):
    options = [*LONGER, "--device", "cpu", "--out"]
    command = [sys.executable, "-c", KILLED, *map(str, options), tmp_path / "killed"]
    command = ["sh", "-c", 'exec "$0" "$@" 2>&-', *command]  # with standard error closed
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    monkeypatch.setattr(report, "write_results", lambda *_: None)
    monkeypatch.setattr(report, "write_network", lambda *_: None)
    _, output, _ = call(fashionmnist, *options, tmp_path / "killed")
    assert "FFN, seed 0, continues after epoch 2" in output
    call(fashionmnist, *options, tmp_path / "whole")
    (killed,), (whole,) = (read_runs(tmp_path / name) for name in ("killed", "whole"))
    assert_same(killed["weights"], whole["weights"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--lr", "nan"), "expected a number from 0"),
        (("--models", "rnn"), "--models rnn: choose from ffn, cnn"),
        (("--sample", "--out", ROOT / "README.md"), "--out"),
        (("--data-dir", ROOT / "README.md"), "is a file, not a folder"),
    ],
)
def test_mistakes_are_explained_in_one_line(arguments, message, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, errors = call(fashionmnist, *arguments)
    assert status == 2 and message in errors
    assert errors.startswith("error: ") and len(errors.splitlines()) == 1


def test_options_change_the_recipe(call, tmp_path, monkeypatch):
    recipes = []

    def train(name, recipe, *rest, **keywords):
        recipes.append(recipe)
        raise KeyboardInterrupt

    monkeypatch.setattr(fashionmnist, "train", train)
    options = ("--epochs", 7, "--batch-size", 9, "--lr", 0.5, "--weight-decay", 0.25)
    call(fashionmnist, "--sample", "--quick", *options, "--out", tmp_path)
    call(fashionmnist, "--sample", "--out", tmp_path)
    first, second = recipes
    changed = (first.epochs, first.batch_size, first.learning_rate, first.weight_decay)
    assert changed == (7, 9, 0.5, 0.25)
    assert first.optimizer == MODELS["ffn"].quick.optimizer
    assert second == MODELS["ffn"].recipe
