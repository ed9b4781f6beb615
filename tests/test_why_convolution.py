import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from experiments import why_convolution as why
from experiments.distortions import DISTORTIONS
from fashion import cli
from fashion.checkpoint import load_tensors
from fashion.comparison import count_multiply_accumulates
from fashion.data import FASHION_MNIST, load_dataset
from fashion.layers import count_parameters
from models import MODELS

SMALL = {"ffn": {"widths": (32, 24, 16, 12)}, "cnn": {"channels": (2, 2, 2), "widths": (16, 12)}}
RESIZED = tuple(replace(each, arguments=SMALL[each.model]) for each in why.RESIZED)


def run(*arguments):
    return cli.run(why.parse_arguments, why.main, [str(each) for each in arguments])


@pytest.fixture
def small_experiment(monkeypatch, small_folder, tmp_path):
    """Run the whole experiment in seconds; returns its folder and the result."""
    for name, network in MODELS.items():
        recipe = replace(network.quick_recipe, model=SMALL[name], epochs=2, batch_size=32)
        monkeypatch.setattr(network, "quick_recipe", recipe)
    monkeypatch.setattr(why, "RESIZED", RESIZED)
    sizes = (50, 110)
    monkeypatch.setattr(why, "TRAINING_SIZES", sizes)
    reduced = {
        (name, size): why.Variant(name, f"{size}-images", images=size)
        for name in why.WHOLE
        for size in sizes
    }
    monkeypatch.setattr(why, "REDUCED", reduced)

    def start(*arguments):
        out = tmp_path / "why"
        assert run("--data-dir", small_folder, "--out", out, *arguments) == 0
        out = out / "quick" if "--quick" in arguments else out
        return out, json.loads((out / "why_convolution.json").read_text())

    return start


