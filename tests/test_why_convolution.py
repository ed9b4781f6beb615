import json
import sys
from dataclasses import replace
from itertools import product

from fashion import script
from fashion.evaluation import accuracy, predict
from fashion.style import colour

import pytest
import torch

from experiments import shared
from experiments import why_convolution as why
from experiments.distortions import DISTORTIONS
from models import MODELS

SMALL = {"ffn": {"widths": (32, 16)}, "cnn": {"channels": (4, 4, 4), "widths": (16,)}}


def summary(mean):
    return {"mean": mean, "std": None}


def test_permutation_is_the_same_for_all_images_and_loses_nothing():
    order = why.permute(torch.arange(784).view(1, 28, 28)).flatten()
    images = torch.randint(0, 256, (5, 28, 28)).byte()
    assert why.permute(images).flatten(1).equal(images.flatten(1)[:, order])
    assert order.sort().values.equal(torch.arange(784))


def test_fewer_images_are_chosen_by_the_seed_and_repeated_to_as_many_steps(tiny):
    few, others = (why.fewer(tiny, 50, seed) for seed in (0, 1))
    assert len(few.train) == len(tiny.train) and set(few.train.tolist()) <= set(tiny.train.tolist())
    assert set(few.train.bincount().tolist()) == {0, len(tiny.train) // 50}
    assert set(few.train.tolist()) != set(others.train.tolist())
    pixels = tiny.images[few.train].double() / 255
    assert (few.mean, few.std) == pytest.approx((pixels.mean().item(), pixels.std().item()), 1e-4)


def test_resized_networks_match_the_other_network():
    def costs(name, **model):
        network = MODELS[name].network(**model)
        return sum(p.numel() for p in network.parameters()), why.count_multiply_accumulates(network)

    for (name, _, model), other, key in zip(
        why.RESIZED, ("cnn", "cnn", "ffn"), (0, 1, 1), strict=True
    ):
        assert costs(name, **model)[key] == pytest.approx(costs(other)[key], rel=0.02)


def test_experiment_trains_all_alike_and_reports_what_the_networks_reach(
    tiny, tmp_path, monkeypatch
):
    def train_one(name, seed, dataset, folder, **model):
        run = train(name, seed, dataset, folder, **SMALL[name], **model)
        runs.append((run, dataset))
        return run

    train, runs = why.train_one, []
    monkeypatch.setattr(shared, "load", lambda *_: tiny)
    monkeypatch.setattr(why, "train_one", train_one)
    monkeypatch.setattr(why, "SIZES", (60, 5000))
    monkeypatch.setattr(why, "save_figure", lambda _, path: path)
    monkeypatch.setattr(why, "RESIZED", [("cnn", "other", {"padding": (1, 1, 1)})])
    monkeypatch.setattr(why, "RECIPE", replace(why.RECIPE, epochs=1))
    monkeypatch.setattr(sys, "argv", ["why", "--device=cpu", "--seeds=1", f"--out={tmp_path}"])
    assert script.run(why.main) == 0
    result = json.loads((tmp_path / "why_convolution" / "why_convolution.json").read_text())
    assert [run.recipe.learning_rate for run, _ in runs] == [0.02] * 3 + [0.03] * 4
    assert {len(dataset.train) for _, dataset in runs} == {len(tiny.train)}
    for _, dataset in (runs[1], runs[4]):
        assert dataset.images.equal(why.permute(tiny.images))
        assert dataset.test_images.equal(why.permute(tiny.test_images))

    reached = [accuracy(run.logits["test"], tiny.test_labels) for run, _ in runs]
    keys = [*product(why.NAMES, ("as it is", "permuted pixels", "60 images")), ("cnn", "other")]
    expected = dict(zip(keys, reached, strict=True))
    rows = ((name, *row) for name, part in result["accuracy"].items() for row in part.items())
    assert {(name, text): summary["mean"] for name, text, summary in rows} == expected
    assert result["images"] == {"60 images": 60, "as it is": 1000}
    sizes = {(row["network"], row["text"]): row["accuracy"]["mean"] for row in result["size"]}
    assert sizes == {key: expected[key] for key in (keys[0], keys[3], keys[6])}
    dark = DISTORTIONS["contrast"][2](tiny.test_images, 0.15)
    logits = predict(runs[3][0].model, dark, tiny.mean, tiny.std)
    level = result["robustness"]["contrast"]["cnn"]["0.15"]
    assert level["mean"] == accuracy(logits, tiny.test_labels)


def test_figure_of_the_causes_shows_each_number_with_its_network(tiny):
    texts = ("as it is", "permuted pixels", "100 images")
    means = {"ffn": (0.8, 0.82, 0.7), "cnn": (0.9, 0.6, 0.75)}
    costs = {"parameters": 1_500_000, "multiply_accumulates": 20_000}
    sizes = [("ffn", "a", 0.8), ("cnn", "b", 0.9), ("cnn", "c", 0.7)]
    result = {
        "accuracy": {n: dict(zip(texts, map(summary, means[n]), strict=True)) for n in means},
        "images": {"100 images": 100, "as it is": 1000},
        "size": [{"network": n, "text": t, "accuracy": summary(m), **costs} for n, t, m in sizes],
    }
    locality, data, sizes = why.draw_causes(result, tiny).axes

    def points(axes):
        return {bar.get_label(): bar[0].get_xydata().tolist() for bar in axes.containers}

    assert points(locality) == {"FFN": [[0, 0.8], [1, 0.82]], "CNN": [[0, 0.9], [1, 0.6]]}
    assert points(data) == {"FFN": [[100, 0.7], [1000, 0.8]], "CNN": [[100, 0.75], [1000, 0.9]]}
    boot = tiny.test_images[(tiny.test_labels == 9).nonzero()[0]]
    for inset, image in zip(locality.child_axes, (boot, why.permute(boot)), strict=True):
        assert (inset.images[0].get_array() == image[0].numpy()).all()
    assert [text.get_text() for text in locality.get_xticklabels()] == list(texts[:2])
    labels = [text.get_text() for text in sizes.get_yticklabels()]
    names = ("CNN, c: 70.0%", "FFN, a: 80.0%", "CNN, b: 90.0%")
    assert labels == [f"{name}\n1.50 M parameters, 0.02 M MACs" for name in names]
    shown = [(bar[0].get_xdata()[0], bar[0].get_color()) for bar in sizes.containers]
    assert shown == [(0.7, colour("cnn")), (0.8, colour("ffn")), (0.9, colour("cnn"))]


def test_figure_of_robustness_shows_each_level_with_its_example(tiny):
    first = {"ffn": 0.1, "cnn": 0.5}  # in the first panel; each of the others has 0.05 more
    result = {
        kind: {n: {f"{x:g}": summary(first[n] + i / 20) for x in levels} for n in first}
        for i, (kind, (_, levels, _)) in enumerate(DISTORTIONS.items())
    }
    axes = why.draw_robustness({"robustness": result}, tiny).axes
    sample = tiny.test_images[tiny.test_labels == 9][:1]
    for number, (kind, (unit, levels, apply)) in enumerate(DISTORTIONS.items()):
        assert axes[number].get_title() == f"{kind.capitalize()}: {unit}"
        lines = {bar.get_label(): bar[0].get_ydata()[-1] for bar in axes[number].containers}
        assert lines == {"FFN": 0.1 + number / 20, "CNN": 0.5 + number / 20}
        ticks = [text.get_text() for text in axes[number].get_xticklabels()]
        assert ticks == [f"{level:g}" for level in levels]
        for inset, level in zip(axes[number].child_axes, levels, strict=True):
            assert (inset.images[0].get_array() == apply(sample, level)[0].numpy()).all()
