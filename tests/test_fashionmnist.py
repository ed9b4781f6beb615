import contextlib
import io
import json
import os
import re
import resource
import shutil
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
import synthetic
from data import CLASS_NAMES
from training import load_checkpoint, load_recording

PROJECT = Path(__file__).parent.parent
PICTURES = {
    *(f"{name}_{what}.png" for name in ("ffn", "cnn") for what in ("loss", "correct", "incorrect")),
    *(f"{name}_confusion.png" for name in ("ffn", "cnn")),
    "comparison.png",
}
SERIES_FILES = {
    "comparison.json",
    "learning_curves.png",
    "calibration.png",
    "suspect_labels.png",
    "suspect_labels.csv",
}
FILES = PICTURES | {"ffn.pt", "cnn.pt", "metrics.json", "ffn.resume.pt", "cnn.resume.pt"}
QUICK = ["--dataset", "synthetic", "--limit", "300", "--epochs", "2", "--precision", "float32"]
SMALL_STAND_IN = {"TRAIN_COUNT": 600, "TEST_COUNT": 200}


def run(*arguments):
    return fashionmnist.main([str(argument) for argument in arguments])


def write_small_script(folder):
    """The script with a smaller stand-in, which is drawn at once, as a file to start."""
    path = folder / "small.py"
    settings = "".join(f"synthetic.{name} = {count}\n" for name, count in SMALL_STAND_IN.items())
    path.write_text(
        f"import sys\nsys.path.insert(0, {str(PROJECT)!r})\nimport synthetic\n{settings}"
        "import fashionmnist\nsys.exit(fashionmnist.main())\n"
    )
    return path


@pytest.fixture
def small_script(tmp_path):
    return write_small_script(tmp_path)


def command(script, *arguments):
    """A script as its users start it, without a terminal."""
    return [sys.executable, str(script), *map(str, arguments)]


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory, drawn):
    """A small whole run on the stand-in: its folder and what it printed."""
    out = tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("synthetic.draw_dataset", lambda seed: drawn)
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


def test_accuracy_of_both_views_stands_beside_that_of_one(quick_run):
    out, printed = quick_run
    models = json.loads((out / "metrics.json").read_text())["models"]
    for name, model in models.items():
        row = re.search(rf"^{name.upper()} .*%$", printed, re.MULTILINE).group()
        assert f"{model['test_accuracy']:.2%}" in row
        assert row.endswith(f"{model['flip_averaged_accuracy']:.2%}")
        assert model["flip_averaged_accuracy"] == pytest.approx(model["test_accuracy"], abs=0.1)


def test_network_can_learn_from_a_trained_one(quick_run, tmp_path, quick_drawing):
    teacher = quick_run[0] / "cnn.pt"
    assert run(*QUICK, "--models", "ffn", "--teacher", teacher, "--out", tmp_path) == 0
    taught, alone = (
        json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path, quick_run[0])
    )
    assert taught["settings"]["teacher"] == str(teacher)
    assert taught["models"]["ffn"]["history"] != alone["models"]["ffn"]["history"]


@pytest.mark.parametrize(("file", "says"), [("none.pt", "no checkpoint"), ("ffn.pt", "model ffn")])
def test_teacher_that_is_none_is_refused(quick_run, tmp_path, capsys, file, says):
    out = tmp_path / "out"
    assert run(*QUICK, "--teacher", quick_run[0] / file, "--out", out) == 2
    assert says in capsys.readouterr().err and not out.exists()


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
    arguments += ["--batch-size", "100"]
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


