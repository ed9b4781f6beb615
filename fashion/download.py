"""Download, verify and extract the four files of Fashion-MNIST."""

import contextlib
import gzip
import hashlib
import http.client
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor
from torchvision.datasets import MNIST, FashionMNIST
from torchvision.datasets.mnist import read_image_file, read_label_file
from torchvision.datasets.utils import calculate_md5
from tqdm import tqdm

from fashion.files import RunError, lock_folder, prepare_folder, write_file

# MD5 of the extracted files. torchvision knows only those of the archives. Source: the archives of
# https://github.com/zalandoresearch/fashion-mnist, extracted.
EXTRACTED_MD5 = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
# Plain MNIST uses the same file names and is often confused with Fashion-MNIST: its archives (from
# torchvision) and its extracted files (from http://yann.lecun.com/exdb/mnist, extracted).
MNIST_MD5 = {md5 for _, md5 in MNIST.resources} | {
    "6bbc9ace898e44ae57da46a324031adb",
    "a25bea736e30d166cdddb491f175f624",
    "2646ac647ad5339dbf082846283269ea",
    "27ae3e4e09519cfbb04c329615203637",
}
NETWORK_TIMEOUT = 20.0  # seconds
# Limits of a download. The largest archive has 26,421,880 bytes; at this rate it takes nine hours.
MAX_ARCHIVE_BYTES = 30_000_000
MIN_BYTES_PER_SECOND = 800
LOCK_NAME = ".download.lock"  # the folder can be the output folder of a run, with its own lock


class NoSourceError(RunError):
    """No address delivered the files that are missing or damaged."""


def load_fashion_mnist(
    data_dir: Path, mirror: str | None = None, timeout: float = NETWORK_TIMEOUT
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Load the files, verified by MD5, after restoring those that are missing or damaged.

    Args:
        data_dir: Folder in which FashionMNIST/raw holds, or will hold, the files.
        mirror: Address to try before torchvision's.
        timeout: Seconds to wait for the start of an answer and for each part of it.

    Returns:
        ((images, labels), (images, labels)) for training and for testing, uint8 (N, 28, 28) and
        int64 (N,).

    Raises:
        NoSourceError: If files are missing or damaged and no address delivers them.
        RunError: If files are those of plain MNIST, or cannot be written.
    """
    raw = raw_folder(data_dir)
    if _damaged_files(raw):
        for path in _paths(raw):
            if _md5(path) in MNIST_MD5:
                raise RunError(
                    f"{path} is plain MNIST (handwritten digits), not Fashion-MNIST; remove it"
                )
        _restore(raw, mirror, timeout)
    elif any(raw.glob(".*.part")):
        with contextlib.suppress(RunError):  # the files are intact even if this fails
            _restore(raw, mirror, timeout)  # locking the folder removes what killed processes left
    # torchvision's class would prefer the unverified `processed` folder of an old version.
    train, test = (
        (
            read_image_file(f"{raw}/{part}-images-idx3-ubyte"),
            read_label_file(f"{raw}/{part}-labels-idx1-ubyte"),
        )
        for part in ("train", "t10k")
    )
    return train, test


def raw_folder(data_dir: Path) -> Path:
    """Return the folder in which torchvision, too, looks for the files."""
    return data_dir / "FashionMNIST" / "raw"


def has_files(data_dir: Path) -> bool:
    """Return whether any of the files or archives exists, in whatever state."""
    return any(os.path.lexists(path) for path in _paths(raw_folder(data_dir)))


def _paths(raw: Path) -> list[Path]:
    """Return the paths of the extracted files and of their archives."""
    return [raw / f"{name}{end}" for name in EXTRACTED_MD5 for end in ("", ".gz")]


def _damaged_files(raw: Path) -> list[str]:
    """Return the names of the extracted files that are missing or damaged."""
    return [name for name, md5 in EXTRACTED_MD5.items() if _md5(raw / name) != md5]


def _md5(path: Path) -> str | None:
    """Return the MD5 of a file, or None if there is no file or it cannot be read."""
    try:
        return calculate_md5(path) if path.is_file() else None
    except OSError:
        return None


def _restore(raw: Path, mirror: str | None, timeout: float) -> None:
    """Extract the missing and damaged files, after downloading the archives that this takes."""
    prepare_folder(raw)
    with lock_folder(raw.parent, wait=True, name=LOCK_NAME):
        # Another process may have finished the work while we waited.
        damaged = _damaged_files(raw)
        _download_archives(raw, damaged, mirror, timeout)
        for name in damaged:
            write_file(raw / name, gzip.decompress((raw / f"{name}.gz").read_bytes()))


def _download_archives(raw: Path, damaged: list[str], mirror: str | None, timeout: float) -> None:
    """Download the archives that damaged files need, unless intact, from the first good address.

    Archives that arrive before an error stay for the next try.
    """
    archives = {name: md5 for name, md5 in FashionMNIST.resources if Path(name).stem in damaged}
    missing = [name for name, md5 in archives.items() if _md5(raw / name) != md5]
    answers = []
    for address in ([mirror.rstrip("/") + "/"] if mirror else []) + FashionMNIST.mirrors:
        try:
            while missing:
                content = _download(address, missing[0], archives[missing[0]], timeout)
                write_file(raw / missing.pop(0), content)
            return
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            answers.append(f"{address}: {reason[-1]}")
    raise NoSourceError(
        f"Fashion-MNIST is incomplete ({', '.join(damaged)} missing or damaged) and could not be "
        f"downloaded ({'; '.join(answers)}). Put the four archives "
        f"{', '.join(name for name, _ in FashionMNIST.resources)} into {raw}"
    )


def _download(address: str, name: str, md5: str, timeout: float) -> bytes:
    """Download an archive and verify it, with limits on time and size that torchvision lacks.

    Raises:
        OSError, http.client.HTTPException: If the network or the server fails, or is too slow.
        ValueError: If the content is not the archive.
    """
    with _time_limit(timeout):
        response = urllib.request.urlopen(address + name, timeout=timeout)
    total = getattr(response, "length", None)  # only HTTP has one, and a redirect may lead to FTP
    bar = tqdm(total=total, desc=name, unit="B", unit_scale=True, leave=False, disable=None)
    content = bytearray()
    with response, bar:
        start = time.monotonic()
        while chunk := response.read1(1 << 16):
            content += chunk
            bar.update(len(chunk))
            seconds = time.monotonic() - start
            if len(content) > MAX_ARCHIVE_BYTES:
                raise ValueError(f"{name} has more than {MAX_ARCHIVE_BYTES:,} bytes")
            if seconds > timeout and len(content) < MIN_BYTES_PER_SECOND * seconds:
                raise TimeoutError(f"{name}: only {len(content):,} bytes in {seconds:.0f} s")
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        kind = "plain MNIST" if found in MNIST_MD5 else "not the expected file"
        raise ValueError(f"{name} is {kind} (MD5 {found})")
    return bytes(content)


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError after this time, if this is the main thread of a system with alarms.

    The time-out of a socket applies to each read, so a server could send its answer byte by byte.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() != threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError(f"no answer within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
