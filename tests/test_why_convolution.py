import json
from dataclasses import replace
from itertools import product

from fashion import script
from fashion.checkpoint import load_networks
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
    costs = {"parameters": 1_500_000, "multiply_accumulates": 20_000}
    return {"mean": mean, "std": None, **costs}


def test_permutation_is_the_same_for_all_images_and_loses_nothing():
    order = why.permute(torch.arange(784).view(1, 28, 28)).flatten()
    images = torch.randint(0, 256, (5, 28, 28)).byte()
    assert why.permute(images).flatten(1).equal(images.flatten(1)[:, order])
    assert order.sort().values.equal(torch.arange(784))


def test_fewer_images_are_chosen_by_the_seed_and_repeated_to_as_many_steps(tiny):
    assert why.permuted(tiny, 3).test_images.equal(why.permute(tiny.test_images, 3))
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
    tiny, tmp_path, monkeypatch, call
):
    def small(name, recipe, seed, dataset, folder):
        recipe = replace(recipe, model=SMALL[name] | recipe.model)
        run = train(name, recipe, seed, dataset, folder)
        runs.append((run, dataset))
        return run

    train, runs = why.train, []
    used = torch.cat([tiny.train[:400], tiny.validation[:100]])
    parts = {"train": torch.arange(400), "validation": torch.arange(400, 500)}
    few = replace(tiny, images=tiny.images[used], labels=tiny.labels[used], **parts)
    monkeypatch.setattr(shared, "load", lambda *_: few)
    monkeypatch.setattr(why, "train", small)
    monkeypatch.setattr(why, "SIZES", (60, 5000))
    monkeypatch.setattr(why, "save_figure", lambda _, path: path)
    monkeypatch.setattr(why, "RESIZED", [("cnn", "other", {"padding": (1, 1, 1)})])
    monkeypatch.setattr(why, "LEARNING_RATES", (0.0001, 0.02))
    monkeypatch.setattr(why, "RECIPE", replace(why.RECIPE, epochs=1, batch_size=100))
    monkeypatch.setattr(why, "DISTORTIONS", {"contrast": DISTORTIONS["contrast"]})
    monkeypatch.setattr(why, "draw_robustness", lambda *_: None)
    status, out, _ = call(why, "--device=cpu", "--seeds=1", "--out", tmp_path)
    assert status == 0
    result = json.loads((tmp_path / "why_convolution" / "why_convolution.json").read_text())
    assert result["seeds"] == [0] and result["environment"]["precision"] in ("float32", "bfloat16")
    assert {len(dataset.train) for _, dataset in runs} == {400}
    assert len({str(replace(run.recipe, learning_rate=0, model={})) for run, _ in runs}) == 1
    for _, dataset in (*runs[2:4], *runs[8:10]):
        assert dataset.images.equal(why.permute(few.images))
        assert dataset.test_images.equal(why.permute(tiny.test_images))

    # Of the two rates of each variant, the one with the higher validation accuracy is tested.
    pairs = [(runs[i][0], runs[i + 1][0]) for i in range(0, len(runs), 2)]
    chosen = [max(pair, key=lambda run: run.history[-1]["validation_accuracy"]) for pair in pairs]
    assert [sum(bool(run.logits) for run in pair) for pair in pairs] == [1] * 7
    keys = [*product(why.NAMES, ("as it is", "permuted pixels", "60 images")), ("cnn", "other")]
    expected = {
        key: (accuracy(run.logits["test"], tiny.test_labels), run.recipe.learning_rate)
        for key, run in zip(keys, chosen, strict=True)
    }
    rows = ((name, *row) for name, part in result["accuracy"].items() for row in part.items())
    assert {(n, text): (row["mean"], row["learning_rate"]) for n, text, row in rows} == expected
    assert result["images"] == {"60 images": 60, "as it is": 400}
    other = expected["cnn", "other"][0] - expected["ffn", "as it is"][0]
    assert result["cnn_minus_ffn"]["other"]["mean"] == pytest.approx(other)
    assert f"other {100 * other:+.2f}" in " ".join(out.split())
    dark = DISTORTIONS["contrast"][2](tiny.test_images, 0.15)
    shipped = load_networks(script.PRETRAINED, MODELS)["cnn"]
    for key, logits in (
        ("cnn", predict(chosen[3].model, dark, tiny.mean, tiny.std)),
        ("cnn in pretrained/", shipped.logits(dark)),
    ):
        level = result["robustness"]["contrast"][key]["0.15"]
        assert level["mean"] == accuracy(logits, tiny.test_labels)


def test_figure_of_the_causes_shows_each_number_with_its_network(tiny):
    texts = ("as it is", "permuted pixels", "100 images")
    means = {"ffn": (0.8, 0.82, 0.7), "cnn": (0.9, 0.6, 0.75)}
    reached = {n: dict(zip(texts, map(summary, means[n]), strict=True)) for n in means}
    reached["cnn"]["MACs of the FFN"] = summary(0.7)
    result = {"epochs": 2, "accuracy": reached, "images": {"100 images": 100, "as it is": 1000}}
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
    names = ("CNN, MACs of the FFN: 70.0%", "FFN, as it is: 80.0%", "CNN, as it is: 90.0%")
    assert labels == [f"{name}\n1.50 M parameters, 0.02 M MACs" for name in names]
    shown = [(bar[0].get_xdata()[0], bar[0].get_color()) for bar in sizes.containers]
    assert shown == [(0.7, colour("cnn")), (0.8, colour("ffn")), (0.9, colour("cnn"))]


def test_figure_of_robustness_shows_each_level_with_its_example(tiny):
    # In the first panel; each of the others has 0.05 more.
    first = {"ffn": 0.1, "cnn": 0.5, "ffn in pretrained/": 0.2}
    result = {
        kind: {n: {f"{x:g}": summary(first[n] + i / 20) for x in levels} for n in first}
        for i, (kind, (_, levels, _)) in enumerate(DISTORTIONS.items())
    }
    axes = why.draw_robustness({"robustness": result, "epochs": 2}, tiny).axes
    sample = tiny.test_images[tiny.test_labels == 9][:1]
    for number, (kind, (unit, levels, apply)) in enumerate(DISTORTIONS.items()):
        assert axes[number].get_title() == f"{kind.capitalize()}: {unit}"
        lines = {bar.get_label(): bar[0].get_ydata()[-1] for bar in axes[number].containers}
        assert lines == {
            name.replace("ffn", "FFN").replace("cnn", "CNN"): mean + number / 20
            for name, mean in first.items()
        }
        assert [bar[0].get_linestyle() for bar in axes[number].containers] == ["-", "-", "--"]
        ticks = [text.get_text() for text in axes[number].get_xticklabels()]
        assert ticks == [f"{level:g}" for level in levels]
        for inset, level in zip(axes[number].child_axes, levels, strict=True):
            assert (inset.images[0].get_array() == apply(sample, level)[0].numpy()).all()
