import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fashionmnist
from data import CLASS_NAMES

PROJECT = Path(__file__).parent.parent
PICTURES = {
    *(f"{name}_{what}.png" for name in ("ffn", "cnn") for what in ("loss", "correct", "incorrect")),
    *(f"{name}_confusion.png" for name in ("ffn", "cnn")),
    "comparison.png",
}
FILES = PICTURES | {"ffn.pt", "cnn.pt", "metrics.json", "ffn.resume.pt", "cnn.resume.pt"}
QUICK = ["--dataset", "synthetic", "--limit", "300", "--epochs", "2", "--precision", "float32"]


def run(*arguments):
    return fashionmnist.main([str(argument) for argument in arguments])


def command(*arguments):
    """The script as its users start it, without a terminal."""
    return [sys.executable, str(PROJECT / "fashionmnist.py"), *map(str, arguments)]


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory, drawn):
    """A small whole run on the stand-in: its folder and what it printed."""
    out = tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("synthetic.draw_dataset", lambda seed: drawn)
        import contextlib
        import io

        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            assert run(*QUICK, "--out", out) == 0
    return out, printed.getvalue()


# The whole run


def test_every_file_is_written_and_nothing_else(quick_run):
    out, _ = quick_run
    assert {path.name for path in out.iterdir()} == FILES


@pytest.mark.parametrize("name", sorted(PICTURES))
def test_pictures_are_large_and_not_empty(quick_run, name):
    pixels = np.asarray(Image.open(quick_run[0] / name).convert("L"))
    assert min(pixels.shape) >= 590 and pixels.std() > 10


def test_metrics_say_everything(quick_run):
    metrics = json.loads((quick_run[0] / "metrics.json").read_text())
    assert {"settings", "versions", "device", "dataset", "seed", "models"} <= set(metrics)
    assert metrics["versions"]["torch"] == torch.__version__
    assert metrics["dataset"]["title"] == "drawn stand-in, not Fashion-MNIST"
    assert list(metrics["models"]) == ["ffn", "cnn"]
    for model in metrics["models"].values():
        assert model["parameters"] > 100_000 and model["train_seconds"] > 0
        assert [entry["epoch"] for entry in model["history"]] == [1, 2]
        matrix = np.array(model["confusion_matrix"])
        assert matrix.shape == (10, 10) and matrix.sum() == 2000
        assert model["test_accuracy"] == pytest.approx(np.trace(matrix) / 2000)
        assert model["test_accuracy_by_class"] == pytest.approx(
            (np.diag(matrix) / matrix.sum(1)).tolist()
        )


def test_output_has_a_row_an_epoch_the_table_the_files_and_the_next_command(quick_run):
    out, printed = quick_run
    rows = re.findall(r"^ +\d/2  +[\d.]+ +[\d.]+ +[\d.]+% +[\d.]+% .*$", printed, re.MULTILINE)
    assert len(rows) == 4
    assert re.search(r"^FFN +576,010 .*%$", printed, re.MULTILINE)
    assert re.search(r"^CNN +[\d,]+ .*%$", printed, re.MULTILINE)
    for name in FILES - {"ffn.resume.pt", "cnn.resume.pt"}:
        assert str(out / name) in printed
    assert f"python kernel_vis.py --checkpoint {out / 'cnn.pt'}" in printed
    assert "\r" not in printed and "\x1b" not in printed


def test_stand_in_cannot_be_mistaken_for_the_real_thing(quick_run):
    out, printed = quick_run
    closing = printed[printed.index("Result on") :]
    assert "drawn stand-in, not Fashion-MNIST" in closing.splitlines()[0]
    assert "say nothing of Fashion-MNIST" in closing
    for name in ("ffn", "cnn"):
        checkpoint = torch.load(out / f"{name}.pt", weights_only=True)
        assert checkpoint["dataset"] == "synthetic"
        assert checkpoint["class_names"] == list(CLASS_NAMES)


