"""Atomic writes, the folder lock, and the two errors that end a script with a message."""

import contextlib
import itertools
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

LOCK_NAME = ".lock"  # stays in the folder, empty; the operating system holds the lock itself


class UsageError(Exception):
    """The user asked for something impossible. The message says what; exit status 2."""

    exit_status = 2


class RunError(Exception):
    """Disk, network, data or numbers failed. The message says what; exit status 1."""

    exit_status = 1


def write_file(path: Path, content: bytes) -> None:
    """Write a file atomically: readers see the old content or the new, never a part.

    Raises:
        RunError: If the file cannot be written. The old content is then still in place.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.unlink(missing_ok=True)
        with part.open("xb") as file:  # "x" does not follow a symbolic link
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def write_json(path: Path, content: dict[str, Any]) -> Path:
    """Write a JSON file like write_file; raise ValueError if a number is not finite."""
    write_file(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
    return path


def prepare_folder(folder: Path) -> None:
    """Create a folder if necessary; raise RunError if no files can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror or error}") from error


@contextlib.contextmanager
def lock_folder(folder: Path, wait: bool = False, name: str = LOCK_NAME) -> Iterator[None]:
    """Lock an existing folder for this process and remove files that killed processes left.

    The operating system releases the lock when the process ends, however it ends.

    Args:
        folder: The folder to lock.
        wait: Whether to wait, with one warning in the log, for a process that holds the lock.
        name: Name of the lock file. Locks with different names do not exclude each other.

    Raises:
        UsageError: If another process holds the lock and wait is False.
        RunError: If the lock file cannot be created.
    """
    lock = FileLock(folder / name)
    busy = f"{folder} is in use by another process"
    try:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if not wait:
                raise UsageError(busy) from None
            logger.warning("%s; waiting for it to finish", busy)
            lock.acquire()
        _remove_parts(folder)
    except OSError as error:
        raise RunError(f"cannot lock {folder}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def _remove_parts(folder: Path) -> None:
    """Remove temporary files from a folder, and from subfolders that have no lock of their own."""
    folders = [each for each in folder.iterdir() if each.is_dir() and not each.is_symlink()]
    folders = [folder, *(each for each in folders if not (each / LOCK_NAME).exists())]
    for part in itertools.chain.from_iterable(each.glob(".*.part") for each in folders):
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def replace_files(folder: Path, stale: Iterable[str]) -> Iterator[Path]:
    """Yield a temporary folder whose files replace those of a folder if no error occurs.

    They are moved once all are written. Each replaces its predecessor in one step.

    Args:
        folder: The folder, which this process has locked.
        stale: Names of files to remove from it unless they are replaced.

    Raises:
        RunError: If a file cannot be written or moved.
    """
    staging = folder / f".new.{os.getpid()}.part"
    try:
        staging.mkdir()
        yield staging
        for name in set(stale) - {file.name for file in staging.iterdir()}:
            (folder / name).unlink(missing_ok=True)
        for file in staging.iterdir():
            os.replace(file, folder / file.name)
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror or error}") from error
    except RunError as error:
        raise RunError(str(error).replace(str(staging), str(folder))) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
