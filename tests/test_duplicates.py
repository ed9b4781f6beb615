import json
from dataclasses import replace

from fashion.evaluation import predict

import numpy as np
import pytest
import torch

from experiments import duplicates, shared
from experiments.duplicates import CONTROL, WHOLE, WITHOUT
from fashionmnist import train
from models import MODELS


def test_near_duplicates_are_closer_than_a_share_of_the_norm_mirrored_or_not(monkeypatch):
    monkeypatch.setattr(duplicates, "CHUNK", 2)
    training = torch.randint(0, 256, (12, 28, 28)).byte()
    test = torch.randint(0, 256, (5, 28, 28)).byte()
    test[1] = 200
    training[3], training[5] = 200 - 29, 200 + 31  # 14.5 and 15.5 % of the norm away
    training[8], training[9] = test[4].flip(1), test[4].flip(0)  # mirrored, upside down
    near, neighbours = duplicates.find_near(test, training)
    assert near.tolist() == [False, True, False, False, True]
    assert neighbours.nonzero()[:, 0].tolist() == [3, 8]


def test_as_many_others_of_each_class_are_removed(tiny):
    neighbours = torch.zeros(len(tiny.train), dtype=torch.bool)
    neighbours[::7] = True
    whole, without, control, other = (
        duplicates.reduce(tiny, neighbours, text, seed).train
        for text, seed in ((WHOLE, 0), (WITHOUT, 0), (CONTROL, 0), (CONTROL, 1))
    )
    assert whole.equal(tiny.train) and without.equal(tiny.train[~neighbours])
    assert tiny.labels[control].bincount().equal(tiny.labels[without].bincount())
    assert set(tiny.train[neighbours].tolist()) <= set(control.tolist()) != set(other.tolist())


def test_differences_are_paired_and_have_standard_errors():
    reached = {WHOLE: [[0.9, 0.8], [0.8, 0.7]], WITHOUT: [[0.7, 0.8], [0.7, 0.7]]}
    reached[CONTROL] = reached[WHOLE]
    differences = duplicates.compare({text: np.array(rows) for text, rows in reached.items()})
    near, others = differences[f"{WITHOUT} − {WHOLE}"]
    assert near["values"] == pytest.approx([-0.2, -0.1])
    assert near["standard_error"] == pytest.approx(0.05)  # 0.1 / √2 / √2
    assert others["mean"] == 0
    assert differences[f"{CONTROL} − {WHOLE}"][0]["mean"] == 0


def test_accuracies_are_those_of_both_parts_of_the_test_images(tiny, tmp_path, monkeypatch, call):
    quick = replace(MODELS["ffn"].quick, epochs=1, batch_size=100, model={"widths": (32, 16)})
    monkeypatch.setattr(duplicates, "MODELS", {"ffn": MODELS["ffn"]._replace(quick=quick)})
    test_images = tiny.test_images.clone()
    test_images[:40] = tiny.images[tiny.train[:40]].flip(2)
    dataset = replace(tiny, test_images=test_images)
    monkeypatch.setattr(shared, "load", lambda *_: dataset)
    status, out, _ = call(duplicates, "--device=cpu", "--seeds=1", "--out", tmp_path)
    assert status == 0
    result = json.loads((tmp_path / "duplicates" / "duplicates.json").read_text())
    near, neighbours = duplicates.find_near(test_images, tiny.images[tiny.train])
    assert result["counts"] == {"test_images": near.sum(), "training_images": neighbours.sum()}
    output = " ".join(out.split())
    for text, left in ((WHOLE, tiny.train), (WITHOUT, tiny.train[~neighbours])):
        model = train("ffn", quick, 0, replace(dataset, train=left)).model
        logits = predict(model, test_images, tiny.mean, tiny.std)
        correct = logits.argmax(1) == tiny.test_labels
        expected = [correct[part].double().mean().item() for part in (near, ~near)]
        assert [values[0] for values in result["ffn"][text]] == pytest.approx(expected)
        assert f" {text} {100 * expected[0]:.2f} {100 * expected[1]:.2f}" in output
