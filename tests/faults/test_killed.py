"""Signals at any moment, and several processes at once: nothing is lost or half-written."""

import gzip
import json
import os
import random
import shutil
import signal
import time

import pytest
import torch
from PIL import Image
from processes import (
    ended,
    finish,
    kill_after,
    kill_itself,
    load_real,
    load_small,
    on_write,
    run_small,
    start,
    wait_for_end,
    wait_until,
)
from torchvision.datasets import FashionMNIST

from fashion import download
from fashion.checkpoint import load_state, load_tensors
from fashion.files import LOCK_NAME


def same(one, other):
    """Return whether two nested structures of tensors are equal bit by bit."""
    if isinstance(one, torch.Tensor):
        return one.equal(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def read_file(path):
    """Return the content of a result file without measured times; fail if it is half-written."""
    if path.suffix == ".pt":
        state = load_state(path)
        del state["epoch_seconds"]
        return state
    if path.suffix == ".safetensors":
        return load_tensors(path)
    if path.suffix == ".png":
        Image.open(path).verify()
        return None
    if path.suffix == ".html":  # with training times
        assert path.read_text().endswith("</html>\n")
        return None
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        if "models" in content:  # metrics.json and comparison.json
            return {name: model["test_accuracy"] for name, model in content["models"].items()}
        return content["history"], content["test_accuracy"]
    return path.read_bytes()


def read_result(out):
    """Return the content of all files under their final names."""
    paths = {path.relative_to(out): path for path in out.rglob("*") if path.is_file()}
    return {str(name): read_file(path) for name, path in paths.items() if ".part" not in str(name)}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """The result of an undisturbed run, and the seconds that it took."""
    out = tmp_path_factory.mktemp("whole")
    assert finish(bool) == 0  # starts the server of processes, which takes seconds
    begin = time.monotonic()
    assert finish(run_small, "--out", out) == 0
    return read_result(out), time.monotonic() - begin


def assert_resumes(out, expected, log, *options):
    """Check that a killed run ends like an undisturbed one after --resume."""
    assert finish(run_small, "--out", out, *options, "--resume", log=log) == 0, log.read_text()
    result = read_result(out)
    assert result.keys() == expected.keys()
    assert all(same(result[name], expected[name]) for name in expected)
    assert not list(out.rglob(".*.part"))


def test_run_killed_at_any_moment_resumes_to_the_same_result(tmp_path, whole_run, long, trial):
    expected, duration = whole_run
    moments, kills, wanted = random.Random(0), 0, 100 if long else 3
    while kills < wanted:
        out = tmp_path / "out"
        while kills < wanted:
            process = start(run_small, "--out", out, "--resume")
            if not kill_after(process, moments.uniform(0, duration)):
                break  # it had finished
            kills += 1
            with trial("kill -9 while training and evaluating"):
                read_result(out)
        assert_resumes(out, expected, tmp_path / "log")
        shutil.rmtree(out)


def test_run_killed_while_writing_resumes_to_the_same_result(tmp_path, whole_run, trial):
    out = tmp_path / "out"
    for name, earlier in (
        ("ffn.resume.pt", 0),
        ("ffn.resume.pt", 1),
        ("cnn.resume.pt", 2),
        ("ffn.safetensors", 0),
        ("metrics.json", 0),
        ("*.png", 3),
    ):
        arguments = on_write, kill_itself, name, earlier, run_small, "--out", out, "--resume"
        assert finish(*arguments) == -signal.SIGKILL
        with trial("kill -9 while writing"):
            assert len(list(out.rglob(f".{name}.*.part"))) == 1
            read_result(out)
    assert_resumes(out, whole_run[0], tmp_path / "log")


def test_series_killed_while_writing_resumes_to_the_same_result(tmp_path, trial):
    whole, out = tmp_path / "whole", tmp_path / "out"
    options = ["--runs", "2", "--models", "ffn"]
    assert finish(run_small, "--out", whole, *options) == 0
    for name in ("ffn-seed0.safetensors", "ffn-seed1.json", "comparison.json"):
        arguments = on_write, kill_itself, name, 0, run_small, "--out", out, *options, "--resume"
        assert finish(*arguments) == -signal.SIGKILL
        with trial("kill -9 while writing"):
            read_result(out)
    assert_resumes(out, read_result(whole), tmp_path / "log", *options)


# The data


@pytest.fixture
def small_load(small_files):
    """The first arguments of load_small, and the eight files that it writes."""
    contents = {f"{name}.gz": content for name, content in small_files.items()}
    contents |= {name: gzip.decompress(content) for name, content in small_files.items()}
    md5s = {name: download.EXTRACTED_MD5[name] for name in small_files}
    return (FashionMNIST.resources, md5s), contents


def assert_whole(folder, contents):
    """Check that the data files that exist are complete."""
    for name, content in contents.items():
        path = folder / "FashionMNIST" / "raw" / name
        assert not path.exists() or path.read_bytes() == content


def assert_tidy(folder, contents):
    """Check that all data files are complete and that there is nothing else but the lock."""
    assert_whole(folder, contents)
    files = {path.name for path in folder.rglob("*") if path.is_file()}
    assert files == {download.LOCK_NAME, *contents}


def test_download_killed_at_any_moment_is_completed(tmp_path, small_load, serve, long, trial):
    arguments, contents = small_load

    def answer_slowly(name, handler):
        content = contents[name]
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        size = 1 + len(content) // 10
        for begin in range(0, len(content), size):
            handler.wfile.write(content[begin : begin + size])
            time.sleep(0.005)
        return b""

    address, log = serve(answer_slowly), tmp_path / "log"
    moments, kills, number = random.Random(1), 0, 0
    while kills < (100 if long else 4):
        folder = tmp_path / f"data{number}"
        number += 1
        process = start(load_small, *arguments, folder, address)
        if not kill_after(process, moments.uniform(0.02, 0.3)):
            continue
        kills += 1
        with trial("kill -9 while downloading"):
            assert_whole(folder, contents)
            assert finish(load_small, *arguments, folder, address, log=log) == 0, log.read_text()
            assert_tidy(folder, contents)


def test_load_killed_while_writing_is_completed(tmp_path, small_load, serve, trial):
    arguments, contents = small_load
    address, folder = serve(lambda name, _: contents[name]), tmp_path / "data"
    for name in contents:
        status = finish(on_write, kill_itself, name, 0, load_small, *arguments, folder, address)
        assert status == -signal.SIGKILL
        with trial("kill -9 while writing"):
            assert len(list(folder.rglob(f".{name}.*.part"))) == 1
            assert_whole(folder, contents)
    assert finish(load_small, *arguments, folder, address) == 0
    assert_tidy(folder, contents)


def test_killed_extraction_of_the_real_archives_is_completed(real_archives, long, trial):
    if not long:
        pytest.skip("takes minutes; only in the long form")
    raw = real_archives / "FashionMNIST" / "raw"
    begin = time.monotonic()
    assert finish(load_real, real_archives) == 0
    duration = time.monotonic() - begin
    contents = {path.name: path.read_bytes() for path in raw.iterdir()}
    moments, kills = random.Random(2), 0
    while kills < 20:
        for name in download.EXTRACTED_MD5:
            (raw / name).unlink(missing_ok=True)
        if not kill_after(start(load_real, real_archives), moments.uniform(0, duration)):
            continue
        kills += 1
        with trial("kill -9 while extracting Fashion-MNIST"):
            assert_whole(real_archives, contents)
            assert finish(load_real, real_archives) == 0
            assert_tidy(real_archives, contents)


# Ctrl-C and SIGTERM


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_a_training_with_the_command_to_continue(tmp_path, trial, number, status):
    out, log = tmp_path / "out", tmp_path / "log"
    with (
        trial("Ctrl-C, SIGTERM"),
        ended(start(run_small, "--out", out, "--epochs", "100000", log=log)) as process,
    ):
        wait_until((out / "ffn.resume.pt").exists)
        os.kill(process.pid, number)
        assert wait_for_end(process) == status
        printed = log.read_text()
        assert (
            "saved up to epoch" in printed and "--resume" in printed and "Traceback" not in printed
        )
        assert {path.name for path in out.iterdir()} == {LOCK_NAME, "ffn.resume.pt"}


def test_signal_at_any_moment_ends_without_traceback(tmp_path, whole_run, long, trial):
    moments, signals, log = random.Random(3), 0, tmp_path / "log"
    while signals < (100 if long else 4):
        out = tmp_path / "out"
        with ended(start(run_small, "--out", out, log=log)) as process:
            wait_until(out.exists)
            process.join(moments.uniform(0, whole_run[1]))
            number, status = moments.choice([(signal.SIGINT, 130), (signal.SIGTERM, 143)])
            if process.is_alive():
                os.kill(process.pid, number)
            if wait_for_end(process) not in (0, -number):  # the script had not finished
                signals += 1
                with trial("Ctrl-C, SIGTERM"):
                    assert process.exitcode == status
                    assert "interrupted" in log.read_text()
                    assert "Traceback" not in log.read_text()
                    assert not list(out.glob(".*.part"))
                    read_result(out)
        shutil.rmtree(out)
        log.unlink()


# Several processes at once


def test_second_run_in_the_same_folder_is_rejected(tmp_path, trial):
    out, log = tmp_path / "out", tmp_path / "log"
    with (
        trial("several processes at once"),
        ended(start(run_small, "--out", out, "--epochs", "100000")) as first,
    ):
        wait_until((out / "ffn.resume.pt").exists)
        assert finish(run_small, "--out", out, log=log) == 2
        assert f"{out} is in use by another process" in log.read_text()
        assert first.is_alive()


def test_processes_that_prepare_the_data_at_once_wait_for_each_other(
    small_load, small_folder, long, trial
):
    arguments, contents = small_load
    for _ in range(20 if long else 2):
        for name in download.EXTRACTED_MD5:
            (small_folder / "FashionMNIST" / "raw" / name).unlink(missing_ok=True)
        with trial("several processes at once"):
            processes = [start(load_small, *arguments, small_folder, None) for _ in range(3)]
            assert [wait_for_end(process) for process in processes] == [0, 0, 0]
            assert_tidy(small_folder, contents)
