import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fashion import files
from fashion.files import RunError, UsageError, lock_folder, prepare_folder, write_file, write_json

PROJECT = Path(__file__).parent.parent
# Locks a folder, says so, and holds the lock until its input ends.
HOLDER = """
import sys
from pathlib import Path
from fashion.files import UsageError, lock_folder
try:
    with lock_folder(Path(sys.argv[1])):
        print("locked", flush=True)
        sys.stdin.read()
except UsageError as error:
    print(error)
"""


@pytest.fixture
def start_holder():
    """Return a function that locks a folder in another process: its process and first line."""
    processes = []

    def start(folder):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder)],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in processes:
        process.stdin.close()
        process.wait()
        process.stdout.close()


@pytest.fixture
def target(tmp_path_factory):
    """A file outside the folder of the test, which links in it point to."""
    path = tmp_path_factory.mktemp("elsewhere") / "target"
    path.write_bytes(b"precious")
    return path


# Writing


def test_file_is_replaced(tmp_path):
    path = tmp_path / "file"
    for content in (b"long old content", b"new"):
        write_file(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["file", f".file.{os.getpid()}.part"])
def test_writing_does_not_follow_symbolic_links(tmp_path, target, name):
    (tmp_path / name).symlink_to(target)
    write_file(tmp_path / "file", b"new")
    assert target.read_bytes() == b"precious"
    assert (tmp_path / "file").read_bytes() == b"new" and not (tmp_path / "file").is_symlink()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_link_that_appears_before_the_part_file_is_opened_is_not_followed(
    tmp_path, target, monkeypatch
):
    (tmp_path / f".file.{os.getpid()}.part").symlink_to(target)
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
    with pytest.raises(RunError, match="File exists"):
        write_file(tmp_path / "file", b"new")
    assert target.read_bytes() == b"precious"


def test_file_that_cannot_be_written_is_named_with_the_reason(tmp_path):
    path = tmp_path / "missing" / "file"
    with pytest.raises(RunError) as caught:
        write_file(path, b"new")
    assert str(caught.value) == f"cannot write {path}: No such file or directory"


def test_failed_replacement_removes_the_part_file(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(RunError, match=r"cannot write .*file: Is a directory"):
        write_file(tmp_path / "file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_json_is_written_for_people_and_programs(tmp_path):
    content = {"a": [1, 2.5, None], "b": {"c": "ä"}}
    path = write_json(tmp_path / "file.json", content)
    assert path == tmp_path / "file.json"
    text = path.read_text()
    assert json.loads(text) == content
    assert text.startswith('{\n  "a": [\n') and text.endswith("}\n")
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "other.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == [path]


def test_folder_is_prepared_with_its_parents_and_stays_empty(tmp_path):
    folder = tmp_path / "a" / "b"
    for _ in range(2):
        prepare_folder(folder)
        assert folder.is_dir() and not list(folder.iterdir())


def test_file_in_place_of_a_folder_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot write to .*file: File exists"):
        prepare_folder(tmp_path / "file")


# Locking


def test_second_process_is_refused_until_the_first_one_ends(tmp_path, start_holder):
    first, line = start_holder(tmp_path)
    assert line == "locked"
    refused = f"{tmp_path} is in use by another process"
    assert start_holder(tmp_path)[1] == refused
    with pytest.raises(UsageError) as caught, lock_folder(tmp_path):
        pass
    assert str(caught.value) == refused
    first.communicate()
    with lock_folder(tmp_path):
        assert start_holder(tmp_path)[1] == refused


@pytest.mark.parametrize("error", [ValueError, OSError])
def test_error_inside_is_passed_on_and_releases_the_lock(tmp_path, error):
    with pytest.raises(error, match="my own"), lock_folder(tmp_path):
        raise error("my own")
    with lock_folder(tmp_path):
        pass


def test_waiting_ends_when_the_other_process_does_and_is_logged_once(
    tmp_path, start_holder, monkeypatch
):
    holder, _ = start_holder(tmp_path)
    messages = []

    class Release(logging.Handler):
        """End the other process as soon as this one says that it waits."""

        def emit(self, record):
            messages.append(record.getMessage())
            assert holder.poll() is None
            holder.stdin.close()

    monkeypatch.setattr(files.logger, "handlers", [Release()])
    watchdog = threading.Timer(20, holder.kill)  # without the warning, the wait would not end
    watchdog.start()
    with lock_folder(tmp_path, wait=True):
        watchdog.cancel()
        assert start_holder(tmp_path)[1] == f"{tmp_path} is in use by another process"
    assert messages == [f"{tmp_path} is in use by another process; waiting for it to finish"]
    assert holder.wait() == 0


def test_files_of_killed_processes_are_removed_and_nothing_else(tmp_path, start_holder):
    for name in ("runs", "locked"):
        (tmp_path / name).mkdir()
    (tmp_path / "locked" / ".lock").touch()
    parts = [tmp_path / ".a.png.17.part", tmp_path / "runs" / ".cnn.safetensors.18.part"]
    others = [tmp_path / "a.part", tmp_path / ".hidden", tmp_path / "runs" / "b.json"]
    others.append(tmp_path / "locked" / ".c.png.19.part")  # its owner removes it
    for path in parts + others:
        path.write_bytes(b"content")
    holder, _ = start_holder(tmp_path)
    parts[0].write_bytes(b"of the process that holds the lock")
    with pytest.raises(UsageError), lock_folder(tmp_path):
        pass
    assert parts[0].exists() and not parts[1].exists()
    holder.communicate()
    with lock_folder(tmp_path):
        assert not parts[0].exists()
    assert all(path.read_bytes() == b"content" for path in others)
    assert (tmp_path / ".lock").read_bytes() == b""


@pytest.mark.parametrize("name", [".file.7.part", ".lock"])
def test_locking_does_not_follow_symbolic_links(tmp_path, target, name):
    (tmp_path / name).symlink_to(target)
    if name == ".lock":
        with pytest.raises(RunError, match=f"cannot lock {tmp_path}: "), lock_folder(tmp_path):
            pass
    else:
        with lock_folder(tmp_path):
            assert not (tmp_path / name).is_symlink()
    assert target.read_bytes() == b"precious"


def test_files_are_replaced_together_and_stale_ones_removed(tmp_path):
    for name in ("kept", "old", "stale"):
        (tmp_path / name).write_text("before")
    with files.replace_files(tmp_path, ["old", "stale", "absent"]) as folder:
        (folder / "old").write_text("after")
        (folder / "new").write_text("after")
        assert (tmp_path / "old").read_text() == (tmp_path / "stale").read_text() == "before"
    contents = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert contents == {"kept": "before", "old": "after", "new": "after"}


def test_no_file_is_replaced_after_an_error(tmp_path):
    (tmp_path / "old").write_text("before")
    with (
        pytest.raises(RunError, match=rf"{tmp_path}/new"),
        files.replace_files(tmp_path, ["old"]) as folder,
    ):
        (folder / "old").write_text("after")
        raise RunError(f"cannot write {folder / 'new'}")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_text() == "before"


def test_locks_with_different_names_do_not_exclude_each_other(tmp_path, caplog):
    with files.lock_folder(tmp_path), files.lock_folder(tmp_path, wait=True, name=".other"):
        assert {path.name for path in tmp_path.iterdir()} == {".lock", ".other"}
    assert not caplog.records
