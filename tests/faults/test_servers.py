"""Servers that lie, stall or flood, and damaged files on disk: replaced from a good source, or
named in an error. Nothing wrong is read as data."""

import gzip
import hashlib
import socket
import threading
import time
import tracemalloc
from itertools import cycle

import pytest
from torchvision.datasets import FashionMNIST

from fashion import download
from fashion.download import NoSourceError, load_fashion_mnist
from fashion.files import RunError

SHORT = 0.3  # seconds, for servers that let the time-out pass
TRAIN_IMAGES = "train-images-idx3-ubyte.gz"


@pytest.fixture
def raw_server():
    """raw_server(talk): start a server that passes each connection to talk(connection)."""
    listening = []

    def start(talk):
        server = socket.create_server(("127.0.0.1", 0))
        listening.append(server)

        def accept():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=serve_one, args=(connection,), daemon=True).start()

        def serve_one(connection):
            with connection:
                try:
                    connection.recv(65536)
                    talk(connection)
                except OSError:
                    pass  # the client closed the connection

        threading.Thread(target=accept, daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}/"

    yield start
    for server in listening:
        server.close()


def drip(connection, content, head=b""):
    connection.sendall(head)
    for byte in content:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


def reset(connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + bytes(500))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")


def answer(head, body=b""):
    return lambda connection: connection.sendall(head.replace("\n", "\r\n").encode() + body)


BOMB = gzip.compress(bytes(50_000_000))
WRONG = "not the expected file"
# What each server does, and what the error says about it.
LIES = {
    "404": (answer("HTTP/1.1 404 Not Found\nContent-Length: 0\n\n"), "404"),
    "503": (answer("HTTP/1.1 503 Service Unavailable\nContent-Length: 0\n\n"), "503"),
    "no HTTP": (answer("220 ftp ready\n"), "220 ftp ready"),
    "empty answer": (lambda connection: None, "without response|reset by peer"),
    "reset": (reset, "reset by peer"),
    "too short": (answer("HTTP/1.1 200 OK\nContent-Length: 100000\n\n", bytes(99)), WRONG),
    "length not a number": (answer("HTTP/1.1 200 OK\nContent-Length: many\n\n", bytes(99)), WRONG),
    "negative length": (answer("HTTP/1.1 200 OK\nContent-Length: -5\n\n", bytes(99)), WRONG),
    "redirect to a file": (
        answer("HTTP/1.1 302 Found\nLocation: file:///etc/passwd\n\n"),
        "not allowed",
    ),
    "redirect to itself": (answer("HTTP/1.1 302 Found\nLocation: /again\n\n"), "Found"),
    "gzip bomb": (answer(f"HTTP/1.1 200 OK\nContent-Length: {len(BOMB)}\n\n", BOMB), WRONG),
    "gzip bomb, compressed twice": (
        answer("HTTP/1.1 200 OK\nContent-Encoding: gzip\n\n", gzip.compress(BOMB)),
        WRONG,
    ),
    "HTML page": (answer("HTTP/1.1 200 OK\nContent-Type: text/html\n\n<h1>Log in</h1>"), WRONG),
}
STALLS = {
    "silence": (lambda connection: time.sleep(30), "timed out|no answer within"),
    "dripping head": (
        lambda connection: drip(connection, b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100),
        "no answer within",
    ),
    "dripping body": (
        lambda connection: drip(connection, b"x" * 100, b"HTTP/1.1 200 OK\r\n\r\n"),
        "only .* bytes in",
    ),
}


@pytest.fixture
def traced_memory():
    """Trace the memory that Python allocates in this test."""
    tracemalloc.start()
    yield
    tracemalloc.stop()


def files(folder):
    return [
        path for path in folder.rglob("*") if path.is_file() and path.name != download.LOCK_NAME
    ]