def test_one_model_alone_ends_as_it_does_beside_the_other(quick_run, tmp_path, quick_drawing):
    assert run(*QUICK, "--models", "cnn", "--out", tmp_path) == 0
    alone, beside = (
        json.loads((folder / "metrics.json").read_text())["models"]["cnn"]
        for folder in (tmp_path, quick_run[0])
    )
    assert alone["history"] == beside["history"]
    assert alone["confusion_matrix"] == beside["confusion_matrix"]
    assert not (tmp_path / "comparison.png").exists()


def test_whole_run_on_small_files_in_place_of_fashion_mnist(small_folder, tmp_path):
    out = tmp_path / "out"
    assert run("--data-dir", small_folder, "--out", out, "--epochs", "1", "--models", "ffn") == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["dataset"]["title"] == "Fashion-MNIST"
    assert metrics["dataset"]["train_images"] == 220


def test_auto_without_data_and_network_warns_and_goes_on(
    tmp_path, no_network, quick_drawing, capsys
):
    arguments = ["--data-dir", tmp_path / "data", "--out", tmp_path / "out", "--models", "ffn"]
    assert run(*arguments, "--limit", "100", "--epochs", "1") == 0
    assert "WARNING" in capsys.readouterr().err


def test_real_data_for_one_short_epoch(real_archives, tmp_path, no_network):
    out = tmp_path / "out"
    arguments = ["--data-dir", real_archives, "--limit", "6000", "--epochs", "2", "--out", out]
    assert run("--dataset", "fashion-mnist", *arguments) == 0
    models = json.loads((out / "metrics.json").read_text())["models"]
    assert models["ffn"]["test_accuracy"] > 0.75
    assert models["cnn"]["test_accuracy"] > 0.75


# Stopping and resuming


def test_interrupted_run_is_resumed_to_the_same_end(tmp_path, quick_drawing, monkeypatch, capsys):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    arguments = [*QUICK, "--epochs", "4", "--models", "cnn"]
    assert run(*arguments, "--out", whole) == 0

    train_epoch = fashionmnist.Trainer.train_epoch

    def stop_in_the_third(trainer, progress):
        if len(trainer.history) == 2:
            raise KeyboardInterrupt
        return train_epoch(trainer, progress)

    monkeypatch.setattr(fashionmnist.Trainer, "train_epoch", stop_in_the_third)
    capsys.readouterr()
    assert run(*arguments, "--out", stopped) == 130
    says = capsys.readouterr().err
    assert "epochs 1 to 2 are saved in" in says and f"--out {stopped} --resume" in says
    assert not (stopped / "cnn.pt").exists()

    monkeypatch.setattr(fashionmnist.Trainer, "train_epoch", train_epoch)
    assert run(*arguments, "--out", stopped, "--resume") == 0
    assert "after epoch 2 of 4" in capsys.readouterr().out
    one, other = (torch.load(folder / "cnn.pt", weights_only=True) for folder in (whole, stopped))
    assert all(one["weights"][key].equal(other["weights"][key]) for key in one["weights"])
    histories = [
        json.loads((folder / "metrics.json").read_text())["models"]["cnn"]["history"]
        for folder in (whole, stopped)
    ]
    assert histories[0] == histories[1]


def test_ctrl_c_ends_with_130_and_the_way_to_go_on(tmp_path):
    arguments = [*QUICK, "--epochs", "100000", "--out", tmp_path / "out"]
    with subprocess.Popen(
        command(*arguments),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        for line in process.stdout:
            if "2/100000" in line:
                break
        process.send_signal(signal.SIGINT)
        before = time.monotonic()
        _, says = process.communicate(timeout=60)
    assert process.returncode == 130 and time.monotonic() - before < 60
    assert "interrupted in epoch" in says and "--resume" in says and "Traceback" not in says
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"ffn.resume.pt"}


def test_resume_with_nothing_to_resume_starts_and_says_so(tmp_path, quick_drawing, capsys):
    arguments = [*QUICK, "--epochs", "1", "--models", "ffn", "--out", tmp_path, "--resume"]
    assert run(*arguments) == 0
    assert "nothing to resume" in capsys.readouterr().out


