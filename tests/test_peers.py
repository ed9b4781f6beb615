"""The other training loops; those of libraries that are not installed are skipped."""

import itertools
import statistics

import numpy as np
import pytest
import torch

from experiments import peers
from models import MODELS


@pytest.fixture
def images(tiny_dataset):
    chosen = tiny_dataset.train_indices
    train = tiny_dataset.images[chosen].numpy(), tiny_dataset.labels[chosen].numpy()
    test = tiny_dataset.test_images.numpy(), tiny_dataset.test_labels.numpy()
    return peers.Images(train, test, tiny_dataset.mean, tiny_dataset.std)


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("peer", peers.PEERS)
def test_every_loop_learns(peer, name, images, monkeypatch):
    if not peers.find_versions(peers.PEERS[peer][1]):
        pytest.skip(f"{peer} is not installed")
    monkeypatch.setattr(peers, "BATCH_SIZE", 25)
    epochs = list(itertools.islice(peers.PEERS[peer][0](name, images, torch.float32), 5))
    assert len(epochs) == 5 and all(seconds > 0 for seconds, _ in epochs)
    assert max(accuracy for _, accuracy in epochs) > 0.4  # of ten classes


def test_epochs_are_different_permutations_of_the_images(images, monkeypatch):
    monkeypatch.setattr(peers, "BATCH_SIZE", 60)
    first, second = images.shuffled(0), images.shuffled(1)
    assert first.shape == second.shape == (8, 60)
    assert len(np.unique(first)) == 480 and not np.array_equal(first, second)


@pytest.mark.parametrize("name", MODELS)
def test_no_loop_trains_with_dropout(name):
    assert peers.build_network(name).arguments["dropout"] == 0


def test_training_ends_in_the_epoch_that_reaches_the_target(images):
    def loop(*_):
        yield from [(9.0, 0.1), (2.0, 0.3), (4.0, 0.2), (3.0, 0.5), (3.0, 0.7), (3.0, 0.8)]

    def count(target, max_seconds=100.0):
        epochs = peers._train_until(loop, "ffn", images, torch.float32, target, max_seconds)
        return len(epochs)

    assert count(0.3) == peers.MIN_EPOCHS and count(0.6) == 5 and count(0.9) == 6
    assert count(0.9, 10.0) == peers.MIN_EPOCHS and count(0.9, 20.0) == 5


@pytest.mark.parametrize(("target", "seconds"), [(0.3, 3.0 + 2.0), (0.5, 3.0 + 6.0), (0.9, None)])
def test_first_epoch_counts_as_long_as_the_others(tiny_dataset, monkeypatch, target, seconds):
    epochs = [(50.0, 0.1), (2.0, 0.3), (4.0, 0.5), (3.0, 0.4)]
    monkeypatch.setattr(peers, "call_in_own_process", lambda *_: epochs)
    monkeypatch.setattr(peers, "BATCH_SIZE", 300)
    result = peers.measure("PyTorch, made fast", "ffn", tiny_dataset, torch.float32, target, 9.0)
    assert result["seconds_to_target"] == seconds
    assert result["images_per_second"] == 300 / statistics.median([2.0, 4.0, 3.0])
    assert result["test_accuracy"] == 0.5 and result["epochs"] == 4


def test_loop_of_a_missing_library_is_not_measured(tiny_dataset, monkeypatch):
    monkeypatch.setitem(peers.PEERS, "other", (peers.train_torch, ("no-such-library",)))
    assert peers.measure("other", "ffn", tiny_dataset, torch.float32, 0.5, 9.0) is None
