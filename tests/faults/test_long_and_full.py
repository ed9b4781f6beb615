"""Full disks, folders that vanish, losses that diverge, and very long trainings."""

import re
import resource
import shutil
from pathlib import Path

import pytest
from processes import (
    ended,
    fill_disk,
    finish,
    on_write,
    run_small,
    start,
    wait_for_end,
    wait_until,
)

from fashion.checkpoint import load_state
from fashion.download import load_fashion_mnist
from fashion.files import LOCK_NAME, RunError


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ffn.resume.pt", []),
        ("cnn.safetensors", ["--models", "cnn"]),
        ("metrics.json", []),
        ("ffn_loss.png", []),
        ("recording.safetensors", ["--models", "cnn", "--record"]),
        ("runs/ffn-seed0.safetensors", ["--runs", "2"]),
        ("suspect_labels.csv", ["--runs", "2"]),
    ],
)
def test_full_disk_is_reported_and_the_old_file_stays(tmp_path, trial, name, options):
    out, log = tmp_path / "out", tmp_path / "log"
    path = out / name
    path.parent.mkdir(parents=True)
    path.write_text("from before")
    with trial("full disk while writing"):
        arguments = on_write, fill_disk, path.name, 0, run_small, "--out", out, *options
        assert finish(*arguments, log=log) == 1
        printed = log.read_text()
        assert f"error: cannot write {path}: No space left" in printed
        assert "Traceback" not in printed
        assert path.read_text() == "from before"
        assert not list(out.rglob(".*.part"))


def test_disk_that_is_full_while_extracting_keeps_the_archives(small_folder, trial):
    raw = small_folder / "FashionMNIST" / "raw"
    before = {path.name: path.read_bytes() for path in raw.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with trial("full disk while writing"), pytest.raises(RunError, match="cannot write"):
            load_fashion_mnist(small_folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in raw.iterdir()} == before


def test_folder_that_vanishes_is_reported(tmp_path, trial):
    out, log = tmp_path / "out", tmp_path / "log"
    with (
        trial("folder removed during the run"),
        ended(start(run_small, "--out", out, "--epochs", "100000", log=log)) as process,
    ):
        wait_until((out / "ffn.resume.pt").exists)
        while out.exists():
            shutil.rmtree(out, ignore_errors=True)
        assert wait_for_end(process) == 1
        printed = log.read_text()
        assert f"error: cannot write {out}" in printed and "Traceback" not in printed


def test_folder_where_nothing_can_be_written_is_rejected(tmp_path, trial):
    log = tmp_path / "log"
    with trial("folder without write access"):
        assert finish(run_small, "--out", "/proc/outputs", log=log) == 1
        assert "error: cannot write to /proc/outputs" in log.read_text()


def test_lock_that_cannot_be_created_is_reported(tmp_path, trial):
    log = tmp_path / "log"
    (tmp_path / LOCK_NAME).mkdir()
    with trial("folder without write access"):
        assert finish(run_small, "--out", tmp_path, log=log) == 1
        assert f"error: cannot lock {tmp_path}" in log.read_text()


@pytest.mark.parametrize("model", ["ffn", "cnn"])
def test_diverging_loss_is_reported_and_the_last_good_file_stays(tmp_path, trial, model):
    out, log = tmp_path / "out", tmp_path / "log"
    with trial("diverging loss"):
        options = ["--models", model, "--lr", "1e6", "--epochs", "3000", "--out", out]
        assert finish(run_small, *options, log=log) == 1
        printed = log.read_text()
        place = re.search(r"became (nan|inf|-inf) in epoch (\d+), ", printed)
        assert place and "try a lower --lr" in printed and "Traceback" not in printed
        state = load_state(out / f"{model}.resume.pt")
        assert len(state["history"]) == int(place[2]) - 1
        assert {path.name for path in out.iterdir()} == {LOCK_NAME, f"{model}.resume.pt"}


def test_size_of_a_very_long_training_stays_constant(tmp_path, long, trial):
    out, log, resume_path = tmp_path / "out", tmp_path / "log", tmp_path / "out" / "ffn.resume.pt"
    epochs = 2000 if long else 50
    options = ["--models", "ffn", "--limit", "100", "--epochs", epochs, "--out", out]
    sizes, memory = [], []
    with (
        trial("a very long training"),
        ended(start(run_small, *options, log=log)) as process,
    ):
        wait_until(resume_path.exists)
        while process.is_alive() and not (out / "ffn.safetensors").exists():  # before the figures
            sizes.append(resume_path.stat().st_size)
            status = Path(f"/proc/{process.pid}/status").read_text()
            memory.append(int(status.partition("VmRSS:")[2].split()[0]))
            process.join(0.05)
        assert wait_for_end(process) == 0
        assert max(sizes) - min(sizes) < 500 * epochs  # bytes of the history
        if long:
            settled = memory[len(memory) // 10 :]  # without the first epochs, which allocate
            assert max(settled) < 1.05 * min(settled)
        rows = re.findall(rf"^ *\d+/{epochs} ", log.read_text(), re.MULTILINE)
        assert len(rows) <= 31