def test_resume_with_other_settings_is_refused(quick_run, quick_drawing, capsys):
    out, _ = quick_run
    before = (out / "ffn.resume.pt").read_bytes()
    assert run(*QUICK, "--epochs", "3", "--out", out, "--resume") == 2
    assert "trained with epochs 2, this run has 3" in capsys.readouterr().err
    assert (out / "ffn.resume.pt").read_bytes() == before


# Mistakes


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--epochs", "0"),
        ("--epochs", "-3"),
        ("--epochs", "1.5"),
        ("--epochs", "many"),
        ("--epochs", "1000000"),
        ("--batch-size", "1"),
        ("--batch-size", "60000"),
        ("--lr", "0"),
        ("--lr", "-1"),
        ("--lr", "nan"),
        ("--lr", "inf"),
        ("--weight-decay", "-0.1"),
        ("--seed", "-1"),
        ("--limit", "1"),
        ("--limit", "60001"),
        ("--timeout", "0"),
        ("--device", "tpu"),
        ("--precision", "float8"),
        ("--dataset", "mnist"),
        ("--models", "rnn"),
        ("--mirror", "file:///etc"),
        ("--mirror", "not an address"),
        ("--epoch", "3"),
        ("--nonsense", "3"),
    ],
)
def test_wrong_argument_is_refused_before_anything_is_touched(tmp_path, capsys, option, value):
    places = ["--out", tmp_path / "out", "--data-dir", tmp_path / "data"]
    assert run(*places, option, value) == 2
    error = capsys.readouterr().err
    assert option in error and len(error.splitlines()) <= 2
    assert not list(tmp_path.iterdir())


def test_absent_device_is_refused_before_the_data_is_touched(tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    assert run("--device", "cuda", "--out", tmp_path / "out", "--data-dir", tmp_path / "data") == 2
    assert "--device cuda" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_output_folder_that_cannot_be_is_an_error(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert run(*QUICK, "--out", tmp_path / "file" / "out") == 1
    error = capsys.readouterr().err
    assert str(tmp_path / "file" / "out") in error and len(error.splitlines()) <= 2


def test_fashion_mnist_never_falls_back(tmp_path, no_network, capsys):
    arguments = ["--dataset", "fashion-mnist", "--data-dir", tmp_path, "--out", tmp_path / "out"]
    assert run(*arguments) == 1
    error = capsys.readouterr().err
    assert "train-images-idx3-ubyte.gz" in error and "--mirror" in error
    assert len(error.splitlines()) == 2


def test_diverging_loss_names_epoch_and_learning_rate(tmp_path, quick_drawing, capsys):
    assert run(*QUICK, "--models", "ffn", "--lr", "1e6", "--epochs", "30", "--out", tmp_path) == 1
    error = capsys.readouterr().err
    assert re.search(r"epoch \d+, step \d+ .* learning rate of 1e\+06", error)


def test_full_disk_is_an_error_and_what_was_there_stays(quick_run, tmp_path):
    for name in ("ffn.pt", "metrics.json"):
        (tmp_path / name).write_text("from before")

    def fill_the_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    result = subprocess.run(
        command(*QUICK, "--out", tmp_path),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=fill_the_disk,
    )
    assert result.returncode == 1
    assert "cannot write" in result.stderr and "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) <= 2
    assert {path.name for path in tmp_path.iterdir()} == {"ffn.pt", "metrics.json"}
    assert (tmp_path / "ffn.pt").read_text() == "from before"


# Looking without training


def test_summary_prints_both_tables_and_touches_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("--summary") == 0
    printed = capsys.readouterr().out
    assert "FFN" in printed and "CNN" in printed and printed.count("total") == 2
    assert not list(tmp_path.iterdir())


def test_help_names_every_option_and_default(capsys):
    with pytest.raises(SystemExit) as stop:
        run("--help")
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for option in ("--epochs", "--resume", "--mirror", "--timeout", "--precision", "--limit"):
        assert option in printed
    assert "default: outputs" in printed


def test_importing_does_nothing(tmp_path):
    modules = "fashionmnist, kernel_vis, data, synthetic, ffn, cnn, training, plots"
    result = subprocess.run(
        [sys.executable, "-c", f"import {modules}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        check=True,
    )
    assert result.stdout == b"" and result.stderr == b""
    assert not list(tmp_path.iterdir())