def test_ctrl_c_ends_with_130_and_the_way_to_go_on(tmp_path, small_script):
    # As many epochs as still have a row each.
    arguments = [*QUICK, "--epochs", str(fashionmnist.MAX_EPOCH_ROWS), "--out", tmp_path / "out"]
    with subprocess.Popen(
        command(small_script, *arguments),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        # A shell starts background jobs with Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        for line in process.stdout:
            if f" 2/{fashionmnist.MAX_EPOCH_ROWS}" in line:
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


# Many seeds


@pytest.fixture(scope="module")
def series(tmp_path_factory, drawn):
    """Two small runs of each model on the stand-in: their folder and what was printed."""
    out = tmp_path_factory.mktemp("series")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("synthetic.draw_dataset", lambda seed: drawn)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            assert run(*QUICK, "--runs", "2", "--out", out) == 0
    return out, printed.getvalue()


def test_series_keeps_every_run_and_writes_the_comparison(series):
    out, _ = series
    kept = {path.name for path in (out / "runs").iterdir()}
    assert kept == {
        f"{name}-seed{seed}.{ending}"
        for name in ("ffn", "cnn")
        for seed in (0, 1)
        for ending in ("json", "pt")
    }
    written = {path.name for path in out.iterdir()}
    assert written == PICTURES | SERIES_FILES | {"ffn.pt", "cnn.pt", "metrics.json", "runs"}


def test_comparison_holds_the_runs_values_and_their_mean(series):
    out, _ = series
    models = json.loads((out / "comparison.json").read_text())["models"]
    for name in ("ffn", "cnn"):
        accuracy = models[name]["test_accuracy"]
        kept = [
            json.loads((out / "runs" / f"{name}-seed{seed}.json").read_text())["test_accuracy"]
            for seed in (0, 1)
        ]
        assert accuracy["values"] == kept
        assert accuracy["mean"] == pytest.approx(np.mean(kept))
        assert accuracy["std"] == pytest.approx(np.std(kept, ddof=1))
        assert accuracy["ci95"][0] < accuracy["mean"] < accuracy["ci95"][1]


def test_first_seed_of_a_series_is_the_single_run(series, quick_run):
    for name in ("ffn", "cnn"):
        one, other = (
            torch.load(out / f"{name}.pt", weights_only=True) for out, _ in (series, quick_run)
        )
        assert all(one["weights"][key].equal(other["weights"][key]) for key in one["weights"])


def test_series_prints_runs_difference_and_classes(series):
    printed = series[1]
    for part in (
        "FFN: test accuracy",
        "95 % interval",
        "CNN - FFN:",
        "McNemar's exact test",
        "expected calibration error",
        "multiply-accumulates",
        "ms for 1 picture,",
        "seeds of each model",
    ):
        assert part in printed
    assert all(re.search(rf"^{re.escape(label)} .* ± ", printed, re.M) for label in CLASS_NAMES)


def test_series_started_again_does_only_what_is_missing(series, tmp_path, quick_drawing, capsys):
    out = tmp_path / "out"
    shutil.copytree(series[0] / "runs", out / "runs")
    (out / "runs" / "cnn-seed1.json").unlink()
    untouched = (out / "runs" / "cnn-seed0.pt").stat().st_mtime_ns
    assert run(*QUICK, "--runs", "2", "--out", out) == 0
    printed = capsys.readouterr().out
    assert "4 runs wanted, 3 already" in printed and printed.count("\nRun ") == 1
    assert (out / "runs" / "cnn-seed0.pt").stat().st_mtime_ns == untouched
    again, before = (
        json.loads((folder / "comparison.json").read_text())["models"]["cnn"]["test_accuracy"]
        for folder in (out, series[0])
    )
    assert again == before


def test_runs_of_different_settings_are_not_mixed(series, quick_drawing, capsys):
    before = (series[0] / "comparison.json").read_bytes()
    assert run(*QUICK, "--runs", "2", "--lr", "0.01", "--out", series[0]) == 2
    error = capsys.readouterr().err
    assert "not mixed" in error and "lr" in error and len(error.splitlines()) <= 2
    assert (series[0] / "comparison.json").read_bytes() == before


def test_deterministic_algorithms_can_be_asked_for(tmp_path, quick_drawing):
    try:
        arguments = ["--models", "cnn", "--deterministic", "--limit", "100", "--out", tmp_path]
        assert run(*QUICK, *arguments) == 0
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def torchrun(script, *arguments):
    """A script as torchrun starts it in two processes, on a free port."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return [sys.executable, *launcher, str(script), *map(str, arguments)]


def run_files(out):
    return {path.name for path in (out / "runs").glob("*.json")}


@pytest.fixture(scope="module")
def torchrun_job(tmp_path_factory):
    """A job of two processes, one of them killed on the way, and started again.

    Its folder, what both starts left on standard error and output, and when each run that the first
    one had finished was written.
    """
    folder = tmp_path_factory.mktemp("torchrun")
    out, script = folder / "out", write_small_script(folder)
    with subprocess.Popen(
        torchrun(script, *QUICK, "--runs", "40", "--out", out),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as job:
        deadline = time.monotonic() + 120
        while len(run_files(out)) < 2 and time.monotonic() < deadline and job.poll() is None:
            time.sleep(0.05)
        os.kill(worker_of(job.pid), signal.SIGKILL)
        _, says = job.communicate(timeout=60)
    assert job.returncode != 0
    times = {name: (out / "runs" / name).stat().st_mtime_ns for name in run_files(out)}
    again = subprocess.run(
        torchrun(script, *QUICK, "--runs", "3", "--out", out),
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    return out, says, again.stdout, times


def test_worker_that_dies_ends_the_job_and_loses_no_finished_run(torchrun_job):
    out, says, _, times = torchrun_job
    assert "SIGKILL" in says
    assert 2 <= len(times) < 80
    assert all((out / "runs" / name).stat().st_mtime_ns == at for name, at in times.items())


def test_two_processes_make_the_same_runs_as_one_with_as_many_threads(
    torchrun_job, tmp_path, monkeypatch
):
    together, _, printed, times = torchrun_job
    assert printed.count("Written:") == 1 and printed.count("CNN - FFN") == 1
    for name, count in SMALL_STAND_IN.items():
        monkeypatch.setattr(synthetic, name, count)
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // 2))
    try:
        assert run(*QUICK, "--runs", "3", "--out", tmp_path) == 0
    finally:
        torch.set_num_threads(threads)
    alone = run_files(tmp_path)
    assert len(alone) == 6 and run_files(together) == alone | times.keys()
    for name in alone:
        one, other = (
            torch.load((out / "runs" / name).with_suffix(".pt"), weights_only=True)
            for out in (tmp_path, together)
        )
        assert all(one["weights"][key].equal(other["weights"][key]) for key in one["weights"])
        assert one["test_logits"].equal(other["test_logits"])
        histories = [
            json.loads((out / "runs" / name).read_text())["history"] for out in (tmp_path, together)
        ]
        assert histories[0] == histories[1]


def test_processes_without_many_runs_to_share_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    assert run("--out", tmp_path / "out") == 2
    assert "--runs" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def worker_of(launcher):
    """The number of the last process that torchrun started."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return int(children[-1])


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
        ("--runs", "0"),
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
        ("--record", "--runs=2"),
        ("--record", "--models=ffn"),
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


def test_full_disk_is_an_error_and_what_was_there_stays(tmp_path, small_script):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("ffn.pt", "metrics.json"):
        (out / name).write_text("from before")

    def fill_the_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    result = subprocess.run(
        command(small_script, *QUICK, "--out", out),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=fill_the_disk,
    )
    assert result.returncode == 1
    assert "cannot write" in result.stderr and "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) <= 2
    assert {path.name for path in out.iterdir()} == {"ffn.pt", "metrics.json"}
    assert (out / "ffn.pt").read_text() == "from before"


# Looking without training


def test_summary_prints_both_tables_and_touches_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("--summary") == 0
    printed = capsys.readouterr().out
    assert "FFN" in printed and "CNN" in printed and printed.count("total") == 2
    assert not list(tmp_path.iterdir())


def test_best_networks_have_the_same_layers_and_the_cnn_more_kernels(capsys):
    assert run("--summary") == 0
    plain = capsys.readouterr().out.splitlines()
    assert run("--summary", "--best") == 0
    best = capsys.readouterr().out.splitlines()
    kinds = [
        [line.split()[1] for line in table if len(line.split()) > 3] for table in (plain, best)
    ]
    assert kinds[0] == kinds[1]
    totals = [
        [int(line.split()[-1].replace(",", "")) for line in table if " total " in line]
        for table in (plain, best)
    ]
    assert totals[1][0] >= totals[0][0] and totals[1][1] > totals[0][1]


def test_record_writes_what_kernel_vis_moves(tmp_path, quick_drawing, capsys):
    assert run(*QUICK, "--models", "cnn", "--record", "--out", tmp_path) == 0
    assert str(tmp_path / "recording.pt") in capsys.readouterr().out
    checkpoint = load_checkpoint(tmp_path / "cnn.pt", "cnn")
    recording = load_recording(tmp_path / "recording.pt", checkpoint)
    assert recording.steps[0] == 0 and recording.steps_per_epoch * 2 == recording.steps[-1]


def test_help_names_every_option_and_default(capsys):
    with pytest.raises(SystemExit) as stop:
        run("--help")
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for option in ("--epochs", "--resume", "--mirror", "--timeout", "--precision", "--limit"):
        assert option in printed
    assert "default: outputs" in printed


def test_importing_does_nothing(tmp_path):
    modules = ", ".join(sorted(path.stem for path in PROJECT.glob("*.py")))
    result = subprocess.run(
        [sys.executable, "-c", f"import {modules}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        check=True,
    )
    assert result.stdout == b"" and result.stderr == b""
    assert not list(tmp_path.iterdir())
