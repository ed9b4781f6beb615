"""Full disks, folders that vanish, numbers that explode, and trainings without end."""

import re
import resource
import shutil
from pathlib import Path

import pytest
import torch
from processes import (
    ended,
    finish,
    run_small,
    run_small_on_full_disk,
    start,
    wait_for_end,
    wait_until,
)

import data
from files import WorldFault

KINDS = (".ffn.resume.pt.*", ".metrics.json.*", ".cnn_loss.png.*")


@pytest.mark.parametrize("kind", KINDS)
def test_full_disk_is_named_and_the_good_file_stays(tmp_path, long, trial, kind):
    out, log = tmp_path / "out", tmp_path / "log"
    name = kind.removeprefix(".").removesuffix(".*")
    out.mkdir()
    (out / name).write_text("from before")
    with trial("full disk while writing"):
        assert finish(run_small_on_full_disk, kind, "--out", out, log=log) == 1
        printed = log.read_text()
        assert f"cannot write {out / name}: No space left" in printed
        assert "Traceback" not in printed
        assert (out / name).read_text() == "from before"
        assert not list(out.glob(".*"))
    if not long:
        return
    (out / name).unlink()
    assert finish(run_small, "--out", out, "--resume", log=log) == 0


def test_disk_that_is_full_while_extracting_keeps_the_archives(real_archives, no_network, trial):
    raw = real_archives / "FashionMNIST" / "raw"
    before = {path.name: path.stat().st_size for path in raw.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The largest archive, of 26 megabytes, fits; its content of 47 does not.
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000_000, limits[1]))
    try:
        with trial("full disk while writing"), pytest.raises(WorldFault, match="cannot write"):
            data.load_fashion_mnist(real_archives)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.stat().st_size for path in raw.iterdir()} == before
    assert not list(real_archives.rglob(".*"))
    assert data.load_fashion_mnist(real_archives)


def test_folder_that_vanishes_is_named(tmp_path, trial):
    out, log = tmp_path / "out", tmp_path / "log"
    with (
        trial("folder removed during the run"),
        ended(start(run_small, "--out", out, "--epochs", "100000", log=log)) as process,
    ):
        wait_until((out / "ffn.resume.pt").exists)
        while out.exists():
            shutil.rmtree(out, ignore_errors=True)
        assert wait_for_end(process) == 1
        assert f"cannot write {out}" in log.read_text() and "Traceback" not in log.read_text()


def test_folder_where_nothing_can_be_written_is_refused_at_once(tmp_path, trial):
    with trial("read-only folder"):
        assert finish(run_small, "--out", "/proc/outputs", log=tmp_path / "log") == 1
        assert "cannot write to the output folder /proc/outputs" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("model", ["ffn", "cnn"])
@pytest.mark.parametrize("rate", ["1e6", "3e4"])
def test_exploding_numbers_stop_with_advice_and_the_last_good_file_stays(
    tmp_path, trial, model, rate
):
    out, log = tmp_path / "out", tmp_path / "log"
    with trial("numbers that explode"):
        options = ["--models", model, "--lr", rate, "--epochs", "3000", "--out", out]
        assert finish(run_small, *options, log=log) == 1
        printed = log.read_text()
        where = re.search(r"loss became (nan|inf) in epoch (\d+), step \d+ of \d+", printed)
        assert where and "try a lower --lr" in printed and "Traceback" not in printed
        if int(where[2]) > 1:
            state = torch.load(out / f"{model}.resume.pt", weights_only=True)
            assert len(state["history"]) == int(where[2]) - 1


def test_very_long_training_stays_small_and_readable(tmp_path, long, trial):
    out, log = tmp_path / "out", tmp_path / "log"
    epochs = 2000 if long else 30
    options = ["--models", "ffn", "--limit", "100", "--epochs", epochs, "--out", out]
    sizes, memory = [], []
    with trial("a training of very many epochs", epochs):
        process = start(run_small, *options, log=log)
        while process.is_alive():
            process.join(0.2)
            for line in read_status(process.pid):
                if line.startswith("VmRSS") and (out / "ffn.resume.pt").exists():
                    memory.append(int(line.split()[1]))
                    sizes.append((out / "ffn.resume.pt").stat().st_size)
            if (out / "ffn.pt").exists():
                break  # trained: the pictures take memory of their own
        process.join()
        assert process.exitcode == 0
        if long:
            # After the first tenth, in which all that is needed is set up.
            settled = memory[len(memory) // 10 :]
            assert max(settled) < 1.05 * min(settled)
        assert max(sizes) < 1.05 * min(sizes)
        rows = re.findall(rf"^ *\d+/{epochs} ", log.read_text(), re.MULTILINE)
        assert len(rows) == min(epochs, 250)


def read_status(process):
    try:
        return Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return []
