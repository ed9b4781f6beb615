"""Files and folders that nothing spoils, and the two errors that end a script in words."""

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has none: two runs in one folder go unnoticed there
    fcntl = None

LOCK = ".lock"  # holds the number of the process that a folder is kept for
LOCK_POLL_SECONDS = 0.2


class UserMistake(Exception):
    """Something was asked for that cannot be: says what, and what to do; exit status 2."""

    exit_status = 2


class WorldFault(Exception):
    """Disk, network, data or numbers failed: says what, and what to do; exit status 1."""

    exit_status = 1


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: a reader sees the old content or the new, never a part.

    Raises:
        WorldFault: when it cannot be written; what stood there before still stands.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise WorldFault(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def prepare_folder(folder: Path) -> None:
    """Make the folder that results go to and try it out, before hours are spent on them.

    Raises:
        WorldFault: when it cannot be made or nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise WorldFault(
            f"cannot write to the output folder {folder}: {error.strerror or error}; "
            "name another one with --out"
        ) from error


@contextlib.contextmanager
def keep_folder(folder: Path, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Keep a folder for this process alone, and clear away what a killed one left half-written.

    The lock is the system's and ends with the process, however that ends; the file only says whose
    it is. Where a system or a file system has no such locks, nothing is locked.

    Args:
        folder: an existing one.
        say: told, in one line, that another process has the folder, whose end is then waited for;
            with None this process is refused.

    Raises:
        UserMistake: when another process has the folder and nobody wants to wait.
        WorldFault: when the lock cannot be written.
    """
    try:
        descriptor = _lock(folder, say)
        if descriptor is not None:
            _clear_parts(folder)
    except OSError as error:
        raise WorldFault(f"cannot write to {folder}: {error.strerror or error}") from error
    try:
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):
                (folder / LOCK).unlink()
            os.close(descriptor)


def _lock(folder: Path, say: Callable[[str], None] | None) -> int | None:
    """Return the open file that locks a folder, or None where there are no locks."""
    path = folder / LOCK
    told = False
    while fcntl:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_open_at(descriptor, path):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
                return descriptor
            os.close(descriptor)
        except BlockingIOError:
            owner = os.read(descriptor, 20).decode(errors="replace")
            os.close(descriptor)
            busy = f"{folder} is in use by process {owner or '(just starting)'}"
            if say is None:
                raise UserMistake(f"{busy}; wait for its end, or name another folder") from None
            if not told:
                say(f"{busy}: waiting for its end")
            told = True
            time.sleep(LOCK_POLL_SECONDS)
        except OSError:
            os.close(descriptor)
            return None
    return None


def _is_open_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one of that name: removed in between, it locks nothing."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _clear_parts(folder: Path) -> None:
    """Remove the parts that killed processes left of files in a folder and in those below it."""
    for part in folder.rglob(".*.part"):
        owner = re.fullmatch(r"\..+\.(\d+)\.part", part.name)
        if owner and not _is_running(int(owner[1])):
            part.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    """Whether there is a process of that number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it is there, and another user's
    return True
