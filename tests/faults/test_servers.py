import gzip
import hashlib
import resource
import socket
import threading
import time

import pytest
from processes import CLOSED_ADDRESS

import data
from data import NoSource
from files import WorldFault

TIMEOUT = 0.3  # seconds
TRAIN_IMAGES = "train-images-idx3-ubyte.gz"


@pytest.fixture
def raw_server():
    """raw_server(talk): a server that gives each connection to talk(connection) in a thread."""
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
                    pass  # the client had enough

        threading.Thread(target=accept, daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}/"

    yield start
    for server in listening:
        server.close()


def drip(connection, content):
    for byte in content:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


def flood(connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(20_000):
        connection.sendall(bytes(65536))


def reset(connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + bytes(500))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")


def answer(head, body=b""):
    return lambda connection: connection.sendall(head.replace("\n", "\r\n").encode() + body)


BOMB = gzip.compress(bytes(50_000_000))
LIES = {
    "404": answer("HTTP/1.1 404 Not Found\nContent-Length: 0\n\n"),
    "503": answer("HTTP/1.1 503 Service Unavailable\nContent-Length: 0\n\n"),
    "no HTTP at all": answer("220 ftp ready\n"),
    "empty answer": lambda connection: None,
    "reset in the middle": reset,
    "accepts and says nothing": lambda connection: time.sleep(30),
    "drips its head": lambda c: drip(c, b"HTTP/1.1 200 OK\r\nX: " + b"x" * 10_000),
    "drips its body": lambda c: drip(c, b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 10_000),
    "too short": answer("HTTP/1.1 200 OK\nContent-Length: 100000\n\n", bytes(99)),
    "length that is no number": answer("HTTP/1.1 200 OK\nContent-Length: many\n\n", bytes(99)),
    "negative length": answer("HTTP/1.1 200 OK\nContent-Length: -5\n\n", bytes(99)),
    "redirect to a file": answer("HTTP/1.1 302 Found\nLocation: file:///etc/passwd\n\n"),
    "redirect to itself": answer("HTTP/1.1 302 Found\nLocation: /again\n\n"),
    "gzip bomb": answer(f"HTTP/1.1 200 OK\nContent-Length: {len(BOMB)}\n\n", BOMB),
    "gzip bomb, packed once more": answer(
        "HTTP/1.1 200 OK\nContent-Encoding: gzip\n\n", gzip.compress(BOMB)
    ),
    "a page": answer("HTTP/1.1 200 OK\nContent-Type: text/html\n\n<h1>Log in</h1>"),
    "no end": flood,
}


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("lie", LIES)
def test_liar_is_left_for_the_next_source(
    tmp_path, small_files, serve, raw_server, monkeypatch, trial, lie
):
    good = serve(lambda name, _: small_files.get(name.removesuffix(".gz")))
    monkeypatch.setattr(data.FashionMNIST, "mirrors", [good])
    with trial("lying servers, another source"):
        (images, _), _ = data.load_fashion_mnist(tmp_path, raw_server(LIES[lie]), TIMEOUT)
        assert len(images) == 240 and len(list(tmp_path.rglob("*.gz"))) == 4


@pytest.mark.parametrize("lie", LIES)
def test_liar_alone_is_an_error_and_leaves_nothing(tmp_path, small_files, raw_server, trial, lie):
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with trial("lying servers, no other source"):
        with pytest.raises(NoSource) as error:
            data.load_fashion_mnist(tmp_path, raw_server(LIES[lie]), TIMEOUT)
        assert "--mirror" in str(error.value) and TRAIN_IMAGES in str(error.value)
        assert size(tmp_path) == 0 and not list(tmp_path.rglob(".*"))
        # In kilobytes; the bomb unpacked would be 50,000 of them, the flood a million.
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 45_000


def test_flood_is_cut_off_before_it_fills_the_disk(tmp_path, small_files, raw_server, monkeypatch):
    monkeypatch.setattr(data, "MAX_ARCHIVE_BYTES", 1_000_000)
    largest = 0

    def watch(path, md5):
        nonlocal largest
        largest = max(largest, size(tmp_path))
        return False

    monkeypatch.setattr(data, "_is_intact", watch)
    with pytest.raises(NoSource, match="more than 1,000,000 bytes"):
        data.load_fashion_mnist(tmp_path, raw_server(flood), 5)
    assert largest < 2_000_000


def test_refused_connection_is_named(tmp_path, small_files, trial):
    with trial("lying servers, no other source"), pytest.raises(NoSource, match="refused"):
        data.load_fashion_mnist(tmp_path, CLOSED_ADDRESS, TIMEOUT)


@pytest.mark.parametrize("change", ["same length, other content", "plain MNIST", "swapped"])
def test_wrong_archives_are_never_read(tmp_path, small_files, serve, monkeypatch, trial, change):
    def lie(name, _):
        content = small_files[name.removesuffix(".gz")]
        if change == "swapped":
            return small_files[name.removesuffix(".gz").replace("t10k", "train")]
        return bytes([content[0] ^ 1]) + content[1:]

    if change == "plain MNIST":
        wrong = small_files["train-images-idx3-ubyte"]
        wrong = bytes([wrong[0] ^ 1]) + wrong[1:]
        monkeypatch.setattr(data, "MNIST_MD5", {hashlib.md5(wrong).hexdigest()})
    wanted = "plain MNIST" if change == "plain MNIST" else "not the file it should be"
    with trial("lying servers, no other source"):
        with pytest.raises(NoSource, match=wanted):
            data.load_fashion_mnist(tmp_path, serve(lie), TIMEOUT)
        assert not list(tmp_path.rglob("t10k-images-idx3-ubyte*"))


# Damage on the disk


def damage(path, how, other):
    content = path.read_bytes()
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "link to nothing":
        path.symlink_to(path.with_name("nothing"))
    elif how == "link to itself":
        path.symlink_to(path)
    elif how != "gone":
        path.write_bytes(
            {
                "truncated": content[: len(content) // 2],
                "empty": b"",
                "one bit": content[:9] + bytes([content[9] ^ 4]) + content[10:],
                "longer": content + b"x",
                "swapped": other,
            }[how]
        )


HOW = [
    "truncated",
    "empty",
    "one bit",
    "longer",
    "swapped",
    "gone",
    "folder",
    "link to nothing",
    "link to itself",
]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", data.EXTRACTED_MD5)
@pytest.mark.parametrize("archive", [False, True])
def test_damage_is_healed_or_named(small_folder, small_files, trial, name, how, archive):
    expected = data.load_fashion_mnist(small_folder)
    raw = small_folder / "FashionMNIST" / "raw"
    other = (raw / next(each for each in data.EXTRACTED_MD5 if each != name)).read_bytes()
    damage(raw / (f"{name}.gz" if archive else name), how, other)
    if archive:
        (raw / name).unlink()
    with trial("damaged data files"):
        try:
            again = data.load_fashion_mnist(small_folder, timeout=TIMEOUT)
        except WorldFault as fault:
            assert name in str(fault) and (archive or how == "folder")
            return
        assert all(
            one.equal(two)
            for part, part_again in zip(expected, again, strict=True)
            for one, two in zip(part, part_again, strict=True)
        )
