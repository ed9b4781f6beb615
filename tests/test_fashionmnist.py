"""The main script as its users meet it: files, repetition, interruption, several processes."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from fashion import runs

import pytest
import torch

import fashionmnist
from models import MODELS

ROOT = Path(__file__).parents[1]
SHORT = ("--sample", "--limit", 200, "--epochs", 1, "--batch-size", 100)
NETWORK_FILES = {"loss.png", "confusion.png", "correct.png", "incorrect.png"}
# Nothing listens there, so that no test reaches the network.
OFFLINE = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}


def start(*arguments, folder=ROOT, environment=None, command=(sys.executable,), **keywords):
    """Start the main script as a process of its own."""
    return subprocess.Popen(
        [*command, "fashionmnist.py", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, **OFFLINE, "OMP_NUM_THREADS": "1", **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **keywords,
    )


def read_runs(folder):
    """Return the content of all runs in a folder by file name."""
    return {
        path.name: torch.load(path, weights_only=True) for path in (folder / "runs").glob("*.pt")
    }


@contextlib.contextmanager
def one_thread():
    """Compute with one thread, as the processes of start do: sums then have the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    for name in first:
        for key, value in first[name]["weights"].items():
            assert torch.equal(value, second[name]["weights"][key]), (name, key)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """The output folder of a short training of both networks."""
    folder = tmp_path_factory.mktemp("outputs")
    process = start(*SHORT, "--out", folder)
    output, errors = process.communicate()
    assert not errors
    assert process.returncode == 0
    (folder / "stdout").write_text(output)
    return folder


def test_all_files_are_written_and_listed(outputs):
    names = {f"{name}_{ending}" for name in MODELS for ending in NETWORK_FILES}
    names |= {f"{name}.safetensors" for name in MODELS}
    names |= {"metrics.json", "comparison.png", "report.html"}
    names |= {"dataset.png", "disagreements.png"}
    assert {path.name for path in outputs.iterdir()} == names | {"runs", "stdout"}
    listed = (outputs / "stdout").read_text()
    assert all(str(outputs / name) in listed for name in names)


def test_results_say_that_they_are_of_the_sample(outputs):
    title = "Fashion-MNIST sample, 10,000 images"
    metrics = json.loads((outputs / "metrics.json").read_bytes())
    assert all(entry["dataset"].startswith(title) for entry in metrics["models"].values())
    assert title in (outputs / "report.html").read_text()
    assert title in (outputs / "stdout").read_text()


def test_metrics_agree_with_the_run(outputs):
    metrics = json.loads((outputs / "metrics.json").read_bytes())
    for name, content in read_runs(outputs).items():
        entry = metrics["models"][name.split("-")[0]]
        assert entry["history"] == content["history"]
        confusion = torch.tensor(entry["confusion_matrix"])
        assert entry["test_accuracy"] == confusion.trace().item() / 2000
        assert entry["tested_at"] == content["tested_at"]


def test_repeated_command_trains_nothing(outputs, tmp_path, call):
    folder = shutil.copytree(outputs, tmp_path / "copy")
    modified = {path: path.stat().st_mtime_ns for path in (folder / "runs").iterdir()}
    status, output, _ = call(fashionmnist, *SHORT, "--out", folder)
    assert status == 0
    assert output.count("is finished already") == 2
    assert "epoch  train loss" not in output
    assert modified == {path: path.stat().st_mtime_ns for path in (folder / "runs").iterdir()}


def test_training_one_network_leaves_the_files_of_the_other(outputs, tmp_path, call):
    folder = shutil.copytree(outputs, tmp_path / "copy")
    before = {path.name: path.read_bytes() for path in folder.glob("ffn*")}
    status, output, _ = call(fashionmnist, *SHORT, "--models", "cnn", "--seed", 5, "--out", folder)
    assert status == 0
    assert "FFN, seed" not in output
    assert before == {path.name: path.read_bytes() for path in folder.glob("ffn*")}
    models = json.loads((folder / "metrics.json").read_bytes())["models"]
    assert {name: entry["seed"] for name, entry in models.items()} == {"ffn": 0, "cnn": 5}
    assert "ffn_confusion.png" in (folder / "report.html").read_text()


def test_killed_training_continues_and_ends_bit_for_bit_the_same(tmp_path, call):
    arguments = ("--sample", "--limit", 300, "--models", "ffn", "--epochs", 30, "--batch-size", 100)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(*arguments, "--out", killed)
    while not list(killed.glob("runs/*.pt")):
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process = start(*arguments, "--out", killed)
    output, _ = process.communicate()
    assert process.returncode == 0
    assert "FFN, seed 0, continues after epoch" in output
    with one_thread():
        call(fashionmnist, *arguments, "--out", whole)
    assert_same_weights(read_runs(whole), read_runs(killed))


