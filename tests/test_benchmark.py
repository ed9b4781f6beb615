import copy
import itertools
import json
import pickle
from dataclasses import replace

from fashion.data import normalize
from fashion.evaluation import accuracy, predict

import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils import parameters_to_vector

from experiments import benchmark, loops, shared
from fashionmnist import train
from models import MODELS


def fake_loop(*_):
    yield from [(50.0, 0.1), (2.0, 0.3), (4.0, 0.5), (3.0, 0.4), (9.0, 0.6)]


def test_classic_loop_takes_steps_of_adam_in_training_mode(tiny):
    few = replace(tiny, train=tiny.train[: loops.CLASSIC_BATCH_SIZE])  # one step
    model = MODELS["ffn"].network(dropout=0)
    expected = copy.deepcopy(model)
    seconds, reached = next(loops.classic_loop(model, few))
    optimizer = torch.optim.Adam(expected.parameters(), lr=1e-3)
    images = normalize(tiny.images[few.train], few.mean, few.std)
    F.cross_entropy(expected(images), tiny.labels[few.train]).backward()
    optimizer.step()
    ours, theirs = (parameters_to_vector(each.parameters()) for each in (model, expected))
    # Adam's first step is the sign of the gradient, which is uncertain where that is tiny.
    assert torch.isclose(ours, theirs, rtol=1e-3, atol=1e-5).float().mean() > 0.98
    logits = predict(model, tiny.test_images, tiny.mean, tiny.std)
    assert seconds > 0 and reached == accuracy(logits, tiny.test_labels)


def test_fast_loop_trains_in_training_mode_after_each_evaluation(tiny, monkeypatch):
    monkeypatch.setattr(loops, "BATCH_SIZE", 64)
    few = replace(tiny, train=tiny.train[: 3 * 64])
    model = MODELS["ffn"].network(widths=(16,)).eval()
    epochs = loops.fast_loop(model, few, torch.float32)
    for steps in (3, 6):  # batch norm counts batches in training mode only
        next(epochs)
        assert model.layers[2].num_batches_tracked == steps


@pytest.mark.parametrize("peer", loops.PEERS)
def test_every_loop_learns(peer, tiny, monkeypatch):
    libraries = {"Keras on TensorFlow": "keras", "Flax on JAX": "flax"}
    pytest.importorskip(libraries.get(peer, "torch"))
    monkeypatch.setattr(loops, "BATCH_SIZE", 20)
    few = replace(tiny, train=tiny.train[:500])
    small = {"ffn": {"widths": (32, 16)}, "cnn": {"channels": (4, 4, 4), "widths": (16,)}}
    for name, arguments in small.items():
        model = MODELS[name].network(**arguments, dropout=0)
        epochs = itertools.islice(loops.PEERS[peer](model, few, torch.float32), 4)
        assert max(reached for _, reached in epochs) > 0.4


def test_peer_ends_at_the_target_and_its_first_epoch_counts_as_long_as_others():
    def epochs(target, limit):
        return loops.train_peer(pickle.dumps((fake_loop, None, None, target, limit)))

    assert epochs(0.5, 99) == [(3, 0.1), (2, 0.3), (4, 0.5), (3, 0.4)]  # the median of 2, 4 and 3
    assert len(epochs(0.6, 99)) == 5 and len(epochs(0.9, 10)) == 4
    summary = benchmark.summarize(epochs(0.5, 99), 600, 0.5)
    assert (summary["images_per_second"], summary["seconds_to_target"]) == (600 / 3, 3 + 2 + 4)
    assert benchmark.summarize(epochs(0.5, 99), 600, 0.51)["seconds_to_target"] is None


def test_accuracies_are_those_of_the_test_images(tiny, tmp_path, monkeypatch, call):
    quick = replace(MODELS["ffn"].quick, epochs=2, batch_size=50, model={"widths": (32, 16)})
    few = replace(tiny, train=tiny.train[:200])
    monkeypatch.setattr(shared, "load", lambda *_: few)
    monkeypatch.setattr(benchmark, "MODELS", {"ffn": MODELS["ffn"]._replace(quick=quick)})
    monkeypatch.setattr(benchmark, "EPOCHS", 2)
    assert call(benchmark, "--device", "cpu", "--out", tmp_path)[0] == 0
    result = json.loads((tmp_path / "benchmark" / "benchmark.json").read_text())
    measured = result["networks"]["ffn"]
    ours, classic = measured["loops"]["this project"], measured["loops"]["classic loop"]
    model = train("ffn", quick, 0, few).model
    logits = predict(model, tiny.test_images, tiny.mean, tiny.std)
    assert ours["accuracy"][0] == accuracy(logits, tiny.test_labels)
    assert measured["target"] == max(classic["accuracy"]) and len(classic["accuracy"]) == 2


def test_figure_shows_the_loops():
    slow = {"images_per_second": 1000.0, "seconds_to_target": None}
    fast = {"images_per_second": 5000.0, "seconds_to_target": 12.34}
    measured = {"this project": fast, "classic loop": slow}
    (axes,) = benchmark.draw_benchmark({"cnn": {"target": 0.91, "loops": measured}}, "").axes
    assert [bar.get_width() for bar in axes.patches] == [5000, 1000]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["this project", "classic loop"]
    texts = ["5,000 images/s, 12.3 s", "1,000 images/s, accuracy not reached"]
    assert [text.get_text() for text in axes.texts] == texts
    assert "91.0% test accuracy" in axes.get_title()
