import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import fashionmnist
from fashion import cli, plots, synthetic
from fashion.checkpoint import load_recording, load_weights
from fashion.data import CLASS_NAMES
from fashion.training import Trainer
from models import MODELS

PROJECT = Path(__file__).parent.parent
PICTURES = {
    f"{name}_{what}.png"
    for name in ("ffn", "cnn")
    for what in ("loss", "correct", "incorrect", "confusion")
} | {"comparison.png"}
WEIGHTS = {"ffn.safetensors", "cnn.safetensors"}
RESUME_FILES = {"ffn.resume.pt", "cnn.resume.pt"}
SERIES_FILES = {
    "comparison.json",
    "learning_curves.png",
    "calibration.png",
    "suspect_labels.png",
    "suspect_labels.csv",
}
SHORT = ["--dataset", "synthetic", "--limit", "300", "--epochs", "2", "--batch-size", "100"]
SHORT += ["--device", "cpu", "--precision", "float32"]  # GPUs: see test_gpu.py
SMALL_STAND_IN = {"TRAIN_COUNT": 600, "TEST_COUNT": 200}


def run(*arguments):
    argv = [str(argument) for argument in arguments]
    return cli.run(fashionmnist.parse_arguments, fashionmnist.main, argv)


def run_quietly(*arguments):
    """Run the script successfully on a small stand-in and return what it printed."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        for name, count in SMALL_STAND_IN.items():
            patch.setattr(synthetic, name, count)
        assert run(*arguments) == 0
    return printed.getvalue()


@pytest.fixture(autouse=True)
def small_stand_in(monkeypatch):
    for name, count in SMALL_STAND_IN.items():
        monkeypatch.setattr(synthetic, name, count)


@pytest.fixture
def no_pictures(monkeypatch):
    """Write no pictures in tests that do not look at them."""
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: None)


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    """The folder of a small complete run, and what it printed."""
    out = tmp_path_factory.mktemp("outputs")
    return out, run_quietly(*SHORT, "--out", out)


def read_metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def assert_same_weights(one, other):
    weights, others = load_file(one), load_file(other)
    assert weights.keys() == others.keys()
    assert all(weights[key].equal(others[key]) for key in weights)


# A complete run


def test_exactly_the_expected_files_are_written(short_run):
    expected = PICTURES | WEIGHTS | RESUME_FILES | {"metrics.json", "report.html", ".lock"}
    assert {path.name for path in short_run[0].iterdir()} == expected


@pytest.mark.parametrize("name", sorted(PICTURES))
def test_pictures_are_large_and_not_empty(short_run, name):
    pixels = np.asarray(Image.open(short_run[0] / name).convert("L"))
    assert min(pixels.shape) >= 590 and pixels.std() > 10


def test_metrics_are_complete(short_run):
    metrics = read_metrics(short_run[0])
    assert set(metrics) == {"settings", "versions", "device", "dataset", "seed", "models"}
    assert metrics["versions"]["torch"] == torch.__version__
    assert metrics["dataset"]["title"] == "synthetic images, not Fashion-MNIST"
    assert metrics["settings"]["recipes"]["cnn"]["batch_size"] == 100
    assert metrics["settings"]["models"]["cnn"]["channels"] == [32, 64, 128]
    assert list(metrics["models"]) == ["ffn", "cnn"]
    for model in metrics["models"].values():
        assert model["parameters"] > 100_000 and model["train_seconds"] > 0
        assert [row["epoch"] for row in model["history"]] == [1, 2]
        matrix = np.array(model["confusion_matrix"])
        assert matrix.shape == (10, 10) and matrix.sum() == 200
        assert model["test_accuracy"] == pytest.approx(np.trace(matrix) / 200)
        by_class = (np.diag(matrix) / matrix.sum(1)).tolist()
        assert model["test_accuracy_by_class"] == pytest.approx(by_class)


def test_output_lists_epochs_results_files_and_the_next_command(short_run):
    out, printed = short_run
    rows = re.findall(r"^ +\d/2  +[\d.]+ +[\d.]+ +[\d.]+% +[\d.]+% .*$", printed, re.MULTILINE)
    assert len(rows) == 4
    for name, model in read_metrics(out)["models"].items():
        row = re.search(rf"^{name.upper()} .*%$", printed, re.MULTILINE).group()
        assert f"{model['parameters']:,}" in row and f"{model['test_accuracy']:.2%}" in row
        assert row.endswith(f"{model['flip_averaged_accuracy']:.2%}")
    for name in PICTURES | WEIGHTS | {"metrics.json"}:
        assert str(out / name) in printed
    assert f"python kernel_vis.py --checkpoint {out / 'cnn.safetensors'}" in printed
    assert "\r" not in printed and "\x1b" not in printed


def test_results_on_the_stand_in_are_marked(short_run):
    out, printed = short_run
    closing = printed[printed.index("Results on") :]
    assert "synthetic images, not Fashion-MNIST" in closing.splitlines()[0]
    assert "say nothing about Fashion-MNIST" in closing
    for name, network in MODELS.items():
        assert load_weights(out / f"{name}.safetensors", network).dataset == "synthetic"


def test_weights_state_their_accuracy(short_run):
    out, _ = short_run
    for name, model in read_metrics(out)["models"].items():
        metadata = load_weights(out / f"{name}.safetensors", MODELS[name]).metadata
        assert metadata["test_accuracy"] == model["test_accuracy"]
        assert metadata["validation_accuracy"] == model["history"][-1]["validation_accuracy"]


def test_a_model_trains_alone_as_it_does_beside_another(short_run, tmp_path, no_pictures):
    assert run(*SHORT, "--models", "cnn", "--out", tmp_path) == 0
    alone, beside = (read_metrics(folder)["models"]["cnn"] for folder in (tmp_path, short_run[0]))
    assert alone["history"] == beside["history"]
    assert alone["confusion_matrix"] == beside["confusion_matrix"]
    assert_same_weights(tmp_path / "cnn.safetensors", short_run[0] / "cnn.safetensors")


def test_run_on_small_files_in_place_of_fashion_mnist(small_folder, tmp_path, no_pictures):
    out = tmp_path / "out"
    assert run("--data-dir", small_folder, "--out", out, "--epochs", "1", "--models", "ffn") == 0
    dataset = read_metrics(out)["dataset"]
    assert dataset["title"] == "Fashion-MNIST" and dataset["train_images"] == 220


def test_without_data_and_network_the_stand_in_replaces_it_with_a_warning(
    tmp_path, no_network, no_pictures, capsys
):
    arguments = ["--data-dir", tmp_path / "data", "--out", tmp_path / "out", "--models", "ffn"]
    assert run(*arguments, "--limit", "100", "--epochs", "1") == 0
    assert "WARNING: " in capsys.readouterr().err
    assert read_metrics(tmp_path / "out")["dataset"]["name"] == "synthetic"


def test_short_training_on_the_real_data_learns(real_archives, tmp_path, no_network, no_pictures):
    options = ["--limit", "1500", "--epochs", "2", "--batch-size", "50", "--out", tmp_path]
    assert run("--dataset", "fashion-mnist", "--data-dir", real_archives, *options) == 0
    for model in read_metrics(tmp_path)["models"].values():
        assert model["test_accuracy"] > 0.7


def test_real_data_is_never_replaced_if_requested(tmp_path, no_network, capsys):
    arguments = ["--dataset", "fashion-mnist", "--data-dir", tmp_path, "--out", tmp_path / "out"]
    assert run(*arguments) == 1
    error = capsys.readouterr().err
    assert "train-images-idx3-ubyte.gz" in error and "--mirror" in error
    assert len(error.splitlines()) <= 2


def test_files_of_the_first_model_are_there_while_the_second_one_trains(
    tmp_path, no_pictures, monkeypatch
):
    def interrupt_the_cnn(trainer, path):
        if trainer.network is MODELS["cnn"]:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "save", interrupt_the_cnn)
    assert run(*SHORT, "--out", tmp_path) == 130
    assert list(read_metrics(tmp_path)["models"]) == ["ffn"]
    assert (tmp_path / "ffn.safetensors").exists()
    assert not (tmp_path / "cnn.safetensors").exists()


def test_quick_training_has_its_own_recipes_and_folder(tmp_path, no_pictures):
    options = ["--dataset", "synthetic", "--limit", "100", "--models", "ffn", "--out", tmp_path]
    assert run("--quick", *options) == 0
    recipe = read_metrics(tmp_path / "quick")["settings"]["recipes"]["ffn"]
    assert recipe["epochs"] == MODELS["ffn"].quick_recipe.epochs < MODELS["ffn"].recipe.epochs
    assert not (tmp_path / "metrics.json").exists()


# Interrupting and resuming


def test_interrupted_run_resumes_to_the_same_end(
    short_run, tmp_path, no_pictures, monkeypatch, capsys
):
    save = Trainer.save

    def interrupt_in_the_second_save(trainer, path):
        if len(trainer.history) == 2:
            raise KeyboardInterrupt
        save(trainer, path)

    monkeypatch.setattr(Trainer, "save", interrupt_in_the_second_save)
    arguments = [*SHORT, "--models", "cnn", "--out", tmp_path / "a folder"]
    assert run(*arguments) == 130
    message = capsys.readouterr().err
    assert "saved up to epoch 1 in" in message
    command = message.strip().splitlines()[-1]
    assert not (tmp_path / "a folder" / "cnn.safetensors").exists()

    monkeypatch.setattr(Trainer, "save", save)
    assert run(*shlex.split(command)[2:]) == 0
    assert "after epoch 1 of 2" in capsys.readouterr().out
    assert_same_weights(tmp_path / "a folder" / "cnn.safetensors", short_run[0] / "cnn.safetensors")
    resumed, whole = (
        read_metrics(folder)["models"]["cnn"]["history"]
        for folder in (tmp_path / "a folder", short_run[0])
    )
    assert resumed == whole


def test_resuming_without_a_file_starts_from_the_first_epoch(tmp_path, no_pictures, capsys):
    assert run(*SHORT, "--models", "ffn", "--out", tmp_path, "--resume") == 0
    assert "nothing to resume" in capsys.readouterr().out


def test_resuming_with_other_settings_is_rejected(short_run, capsys):
    before = (short_run[0] / "ffn.resume.pt").read_bytes()
    assert run(*SHORT, "--epochs", "3", "--out", short_run[0], "--resume") == 2
    error = capsys.readouterr().err
    assert "a run with epochs 2, but this run has 3" in error and "--overwrite" in error
    assert (short_run[0] / "ffn.resume.pt").read_bytes() == before


def test_long_training_prints_some_of_its_epochs(tmp_path, no_pictures, monkeypatch, capsys):
    monkeypatch.setattr(fashionmnist, "MAX_EPOCH_ROWS", 3)
    assert run(*SHORT, "--models", "ffn", "--epochs", "8", "--out", tmp_path) == 0
    rows = re.findall(r"^ +(\d)/8 ", capsys.readouterr().out, re.MULTILINE)
    assert rows == ["1", "3", "6", "8"]


# Several seeds


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """The folder of two small runs of each model, and what was printed."""
    out = tmp_path_factory.mktemp("series")
    return out, run_quietly(*SHORT, "--runs", "2", "--out", out)


def read_comparison(folder):
    return json.loads((folder / "comparison.json").read_text())


def test_series_writes_every_run_and_the_comparison(series):
    out, _ = series
    assert {path.name for path in (out / "runs").iterdir()} == {
        f"{name}-seed{seed}.{suffix}"
        for name in ("ffn", "cnn")
        for seed in (0, 1)
        for suffix in ("json", "safetensors", "logits.safetensors")
    }
    expected = PICTURES | SERIES_FILES | WEIGHTS
    expected |= {"metrics.json", "report.html", "runs", ".lock"}
    assert {path.name for path in out.iterdir()} == expected


def test_comparison_summarizes_the_saved_runs(series):
    out, _ = series
    comparison = read_comparison(out)
    for name in ("ffn", "cnn"):
        accuracy = comparison["models"][name]["test_accuracy"]
        saved = [
            json.loads((out / "runs" / f"{name}-seed{seed}.json").read_text())["test_accuracy"]
            for seed in (0, 1)
        ]
        assert accuracy["values"] == saved
        assert accuracy["mean"] == pytest.approx(np.mean(saved))
        assert accuracy["std"] == pytest.approx(np.std(saved, ddof=1))
    assert [each["of"] for each in comparison["differences"]] == ["cnn - ffn"]


def test_first_seed_of_a_series_equals_a_single_run(series, short_run):
    for name in WEIGHTS:
        assert_same_weights(series[0] / name, short_run[0] / name)


def test_series_prints_models_difference_and_classes(series):
    printed = series[1]
    for part in (
        "FFN: test accuracy",
        "95 % interval",
        "CNN - FFN:",
        "McNemar's exact test",
        "expected calibration error",
        "multiply-accumulates",
        "ms for 1 image,",
        "seeds per model",
    ):
        assert part in printed
    assert all(re.search(rf"^{re.escape(label)} .* ± ", printed, re.M) for label in CLASS_NAMES)


def test_repeated_series_trains_only_missing_runs(series, tmp_path, no_pictures, capsys):
    out = tmp_path / "out"
    shutil.copytree(series[0] / "runs", out / "runs")
    (out / "runs" / "cnn-seed1.json").unlink()
    untouched = (out / "runs" / "cnn-seed0.json").stat().st_mtime_ns
    assert run(*SHORT, "--runs", "2", "--out", out) == 0
    printed = capsys.readouterr().out
    assert "4 runs requested, 3 already" in printed and printed.count(" parameters, 2 epochs") == 1
    assert (out / "runs" / "cnn-seed0.json").stat().st_mtime_ns == untouched
    again, before = (read_comparison(folder)["models"]["cnn"] for folder in (out, series[0]))
    assert again["test_accuracy"] == before["test_accuracy"]
    assert again["expected_calibration_error"] == before["expected_calibration_error"]


def test_runs_with_different_settings_are_not_mixed(series, capsys):
    before = (series[0] / "comparison.json").read_bytes()
    assert run(*SHORT, "--runs", "2", "--lr", "0.01", "--out", series[0]) == 2
    error = capsys.readouterr().err
    assert "but this command has 0.01" in error and "learning_rate" in error and "--out" in error
    assert len(error.splitlines()) <= 2
    assert (series[0] / "comparison.json").read_bytes() == before


# Several processes


def torchrun(script, *arguments):
    """Return the command that starts a script in two processes, on a free port."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return [sys.executable, *launcher, str(script), *map(str, arguments)]


