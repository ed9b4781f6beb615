"""Find or download the four files of Fashion-MNIST. Their content decides, not their names."""

import gzip
import hashlib
import io
import shutil
import socket
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import nullcontext, redirect_stderr
from pathlib import Path

from fashion.script import FAILURE, UserError, on_terminal, quiet

# MD5 of each file, not of its archive, which another gzip compresses differently.
FILES = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
# Tried after torchvision's address: the dataset's own repository.
REPOSITORY = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
TIMEOUT = 20  # seconds without data


class UnavailableError(UserError):
    """No file of Fashion-MNIST is on disk, and none can be downloaded."""


def load_files(folder: Path) -> list[bytes]:
    """Return the four files, in the order of FILES, from the folder or else from the network."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--data-dir {folder} is a file, not a folder")
    found, others = find(folder)
    if len(found) < len(FILES):
        if others:
            text = f"{others[0]} is damaged or not of Fashion-MNIST; move or remove it"
            raise UserError(f"{text}, or choose another --data-dir")
        try:
            download(folder)
        except (OSError, RuntimeError) as error:
            missing = ", ".join(f"{name}.gz" for name in FILES if name not in found)
            reason = str(error).split("got:")[-1].strip(" <>\n") or type(error).__name__
            kind = UserError if found else UnavailableError
            text = "A part of Fashion-MNIST" if found else "Fashion-MNIST"
            text += f" is not in {folder} and cannot be downloaded ({reason})\n"
            text += f"Put {missing} into {folder / 'FashionMNIST' / 'raw'}"
            raise kind(text, FAILURE) from error
        found, _ = find(folder)
    return [found[name] for name in FILES]


def find(folder: Path) -> tuple[dict[str, bytes], list[Path]]:
    """Return the files of Fashion-MNIST in a folder by name, and the paths of damaged or others."""
    names = {md5: name for name, md5 in FILES.items()}
    found: dict[str, bytes] = {}
    others: list[Path] = []
    for path in candidates(folder):
        content = read(path)
        if name := names.get(hashlib.md5(content, usedforsecurity=False).hexdigest()):
            found[name] = content
        else:
            others.append(path)
        if len(found) == len(FILES):  # a damaged archive does not matter beside its content
            break
    return found, others


def candidates(folder: Path) -> Iterator[Path]:
    """Yield the existing paths at which the four files may lie, extracted ones first."""
    for place in (folder / "FashionMNIST" / "raw", folder / "raw", folder):
        for ending in ("", ".gz"):
            for name in FILES:
                for spelling in (name, name.replace("-idx", ".idx")):
                    path = place / f"{spelling}{ending}"
                    if path.is_file():
                        yield path


def read(path: Path) -> bytes:
    """Return the content of a file, decompressed if it is a gzip archive, or nothing if damaged."""
    content = path.read_bytes()
    try:
        return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    except (gzip.BadGzipFile, EOFError, zlib.error):
        return b""


def download(folder: Path) -> None:
    """Download the dataset with torchvision into FashionMNIST/raw, replacing no file there."""
    from torchvision.datasets import FashionMNIST  # takes a second, and is rarely needed

    raw = folder / "FashionMNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    print(f"Downloading Fashion-MNIST to {raw} (30 MB)", flush=True)
    socket.setdefaulttimeout(TIMEOUT)
    # A progress bar would fill a log.
    progress = nullcontext() if on_terminal() else redirect_stderr(io.StringIO())
    # A download that is interrupted leaves no part of a file among the others.
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as temporary, quiet(), progress:
        source: type[FashionMNIST] = type("FashionMNIST", (FashionMNIST,), {})
        for mirror in [*FashionMNIST.mirrors, REPOSITORY]:
            source.mirrors = [mirror]
            try:
                source(temporary, download=True)
                break
            except (OSError, RuntimeError) as error:
                failure = error
        else:
            raise failure
        raw.mkdir(parents=True, exist_ok=True)
        for file in (Path(temporary) / "FashionMNIST" / "raw").iterdir():
            if not (raw / file.name).exists():
                shutil.move(file, raw / file.name)
