"""Finding and downloading the four files: content decides, and nothing of a user is overwritten."""

import gzip
import hashlib
import struct
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from fashion import download
from fashion.download import UnavailableError, load_files
from fashion.script import UserError

import numpy as np
import pytest
from torchvision.datasets import FashionMNIST

IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = download.FILES


def idx(array: np.ndarray) -> bytes:
    """Return an array of bytes in the format of MNIST."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def files(monkeypatch) -> dict[str, bytes]:
    """Four small files, which pass for Fashion-MNIST in this test."""
    random, small = np.random.default_rng(0), {}
    for name, count in zip(download.FILES, (240, 240, 40, 40), strict=True):
        shape = (count, 28, 28) if "images" in name else (count,)
        small[name] = idx(random.integers(0, 256 if "images" in name else 10, shape))
    sums = {name: hashlib.md5(content).hexdigest() for name, content in small.items()}
    monkeypatch.setattr(download, "FILES", sums)
    archives = {f"{name}.gz": hashlib.md5(pack(small[name])).hexdigest() for name in small}
    monkeypatch.setattr(FashionMNIST, "resources", list(archives.items()))
    return small


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Let nothing leave this machine: nothing listens at this address."""
    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setattr(download, "REPOSITORY", "http://127.0.0.1:9/")


def pack(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def put(folder: Path, contents: dict[str, bytes]) -> Path:
    """Write files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


PACKAGINGS = {
    "archives": (pack, lambda name: f"{name}.gz"),
    "recompressed": (lambda content: gzip.compress(content, 1), lambda name: f"{name}.gz"),
    "plain content named .gz": (bytes, lambda name: f"{name}.gz"),
    "names with a dot": (bytes, lambda name: name.replace("-idx", ".idx")),
    "archives with a dot": (pack, lambda name: f"{name.replace('-idx', '.idx')}.gz"),
    "swapped": (bytes, {LABELS: TEST_LABELS, TEST_LABELS: LABELS}.get),
}


@pytest.mark.parametrize("packaging", PACKAGINGS)
@pytest.mark.parametrize("place", ["", "raw", "FashionMNIST/raw"])
def test_correct_content_is_found_in_any_packaging_and_place(tmp_path, files, packaging, place):
    convert, change = PACKAGINGS[packaging]
    for name, content in files.items():
        put(tmp_path / place, {change(name) or name: convert(content)})
    before = snapshot(tmp_path)
    assert load_files(tmp_path) == list(files.values())
    assert snapshot(tmp_path) == before


DAMAGES = {
    "cut": lambda content: content[:-50],
    "flipped bit": lambda content: content[:500] + bytes([content[500] ^ 1]) + content[501:],
    "cut archive": lambda content: pack(content)[:-50],
    "damaged archive": lambda content: pack(content)[:99] + bytes(99),
    "another dataset": lambda _: idx(np.ones((100, 28, 28))),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_or_foreign_file_is_an_error_that_names_it_and_stays(tmp_path, files, damage):
    raw = put(tmp_path / "raw", {**files, IMAGES: DAMAGES[damage](files[IMAGES])})
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match="is damaged or not of Fashion-MNIST") as error:
        load_files(tmp_path)
    assert str(raw / IMAGES) in str(error.value)
    put(raw, {f"{IMAGES}.gz": pack(files[IMAGES])})  # a good archive makes up for it
    assert load_files(tmp_path) == list(files.values())
    assert before.items() <= snapshot(tmp_path).items()


def test_incomplete_dataset_is_an_error_that_names_what_is_missing(tmp_path, files):
    put(tmp_path, {name: files[name] for name in (IMAGES, TEST_IMAGES, TEST_LABELS)})
    with pytest.raises(UserError, match=f"Put {LABELS}.gz into") as error:
        load_files(tmp_path)
    assert not isinstance(error.value, UnavailableError) and error.value.status == 1


def test_no_file_and_no_network_says_where_to_put_them(tmp_path):
    with pytest.raises(UnavailableError) as error:
        load_files(tmp_path / "new")
    first, second = str(error.value).splitlines()
    assert first.startswith(f"Fashion-MNIST is not in {tmp_path / 'new'} and cannot be downloaded")
    assert "refused" in first
    assert second.startswith(f"Put {IMAGES}.gz, ")
    assert not snapshot(tmp_path)


@pytest.fixture
def serve():
    """Start servers on this machine that answer with files of a folder."""
    servers = []

    def start(folder: Path, handler=SimpleHTTPRequestHandler) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=folder))
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def archives(files, tmp_path) -> Path:
    """A folder with the four archives, as it is on a server."""
    return put(tmp_path / "server", {f"{name}.gz": pack(files[name]) for name in files})


def test_download_stores_the_archives_for_the_next_time(
    tmp_path, files, archives, serve, monkeypatch
):
    for mirror in (serve(archives), "http://127.0.0.1:9/"):
        monkeypatch.setattr(FashionMNIST, "mirrors", [mirror])
        assert load_files(tmp_path / "data") == list(files.values())
        assert [path.name for path in (tmp_path / "data").iterdir()] == ["FashionMNIST"]


@pytest.mark.parametrize("answer", [None, b"<html>", pack(b"other")], ids=["none", "page", "other"])
def test_second_address_is_tried_if_the_first_fails(
    tmp_path, files, archives, serve, monkeypatch, answer
):
    names = [path.name for path in archives.iterdir()] if answer else []
    first = put(tmp_path / "first", dict.fromkeys(names, answer))
    monkeypatch.setattr(FashionMNIST, "mirrors", [serve(first)])
    monkeypatch.setattr(download, "REPOSITORY", serve(archives))
    assert load_files(tmp_path / "data") == list(files.values())


def test_download_completes_a_dataset_and_overwrites_nothing(
    tmp_path, files, archives, serve, monkeypatch
):
    raw = put(tmp_path / "FashionMNIST" / "raw", {f"{IMAGES}.gz": gzip.compress(files[IMAGES], 1)})
    before = snapshot(tmp_path)
    monkeypatch.setattr(FashionMNIST, "mirrors", [serve(archives)])
    assert load_files(tmp_path) == list(files.values())
    assert before.items() <= snapshot(tmp_path).items()
    assert (raw / f"{LABELS}.gz").exists()


def test_server_that_answers_too_late_is_not_waited_for(tmp_path, archives, serve, monkeypatch):
    over = threading.Event()

    class Late(SimpleHTTPRequestHandler):
        def do_GET(self):
            over.wait(60)
            super().do_GET()

    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    monkeypatch.setattr(FashionMNIST, "mirrors", [serve(archives, Late)])
    with pytest.raises(UnavailableError):
        load_files(tmp_path / "data")
    over.set()