def run_files(out):
    return {path.name for path in (out / "runs").glob("*.json")}


def test_two_processes_make_the_same_runs_as_one_with_as_many_threads(tmp_path, no_pictures):
    alone, together, script = tmp_path / "alone", tmp_path / "together", tmp_path / "small.py"
    settings = "".join(f"synthetic.{name} = {count}\n" for name, count in SMALL_STAND_IN.items())
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(PROJECT)!r})\nimport fashionmnist\n"
        f"from fashion import cli, plots, synthetic\n{settings}"
        "plots.save_figure = lambda figure, path: None\n"
        "sys.exit(cli.run(fashionmnist.parse_arguments, fashionmnist.main))\n"
    )
    command = torchrun(script, *SHORT, "--runs", "2", "--out", together)
    job = subprocess.run(command, capture_output=True, text=True, check=False)
    assert job.returncode == 0, job.stderr
    assert job.stdout.count("Files written:") == 1 and job.stdout.count("CNN - FFN") == 1
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // 2))
    try:
        assert run(*SHORT, "--runs", "2", "--out", alone) == 0
    finally:
        torch.set_num_threads(threads)
    assert len(run_files(alone)) == 4 and run_files(together) == run_files(alone)
    for name in run_files(alone):
        one, other = (folder / "runs" / name for folder in (alone, together))
        for suffix in (".safetensors", ".logits.safetensors"):
            assert_same_weights(one.with_suffix(suffix), other.with_suffix(suffix))
        histories = [json.loads(path.read_text())["history"] for path in (one, other)]
        assert histories[0] == histories[1]


