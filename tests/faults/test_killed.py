import gzip
import json
import os
import random
import shutil
import signal
import time

import pytest
import torch
from processes import (
    ended,
    finish,
    kill_after,
    load_real,
    load_small,
    run_small,
    start,
    wait_for_end,
    wait_until,
)

import data


def same(one, other):
    """Whether two nested structures of tensors are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return one.equal(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def read_result(out):
    """All that a run leaves, without the times that clocks say."""
    result = {}
    for path in sorted(out.rglob("*")):
        key = str(path.relative_to(out))
        if path.suffix == ".pt":
            result[key] = torch.load(path, weights_only=True)
            result[key].pop("epoch_seconds", None)
        elif path.name == "metrics.json":
            metrics = json.loads(path.read_text())
            result[key] = {
                name: {"history": model["history"], "test": model["test_accuracy"]}
                for name, model in metrics["models"].items()
            }
        elif path.name == "comparison.png":
            result[key] = None  # shows seconds
        else:
            result[key] = path.read_bytes()
    return result


def test_killed_run_ends_like_one_never_disturbed(tmp_path, long, trial):
    whole = tmp_path / "whole"
    begin = time.monotonic()
    assert finish(run_small, "--out", whole) == 0
    duration = time.monotonic() - begin
    expected = read_result(whole)

    moments = random.Random(0)
    kills, wanted, series = 0, 100 if long else 1, 0
    while kills < wanted:
        out = tmp_path / f"killed{series}"
        series += 1
        killed = True
        while killed and kills < wanted:
            with trial("kill -9 while training, evaluating, saving"):
                killed = kill_after(
                    start(run_small, "--out", out, "--resume"), moments.uniform(0, duration)
                )
                kills += killed
                for path in out.glob("*.pt"):
                    torch.load(path, weights_only=True)  # none is half-written
        assert finish(run_small, "--out", out, "--resume", log=tmp_path / "log") == 0, (
            tmp_path / "log"
        ).read_text()
        result = read_result(out)
        assert result.keys() == expected.keys()
        for name in expected:
            assert same(result[name], expected[name]), name
        shutil.rmtree(out)


def check_data_folder(folder, contents):
    """Assert that no file under a name that counts is anything but whole."""
    for name, content in contents.items():
        path = folder / "FashionMNIST" / "raw" / name
        assert not path.exists() or path.read_bytes() == content


def assert_tidy(folder, contents):
    """Assert that the data folder is whole and holds nothing else."""
    check_data_folder(folder, contents)
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert there == {f"FashionMNIST/raw/{name}" for name in contents}
    assert not list(folder.rglob(".*"))


def test_killed_download_and_extraction_leave_nothing_half_done(
    tmp_path, small_files, serve, long, trial
):
    def answer_slowly(name, handler):
        content = small_files[name.removesuffix(".gz")]
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        for start_ in range(0, len(content), 1 + len(content) // 10):
            handler.wfile.write(content[start_ : start_ + 1 + len(content) // 10])
            time.sleep(0.005)
        return b""

    contents = {f"{name}.gz": content for name, content in small_files.items()}
    contents |= {name: gzip.decompress(content) for name, content in small_files.items()}
    md5s = {name: data.EXTRACTED_MD5[name] for name in small_files}
    arguments = data.FashionMNIST.resources, md5s
    address = serve(answer_slowly)
    moments = random.Random(1)
    for number in range(100 if long else 5):
        folder = tmp_path / f"data{number}"
        with trial("kill -9 while downloading, extracting"):
            kill_after(start(load_small, *arguments, folder, address), moments.uniform(0.02, 0.45))
            check_data_folder(folder, contents)
            assert finish(load_small, *arguments, folder, address, log=tmp_path / "log") == 0, (
                tmp_path / "log"
            ).read_text()
            assert_tidy(folder, contents)


def test_killed_extraction_of_the_real_archives(real_archives, long, trial):
    raw = real_archives / "FashionMNIST" / "raw"
    begin = time.monotonic()
    assert finish(load_real, real_archives) == 0
    duration = time.monotonic() - begin
    contents = {path.name: path.read_bytes() for path in raw.iterdir()}
    moments = random.Random(2)
    for _ in range(20 if long else 1):
        for name in data.EXTRACTED_MD5:
            (raw / name).unlink()
        with trial("kill -9 while extracting Fashion-MNIST"):
            kill_after(start(load_real, real_archives), moments.uniform(0, duration))
            check_data_folder(real_archives, contents)
            assert finish(load_real, real_archives) == 0
            assert_tidy(real_archives, contents)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_a_training_and_says_how_to_go_on(tmp_path, trial, number, status):
    out, log = tmp_path / "out", tmp_path / "log"
    with (
        trial("SIGINT, SIGTERM while training"),
        ended(start(run_small, "--out", out, "--epochs", "100000", log=log)) as process,
    ):
        wait_until((out / "ffn.resume.pt").exists)
        os.kill(process.pid, number)
        assert wait_for_end(process) == status
        printed = log.read_text()
        assert "are saved in" in printed and "--resume" in printed and "Traceback" not in printed
        assert {path.name for path in out.iterdir()} == {"ffn.resume.pt"}


# Two at once


def test_second_run_in_the_same_folder_is_refused_with_the_first_ones_number(tmp_path, trial):
    out, log = tmp_path / "out", tmp_path / "log"
    with (
        trial("two runs at once in one folder"),
        ended(start(run_small, "--out", out, "--epochs", "100000")) as first,
    ):
        wait_until((out / "ffn.resume.pt").exists)
        assert finish(run_small, "--out", out, log=log) == 2
        assert f"process {first.pid}" in log.read_text()
        assert first.is_alive()


def test_folder_of_a_killed_run_is_free_again(tmp_path, trial):
    out = tmp_path / "out"
    with trial("two runs at once in one folder"):
        with ended(start(run_small, "--out", out, "--epochs", "100000")):
            wait_until((out / "ffn.resume.pt").exists)
        (out / f".cnn.pt.{first_free_number()}.part").write_bytes(b"litter")
        assert finish(run_small, "--out", out) == 0
        assert not list(out.glob(".*"))


def first_free_number():
    """Return the number of a process that has ended."""
    process = start(time.time)
    process.join()
    return process.pid


def test_two_that_extract_at_once_wait_for_each_other(
    tmp_path, small_files, small_folder, long, trial
):
    md5s = {name: data.EXTRACTED_MD5[name] for name in small_files}
    arguments = data.FashionMNIST.resources, md5s, small_folder, None
    raw = small_folder / "FashionMNIST" / "raw"
    for _ in range(20 if long else 2):
        for name in small_files:
            (raw / name).unlink(missing_ok=True)
        with trial("two that prepare the data at once"):
            processes = [start(load_small, *arguments) for _ in range(3)]
            assert [wait_for_end(process) for process in processes] == [0, 0, 0]
            assert len(list(raw.iterdir())) == 8
            assert not list(small_folder.rglob(".*"))