def test_ctrl_c_says_that_the_same_command_continues(tmp_path):
    process = start(
        "--sample", "--limit", 300, "--models", "ffn", "--epochs", 1000, "--out", tmp_path
    )
    while not list(tmp_path.glob("runs/*.pt")):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors.splitlines() == [
        "error: interrupted; without --fresh, the same command continues after the last finished "
        "epoch"
    ]


def test_edited_network_is_trained_again_and_the_other_is_not(outputs, tmp_path):
    for name in ("fashionmnist.py", "ffn.py", "cnn.py", "models.py", "fashion", "sample"):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copyfile
        copy(source, tmp_path / name)
    code = (tmp_path / "cnn.py").read_text()
    (tmp_path / "cnn.py").write_text(code.replace("nn.ReLU()", "nn.GELU()"))
    folder = shutil.copytree(outputs, tmp_path / "outputs")
    output, errors = start(*SHORT, "--out", folder, folder=tmp_path).communicate()
    assert not errors
    assert "FFN, seed 0, is finished already" in output
    assert "CNN, seed 0: 422,250 parameters" in output
    assert len(list(folder.glob("runs/cnn*"))) == 2


def test_processes_of_torchrun_reach_the_numbers_of_one(tmp_path, call):
    arguments = (*SHORT, "--runs", 3, "--precision", "float32")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2")
    shared = start(*arguments, "--out", tmp_path / "shared", command=torchrun)
    output, errors = shared.communicate()
    assert shared.returncode == 0, errors
    with one_thread():
        call(fashionmnist, *arguments, "--out", tmp_path / "alone")
    assert_same_weights(read_runs(tmp_path / "shared"), read_runs(tmp_path / "alone"))
    tables = [
        json.loads((tmp_path / x / "comparison.json").read_bytes()) for x in ("shared", "alone")
    ]
    values = [
        [table["models"][name]["test_accuracy"]["values"] for name in MODELS] for table in tables
    ]
    assert values[0] == values[1]
    assert "suspect_labels.csv" in output


def test_two_commands_with_different_settings_share_a_folder(tmp_path):
    processes = [
        start(*SHORT, "--models", "ffn", "--seed", seed, "--out", tmp_path) for seed in (0, 1)
    ]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert len(list(tmp_path.glob("runs/*.pt"))) == 2
    assert not list(tmp_path.rglob("*.part"))
    json.loads((tmp_path / "metrics.json").read_bytes())


def test_without_dataset_and_network_the_sample_is_used(tmp_path):
    process = start(*SHORT[1:], "--models", "ffn", "--out", tmp_path, "--data-dir", tmp_path / "no")
    output, errors = process.communicate()
    assert process.returncode == 0
    assert not errors
    assert "cannot be downloaded" in output
    assert "The sample of 12,000 images that comes with the project is used instead" in output


def test_matplotlib_settings_of_the_user_change_no_figure(outputs, tmp_path):
    settings = "text.usetex: True\nimage.origin: lower\naxes.facecolor: black\n"
    (tmp_path / "matplotlibrc").write_text(settings)
    folder = shutil.copytree(outputs, tmp_path / "outputs")
    for picture in folder.glob("*.png"):
        picture.unlink()
    environment = {"MPLCONFIGDIR": str(tmp_path)}
    process = start(*SHORT, "--out", folder, environment=environment)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    for ending in ("confusion", "correct", "incorrect"):
        picture = f"cnn_{ending}.png"
        assert (folder / picture).read_bytes() == (outputs / picture).read_bytes()


def test_training_works_with_standard_error_closed(tmp_path):
    process = start(*SHORT, "--models", "ffn", "--out", tmp_path, preexec_fn=lambda: os.close(2))
    process.communicate()
    assert process.returncode == 0


MISTAKES = [
    (("--epochs", "0"), "expected an integer from 1"),
    (("--models", "rnn"), "--models rnn: choose from ffn, cnn"),
    (("--lr", "nan"), "expected a number from 0"),
    (("--devise", "cpu"), "unrecognized arguments"),
    (("--sample", "--out", ROOT / "README.md"), "--out"),
    (("--data-dir", ROOT / "README.md"), "is a file, not a folder"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_mistakes_are_explained_in_one_line(arguments, message, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, errors = call(fashionmnist, *arguments)
    assert status == 2
    assert errors.startswith("error: ")
    assert message in errors
    assert len(errors.splitlines()) == 1


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


def test_help_names_every_option_once(call):
    _, text, _ = call(fashionmnist, "--help")
    assert text.count("\n  --") == 15


def test_disk_error_in_the_middle_is_one_line(call, tmp_path, monkeypatch):
    def fail(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(runs, "write", fail)
    status, _, errors = call(fashionmnist, *SHORT, "--models", "ffn", "--out", tmp_path)
    assert status == 1
    assert errors.startswith("error: ")
    assert errors.endswith("No space left on device\n")