def test_several_processes_need_several_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    assert run("--out", tmp_path / "out") == 2
    assert "--runs" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# Mistakes


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--epochs", "0"),
        ("--epochs", "1.5"),
        ("--batch-size", "1"),
        ("--lr", "nan"),
        ("--seed", "-1"),
        ("--limit", "60001"),
        ("--timeout", "0"),
        ("--models", "rnn"),
        ("--mirror", "file:///etc"),
        ("--epoch", "3"),
        ("--record", "--runs=2"),
        ("--record", "--models=ffn"),
    ],
)
def test_wrong_argument_is_rejected_before_anything_is_written(tmp_path, capsys, option, value):
    places = ["--out", tmp_path / "out", "--data-dir", tmp_path / "data"]
    assert run(*places, option, value) == 2
    error = capsys.readouterr().err
    assert option in error and len(error.splitlines()) <= 2
    assert not list(tmp_path.iterdir())


def test_absent_device_is_rejected_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run("--device", "cuda", "--out", tmp_path / "out", "--data-dir", tmp_path / "data") == 2
    error = capsys.readouterr().err
    assert "device cuda is not available" in error and "--device" in error
    assert not list(tmp_path.iterdir())


def test_impossible_output_folder_is_an_error(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert run(*SHORT, "--out", tmp_path / "file" / "out") == 1
    error = capsys.readouterr().err
    assert str(tmp_path / "file" / "out") in error and "--out" in error
    assert len(error.splitlines()) <= 2


# Other options


def test_deterministic_algorithms_can_be_requested(tmp_path, no_pictures):
    try:
        assert run(*SHORT, "--models", "ffn", "--deterministic", "--out", tmp_path) == 0
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_summary_prints_the_layers_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("--summary") == 0
    printed = capsys.readouterr().out
    assert "FFN" in printed and "CNN" in printed and printed.count("total") == 2
    assert not list(tmp_path.iterdir())


def test_recording_is_written(tmp_path, no_pictures, capsys):
    assert run(*SHORT, "--models", "cnn", "--record", "--out", tmp_path) == 0
    assert str(tmp_path / "recording.safetensors") in capsys.readouterr().out
    model = load_weights(tmp_path / "cnn.safetensors", MODELS["cnn"]).model
    recording = load_recording(tmp_path / "recording.safetensors", model)
    assert recording.steps[0] == 0 and recording.steps_per_epoch * 2 == recording.steps[-1]


def test_help_names_defaults(capsys):
    with pytest.raises(SystemExit) as stop:
        run("--help")
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    epochs = ", ".join(f"{name} {network.recipe.epochs}" for name, network in MODELS.items())
    assert "default: outputs" in printed and f"(default: {epochs})" in " ".join(printed.split())


# Results that are already in the output folder


@pytest.fixture
def unfinished(tmp_path, monkeypatch):
    """A folder with a training of the FFN that was interrupted after its first epoch."""
    with monkeypatch.context() as patch:
        patch.setattr(fashionmnist.report, "print_epoch", interrupt)
        assert run(*SHORT, "--models", "ffn", "--out", tmp_path) == 130
    return tmp_path


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("options", [[], ["--epochs", "1"], ["--models", "cnn", "ffn"]])
def test_unfinished_training_is_not_overwritten(unfinished, capsys, options):
    before = (unfinished / "ffn.resume.pt").read_bytes()
    capsys.readouterr()
    assert run(*SHORT, *options, "--out", unfinished) == 2
    error = capsys.readouterr().err
    assert f"{unfinished / 'ffn.resume.pt'} holds 1 of 2 epochs" in error
    assert all(option in error for option in ("--resume", "--overwrite", "--out"))
    assert (unfinished / "ffn.resume.pt").read_bytes() == before


def test_unfinished_training_is_discarded_on_request(unfinished, no_pictures):
    assert run(*SHORT, "--models", "ffn", "--out", unfinished, "--overwrite") == 0
    assert [row["epoch"] for row in read_metrics(unfinished)["models"]["ffn"]["history"]] == [1, 2]


def test_unfinished_training_of_another_model_stays(unfinished, no_pictures):
    assert run(*SHORT, "--models", "cnn", "--out", unfinished) == 0
    assert run(*SHORT, "--models", "ffn", "--out", unfinished, "--resume") == 0
    assert not (unfinished / "cnn.safetensors").exists()
    assert not (unfinished / "cnn.resume.pt").exists()


def test_files_of_earlier_results_are_replaced_or_removed(series, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(series[0], out)
    Image.new("L", (9, 9)).save(out / "prediction.png")  # of the user's own pictures
    for name in ("kernel_grid.png", "cnn.resume.pt", "recording.safetensors"):
        (out / name).write_text("of the earlier models")
    (out / "notes.txt").write_text("of the user")
    assert run(*SHORT, "--models", "ffn", "--seed", "5", "--out", out) == 0
    printed = capsys.readouterr().out
    assert f"The results in {out} (seed 0, epochs: ffn 2, cnn 2)" in printed
    pictures = {f"ffn_{kind}.png" for kind in ("loss", "correct", "incorrect", "confusion")}
    files = {"ffn.safetensors", "ffn.resume.pt", "metrics.json", "report.html"}
    files |= {"runs", ".lock", "notes.txt", "prediction.png"}
    assert {path.name for path in out.iterdir()} == pictures | files
    assert read_metrics(out)["seed"] == 5


def test_replacing_figures_without_results_is_announced(tmp_path, no_pictures, capsys):
    (tmp_path / "kernel_grid.png").write_text("of other models")
    assert run(*SHORT, "--models", "ffn", "--out", tmp_path) == 0
    printed = capsys.readouterr().out
    assert f"The results in {tmp_path} and the figures of these models will be" in printed
    assert not (tmp_path / "kernel_grid.png").exists()


def test_output_folder_may_be_the_data_folder(small_folder, no_pictures):
    options = ["--epochs", "1", "--models", "ffn", "--out", small_folder / "FashionMNIST"]
    assert run("--data-dir", small_folder, *options) == 0