def test_every_number_follows_from_saved_predictions(small_experiment, small_folder, capsys):
    out, result = small_experiment("--seeds", 2)
    printed = capsys.readouterr().out
    labels = load_dataset(FASHION_MNIST, small_folder).test_labels

    def accuracy(name):
        values = []
        for seed in range(2):
            logits, _ = load_tensors(out / "runs" / f"{name}-seed{seed}.logits.safetensors")
            correct = logits["test_logits"].argmax(1) == labels
            values.append(correct.float().mean().item())
        return pytest.approx(values)

    assert result["seeds"] == [0, 1] and result["training_images"] == 220
    for name in ("ffn", "cnn"):
        locality = result["locality"][name]
        assert locality["original"]["values"] == accuracy(name)
        assert locality["permuted"]["values"] == accuracy(f"{name}-permuted")
        values = [row["values"] for row in result["data"][name]]
        assert values == [
            accuracy(f"{name}-50-images"),
            accuracy(f"{name}-110-images"),
            accuracy(name),
        ]
        for each in DISTORTIONS:
            measured = result["robustness"][each.name][name]
            for seed in range(2):
                path = out / "runs" / f"{name}-seed{seed}.distorted.safetensors"
                predictions = load_tensors(path)[0][each.name]
                assert predictions.shape == (len(each.levels), len(labels))
                expected = (predictions == labels).float().mean(1).tolist()
                assert [row["values"][seed] for row in measured] == pytest.approx(expected)
            neutral = list(each.levels).index(each.neutral)
            assert measured[neutral]["values"] == accuracy(name)
    lead = np.subtract(*(result["locality"][name]["permuted"]["values"] for name in ("cnn", "ffn")))
    assert result["locality"]["lead_permuted"]["values"] == pytest.approx(lead.tolist())
    for variant in (*why.WHOLE.values(), *RESIZED):
        row = result["size"][variant.name]
        assert row["accuracy"]["values"] == accuracy(variant.name)
        assert f"{row['parameters']:,} parameters" in printed
    for name in ("robustness", "why_convolution"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_finished_trainings_and_predictions_are_not_repeated(small_experiment, monkeypatch, capsys):
    monkeypatch.setattr(why, "QUICK_IMAGES", 120)
    out, first = small_experiment("--quick")
    assert out.name == "quick" and first["seeds"] == [0] and first["training_images"] == 120
    assert first["locality"]["lead_original"]["std"] is None
    assert capsys.readouterr().out.count("seed 0:") == len(why.WHOLE) * 4 + len(RESIZED)

    def fail(*_):
        raise AssertionError("done again")

    for name in ("score", "predict_logits"):
        monkeypatch.setattr(why, name, fail)
    for name in ("draw_robustness", "draw_causes"):
        monkeypatch.setattr(why, name, lambda *_: Figure())
    assert small_experiment("--quick") == (out, first)


def test_three_seeds_are_the_default_and_one_with_quick():
    assert why.parse_arguments([]).seeds == 3 and why.parse_arguments(["--quick"]).seeds == 1
    assert why.parse_arguments(["--quick", "--seeds", "4"]).seeds == 4


def test_permutation_is_the_same_for_all_images_and_loses_nothing():
    images = torch.randint(0, 256, (5, 28, 28), dtype=torch.uint8)
    permuted = why.permute(images)
    numbers = why.permute(torch.arange(784).view(1, 28, 28)).flatten()
    assert numbers.sort().values.equal(torch.arange(784)) and not numbers.equal(torch.arange(784))
    assert permuted.flatten(1).equal(images.flatten(1)[:, numbers])
    neighbours = (numbers.view(28, 28)[:, 1:] - numbers.view(28, 28)[:, :-1]).abs() == 1
    assert neighbours.float().mean() < 0.05


def test_variants_change_the_images_and_nothing_else(tiny_dataset):
    permuted = why.change_dataset(tiny_dataset, why.PERMUTED["cnn"], 0)
    assert permuted.images.equal(why.permute(tiny_dataset.images))
    assert permuted.test_images.equal(why.permute(tiny_dataset.test_images))
    assert permuted.labels.equal(tiny_dataset.labels)
    variant = why.Variant("cnn", images=50)
    few, others = (why.change_dataset(tiny_dataset, variant, seed) for seed in (0, 1))
    assert len(few.train_indices.unique()) == 50
    assert set(few.train_indices.bincount().tolist()) == {0, len(tiny_dataset.train_indices) // 50}
    assert set(few.train_indices.tolist()) <= set(tiny_dataset.train_indices.tolist())
    assert not few.train_indices.equal(others.train_indices)
    assert few.mean != tiny_dataset.mean
    assert few.validation_indices.equal(tiny_dataset.validation_indices)


def test_resized_networks_match_the_other_network():
    sizes = {
        each.name: (count_parameters(model), count_multiply_accumulates(model))
        for each in (*why.WHOLE.values(), *why.RESIZED)
        for model in [MODELS[each.model](**each.arguments)]
    }
    for name, other, which in (
        ("ffn-parameters-of-cnn", "cnn", 0),
        ("ffn-operations-of-cnn", "cnn", 1),
        ("cnn-operations-of-ffn", "ffn", 1),
    ):
        assert sizes[name][which] == pytest.approx(sizes[other][which], rel=0.02)


@pytest.mark.parametrize(
    ("accuracy", "expected"),
    [(0.8, 1000), (0.85, 10**3.5), (0.9, 10_000), (0.7, None), (0.95, None)],
)
def test_images_needed_are_interpolated_on_the_logarithmic_axis(accuracy, expected):
    needed = why.images_needed([100, 1000, 10_000], [0.7, 0.8, 0.9], accuracy)
    assert needed == (expected and pytest.approx(expected))


def test_all_networks_are_trained_for_the_same_number_of_steps(tiny_dataset):
    variants = [why.WHOLE["cnn"], why.PERMUTED["cnn"], why.Variant("cnn", "70-images", images=70)]
    trainers = [why.make_trainer(each, tiny_dataset, 0) for each in variants]
    assert len({trainer.total_steps for trainer in trainers}) == 1
    assert not any(trainer.recipe.freeze for trainer in trainers)
