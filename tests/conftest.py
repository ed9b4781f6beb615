"""Fixtures of all tests: small datasets, and the real one if it is available."""

import gzip
import hashlib
import os
import shutil
import struct
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import FashionMNIST

from fashion import data, download, synthetic
from fashion.checkpoint import RECORDING_NAME, SUFFIX, save_recording
from fashion.runs import save_weights, score
from fashion.training import Trainer
from models import MODELS

# Contains FashionMNIST/raw. Tests on the real data are skipped without it.
REAL_DATA = Path(os.environ.get("FASHION_MNIST_DIR", Path(__file__).parent.parent / "data"))
# Nothing listens there: connections are refused immediately.
CLOSED_ADDRESS = "http://127.0.0.1:9/"


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="run the long form of the fault trials")


@pytest.fixture
def real_archives(tmp_path):
    """A temporary data folder with the four real archives."""
    source = REAL_DATA / "FashionMNIST" / "raw"
    if not all((source / archive).exists() for archive, _ in FashionMNIST.resources):
        pytest.skip(
            f"no archives in {source}; FASHION_MNIST_DIR names the folder above FashionMNIST"
        )
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for archive, _ in FashionMNIST.resources:
        shutil.copyfile(source / archive, raw / archive)
    return tmp_path / "data"


@pytest.fixture(scope="session")
def drawn():
    """The stand-in dataset."""
    return synthetic.draw_dataset(data.SYNTHETIC_SEED)


@pytest.fixture
def quick_drawing(monkeypatch, drawn):
    """Draw the stand-in only once for all tests."""
    monkeypatch.setattr(synthetic, "draw_dataset", lambda seed: drawn)


@pytest.fixture(scope="session")
def tiny_dataset(drawn):
    """The stand-in with 500 images to train on, 100 to validate on and 200 to test on."""
    (images, labels), (test_images, test_labels) = drawn
    train_indices, validation_indices = data.split_indices(labels)
    mean, std = data.pixel_statistics(images[train_indices[:500]])
    return data.Dataset(
        name=data.SYNTHETIC,
        images=images,
        labels=labels,
        train_indices=train_indices[:500],
        validation_indices=validation_indices[:100],
        test_images=test_images[:200],
        test_labels=test_labels[:200],
        mean=mean,
        std=std,
    )


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory, tiny_dataset):
    """A folder with all models, trained for some epochs on the stand-in, and a recording."""
    folder = tmp_path_factory.mktemp("trained")
    for name, network in MODELS.items():
        short = replace(network.recipe, epochs=4, batch_size=50)
        trainer = Trainer(network, tiny_dataset, short, 0, torch.float32, record=name == "cnn")
        while not trainer.finished:
            trainer.train_epoch()
        save_weights(folder / f"{name}{SUFFIX}", score(trainer, name))
        if trainer.frames:
            save_recording(folder / RECORDING_NAME, trainer.frames, trainer.steps_per_epoch)
    return folder


@pytest.fixture
def no_network(monkeypatch):
    """Replace torchvision's own address by one where nothing listens."""
    monkeypatch.setattr(FashionMNIST, "mirrors", [CLOSED_ADDRESS])


@pytest.fixture
def small_files(monkeypatch, no_network):
    """Four small archives by name, accepted as Fashion-MNIST in this test."""
    generator = np.random.default_rng(0)
    archives = {}
    resources = []
    for part, count in (("train", 240), ("t10k", 40)):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            name = f"{part}-{kind}-ubyte"
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            content = header + array.tobytes()
            archives[name] = gzip.compress(content, mtime=0)
            resources.append((f"{name}.gz", hashlib.md5(archives[name]).hexdigest()))
            monkeypatch.setitem(download.EXTRACTED_MD5, name, hashlib.md5(content).hexdigest())
    monkeypatch.setattr(FashionMNIST, "resources", resources)
    return archives


@pytest.fixture
def small_folder(tmp_path, small_files):
    """A data folder with the four small archives."""
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in small_files.items():
        (raw / f"{name}.gz").write_bytes(content)
    return tmp_path / "data"


@pytest.fixture
def serve():
    """Start servers on 127.0.0.1: serve(answer) returns an address.

    answer(name, handler) returns the content of the requested file, None for 404, or b"" after
    answering through the handler itself.
    """
    servers = []

    def start(answer):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                content = answer(Path(self.path).name, self)
                if content is None:
                    self.send_error(404)
                elif content:
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            def log_message(self, *_):
                """Print nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        # shutdown waits for the end of a polling interval, half a second by default.
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def own_random_numbers():
    """Give each test the same random numbers, independent of other tests."""
    torch.manual_seed(0)