@pytest.mark.usefixtures("traced_memory")
@pytest.mark.parametrize("lie", [*LIES, *STALLS])
def test_bad_server_is_reported_and_leaves_no_file(tmp_path, small_files, raw_server, trial, lie):
    talk, reason = (LIES | STALLS)[lie]
    address = raw_server(talk)
    with trial("servers with wrong files, no other source"):
        with pytest.raises(NoSourceError, match=f"{address}: .*({reason})"):
            load_fashion_mnist(tmp_path, address, SHORT if lie in STALLS else 10)
        assert not files(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000  # the bombs have 50 million


def test_endless_answer_is_cut_off(tmp_path, small_files, raw_server, monkeypatch, trial):
    monkeypatch.setattr(download, "MAX_ARCHIVE_BYTES", 1_000_000)
    sent = []

    def flood(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while len(sent) < 2_000:
            connection.sendall(bytes(65536))
            sent.append(65536)

    with trial("servers with wrong files, no other source"):
        with pytest.raises(NoSourceError, match="more than 1,000,000 bytes"):
            load_fashion_mnist(tmp_path, raw_server(flood), 10)
        assert not files(tmp_path)
        assert sum(sent) < 100_000_000  # at most what the buffers of the sockets hold


@pytest.mark.parametrize("lie", ["404", "reset", "HTML page", "dripping head"])
def test_next_address_is_used_after_a_bad_server(
    tmp_path, small_files, serve, raw_server, monkeypatch, trial, lie
):
    good = serve(lambda name, _: small_files[name.removesuffix(".gz")])
    monkeypatch.setattr(FashionMNIST, "mirrors", [good])
    # The time-out applies to the good server as well, which may be slow on a busy machine.
    timeout = 2 if lie in STALLS else 10
    with trial("servers with wrong files, another source"):
        (images, _), _ = load_fashion_mnist(tmp_path, raw_server((LIES | STALLS)[lie][0]), timeout)
        assert len(images) == 240 and len(files(tmp_path)) == 8


@pytest.mark.parametrize("change", ["one bit", "plain MNIST", "swapped"])
def test_wrong_archive_is_never_kept(tmp_path, small_files, serve, monkeypatch, trial, change):
    def lie(name, _):
        content = small_files[name.removesuffix(".gz")]
        if change == "swapped":
            return small_files[name.removesuffix(".gz").replace("t10k", "train")]
        return bytes([content[0] ^ 1]) + content[1:]

    if change == "plain MNIST":
        wrong = hashlib.md5(lie(TRAIN_IMAGES, None)).hexdigest()
        monkeypatch.setattr(download, "MNIST_MD5", {wrong})
    with trial("servers with wrong files, no other source"):
        reason = change if change == "plain MNIST" else WRONG
        with pytest.raises(NoSourceError, match=reason):
            load_fashion_mnist(tmp_path, serve(lie))
        intact = {TRAIN_IMAGES, "train-labels-idx1-ubyte.gz"} if change == "swapped" else set()
        assert {path.name for path in files(tmp_path)} <= intact


# Damage on disk

DAMAGE = {
    "truncated": lambda path, content: path.write_bytes(content[: len(content) // 2]),
    "empty": lambda path, content: path.write_bytes(b""),
    "one bit": lambda path, content: path.write_bytes(content[:-1] + bytes([content[-1] ^ 4])),
    "longer": lambda path, content: path.write_bytes(content + b"x"),
    "swapped": lambda path, content: path.write_bytes(
        next(other for other in path.parent.glob("t10k*") if other.name != path.name).read_bytes()
    ),
    "missing": lambda path, content: None,
    "folder": lambda path, content: path.mkdir(),
    "link to nothing": lambda path, content: path.symlink_to(path.with_name("nothing")),
    "link to itself": lambda path, content: path.symlink_to(path),
}
CASES = list(zip(DAMAGE, cycle(download.EXTRACTED_MD5)))


def damage(path, kind):
    content = path.read_bytes()
    path.unlink()
    DAMAGE[kind](path, content)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_damaged_file_is_extracted_again(small_folder, trial, kind, name):
    load_fashion_mnist(small_folder)
    path = download.raw_folder(small_folder) / name
    intact = path.read_bytes()
    damage(path, kind)
    with trial("damaged data files"):
        if kind == "folder":
            with pytest.raises(RunError, match=f"{name}: Is a directory"):
                load_fashion_mnist(small_folder)
        else:
            load_fashion_mnist(small_folder)
            assert path.read_bytes() == intact and not path.is_symlink()


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_damaged_archive_without_its_file_is_reported(small_folder, trial, kind, name):
    load_fashion_mnist(small_folder)
    raw = download.raw_folder(small_folder)
    (raw / name).unlink()
    damage(raw / f"{name}.gz", kind)
    with trial("damaged data files"):
        with pytest.raises(NoSourceError, match=rf"\({name} missing or damaged\)"):
            load_fashion_mnist(small_folder)
        assert not (raw / name).exists()
