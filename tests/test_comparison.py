from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fashion import comparison
from fashion.data import CLASS_NAMES
from fashion.evaluation import evaluate
from fashion.runs import Run
from ffn import FFN

CPU = torch.device("cpu")


def make_run(name, seed, dataset, wrong):
    """Return a run of an FFN that is wrong on the first images, and certain of everything."""
    truth = dataset.test_labels
    predictions = torch.where(torch.arange(len(truth)) < wrong, (truth + 1) % 10, truth)
    test_logits = certain_logits(predictions)
    return Run(
        name=name,
        network=FFN,
        identity={},
        weights={},
        metadata={"seed": seed, "arguments": {"widths": [64, 48, 32, 16], "dropout": 0.0}},
        history=[{"validation_accuracy": 0.25}, {"validation_accuracy": 0.5 + seed / 10}],
        epoch_seconds=[1.0, 2.0 + seed],
        validation_logits=certain_logits(dataset.labels[dataset.validation_indices]),
        test_logits=test_logits,
        test=evaluate(test_logits, truth),
        flip_averaged_accuracy=0.75 + seed / 10,
        tested_at=f"2026-01-0{seed + 1}T00:00:00+00:00",
    )


def certain_logits(predictions):
    return 20 * F.one_hot(predictions, 10).float()


@pytest.fixture(scope="module")
def runs(tiny_dataset):
    """Two runs of each of three models, with known mistakes among the 200 test images."""
    wrong = {"narrow": (60, 40), "wide": (20, 10), "deep": (20, 30)}
    return {
        name: [make_run(name, seed, tiny_dataset, count) for seed, count in enumerate(counts)]
        for name, counts in wrong.items()
    }


@pytest.fixture
def compare(tiny_dataset, monkeypatch):
    """Compare runs, with the latency of small batches measured only once."""
    monkeypatch.setattr(comparison, "LATENCY_BATCHES", (1, 3))
    monkeypatch.setattr(comparison, "LATENCY_REPEATS", 1)
    return lambda runs: comparison.compare(runs, tiny_dataset)


# Statistics, compared with values worked out by hand or from printed tables


def test_mean_deviation_and_students_interval():
    summary = comparison.summarize_values([1.0, 2.0, 3.0])
    # Student's t for 2 degrees of freedom and 95 %, two-sided, is 4.3027.
    half = 4.302653 / np.sqrt(3)
    assert summary.pop("ci95") == pytest.approx([2 - half, 2 + half], abs=1e-5)
    assert summary == {"values": [1, 2, 3], "mean": 2, "std": 1, "min": 1, "max": 3}


def test_one_value_has_no_interval_and_equal_values_a_point():
    one = comparison.summarize_values([0.9])
    assert one["ci95"] is None and one["std"] is None
    assert comparison.summarize_values([0.5, 0.5])["ci95"] == [0.5, 0.5]


def test_paired_difference_is_second_minus_first():
    paired = comparison.compare_paired([0.1, 0.2, 0.3], [0.2, 0.4, 0.6])
    assert paired["mean"] == pytest.approx(0.2) and paired["std"] == pytest.approx(0.1)
    # t = 0.2 / (0.1 / sqrt(3)) = 3.4641 with 2 degrees of freedom: p = 1 - t / sqrt(2 + t * t).
    t = 2 * np.sqrt(3)
    assert paired["p_value"] == pytest.approx(1 - t / np.sqrt(2 + t * t))


@pytest.mark.parametrize("differences", [[0.125], [0.25, 0.25]])
def test_differences_without_deviation_cannot_be_tested(differences):
    assert comparison.compare_paired([0.0] * len(differences), differences)["p_value"] is None


def test_mcnemar_is_the_exact_binomial_test():
    first = np.array([1] * 10 + [1] + [0] * 5 + [0] * 4, dtype=bool)
    second = np.array([1] * 10 + [0] + [1] * 5 + [0] * 4, dtype=bool)
    result = comparison.mcnemar_exact(first, second)
    assert (result["only_first_correct"], result["only_second_correct"]) == (1, 5)
    # Of 6 discordant images at most 1 on the rarer side: 2 * (1 + 6) / 2 ** 6.
    assert result["p_value"] == pytest.approx(0.21875)
    assert comparison.mcnemar_exact(first, first)["p_value"] == 1


@pytest.mark.parametrize(("effect", "needed"), [(1.0, 17), (0.8, 26), (0.5, 64), (0.2, 394)])
def test_seeds_needed_are_those_of_cohens_table(effect, needed):
    # Cohen, Statistical Power Analysis (1988), table 2.4.1: two samples, 5 %, power 0.8.
    assert comparison.seeds_needed(std=1.0, difference=effect) == needed


# Cost


def test_multiply_accumulates_by_hand():
    widths = [784, 512, 256, 128, 64, 10]
    by_hand = sum(a * b for a, b in pairwise(widths))
    assert comparison.count_multiply_accumulates(FFN()) == by_hand
    convolutional = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 26**2, 10))
    by_hand = 26**2 * 3**2 * 4 + 4 * 26**2 * 10
    assert comparison.count_multiply_accumulates(convolutional) == by_hand


def test_latency_is_the_median_over_all_repeats(monkeypatch):
    # Nine times of 1, 2, ..., 9 seconds.
    clock = iter(np.cumsum([0, 9, 0, 1, 0, 8, 0, 2, 0, 7, 0, 3, 0, 6, 0, 4, 0, 5]))
    monkeypatch.setattr(comparison, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    shapes = []
    model = nn.Flatten()
    model.register_forward_hook(lambda _, inputs, __: shapes.append(inputs[0].shape))
    assert comparison.measure_latency(model, 3, CPU) == 5
    assert shapes == [(3, 1, 28, 28)] * 9


# The whole comparison


def test_each_model_is_summarized_over_its_seeds(runs, tiny_dataset, compare):
    result = compare(runs)
    assert result["dataset"] == tiny_dataset.title and result["seeds"] == [0, 1]
    assert list(result["models"]) == ["narrow", "wide", "deep"]
    model = result["models"]["narrow"]
    assert model["test_accuracy"]["values"] == pytest.approx([0.7, 0.8])
    assert model["flip_averaged_accuracy"]["values"] == [0.75, 0.85]
    assert model["validation_accuracy"]["values"] == [0.5, 0.6]
    assert model["train_seconds"]["mean"] == 3.5
    # The models are certain of all predictions.
    assert model["expected_calibration_error"]["values"] == pytest.approx([0.3, 0.2], abs=1e-6)
    mean = np.mean([run.probabilities for run in runs["narrow"]], axis=0)
    right = (mean.argmax(1) == tiny_dataset.test_labels.numpy()).mean()
    assert model["ensemble_accuracy"] == pytest.approx(right)
    matrices = [run.test.confusion_matrix for run in runs["narrow"]]
    assert model["confusion_matrix"] == np.sum(matrices, axis=0).tolist()
    assert list(model["by_class"]) == list(CLASS_NAMES)
    recall = [run.test.accuracy_by_class[4] for run in runs["narrow"]]
    assert model["by_class"]["Coat"]["recall"]["values"] == pytest.approx(recall)
    assert model["parameters"] == runs["narrow"][0].parameters
    widths = pairwise([784, 64, 48, 32, 16, 10])
    assert model["multiply_accumulates"] == sum(a * b for a, b in widths)
    assert set(model["latency_seconds"]) == {"1", "3"}
    assert min(model["latency_seconds"].values()) > 0
    deviation = model["test_accuracy"]["std"]
    assert model["seeds_needed"] == {
        "0.001": comparison.seeds_needed(deviation, 0.001),
        "0.005": comparison.seeds_needed(deviation, 0.005),
    }
    assert model["tested_at"] == [run.tested_at for run in runs["narrow"]]


def test_every_pair_of_models_is_compared(runs, compare):
    result = compare(runs)
    differences = {each["of"]: each for each in result["differences"]}
    assert list(differences) == ["wide - narrow", "deep - narrow", "deep - wide"]
    values = differences["wide - narrow"]["test_accuracy"]["values"]
    assert values == pytest.approx([0.2, 0.15])
    mcnemar = differences["wide - narrow"]["mcnemar_of_first_seed"]
    assert mcnemar.pop("p_value") == pytest.approx(2 * 0.5**40)
    assert mcnemar == {
        "first": "narrow",
        "second": "wide",
        "seed": 0,
        "only_first_correct": 0,
        "only_second_correct": 40,
    }


def test_two_models_have_one_difference_and_one_model_has_none(runs, compare):
    two = compare({name: runs[name][:1] for name in ("wide", "deep")})
    assert [each["of"] for each in two["differences"]] == ["deep - wide"]
    assert two["models"]["deep"]["seeds_needed"] == {}
    one = compare({"wide": runs["wide"]})
    assert one["differences"] == []


# Suspicious labels


def test_suspicious_labels_are_those_that_every_run_rejects(runs, tiny_dataset):
    test = tiny_dataset.test_labels
    validation = tiny_dataset.labels[tiny_dataset.validation_indices]
    # All runs reject test labels 7 and 8, with different certainty, and validation label 3. One of
    # them rejects test label 9.
    predictions = test.clone()
    predictions[7:9] = (test[7:9] + 1) % 10
    logits, others = certain_logits(predictions), certain_logits(predictions)
    logits[9] = certain_logits((test[9:10] + 1) % 10)[0]
    logits[8] /= 4
    wrong = validation.clone()
    wrong[3] = (validation[3] + 2) % 10
    agreeing = [
        replace(run, test_logits=each, validation_logits=certain_logits(wrong) / 2)
        for run, each in zip(runs["wide"], (logits, others), strict=True)
    ]
    suspects = comparison.find_suspects(agreeing, tiny_dataset)
    index = int(tiny_dataset.validation_indices[3])
    found = [(suspect.part, suspect.index) for suspect in suspects]
    assert found == [("test", 7), ("validation", index), ("test", 8)]  # the surest first
    assert [each.label for each in suspects] == [test[7], tiny_dataset.labels[index], test[8]]
    assert [each.suggestion for each in suspects] == [predictions[7], wrong[3], predictions[8]]
    # The probability of the other classes, for logits of 5 and nine times 0.
    low = 1 / (np.exp(5) + 9)
    assert suspects[2].highest == pytest.approx(low, rel=1e-4)
    assert suspects[2].mean_probability == pytest.approx(1 - 4.5 * low, rel=1e-4)


def test_suspicious_labels_as_csv():
    suspects = [comparison.Suspect("test", 42, 6, 0.01, 0, 0.97)]
    assert comparison.suspects_csv(suspects) == (
        "part,index,given_label,highest_probability_of_given_label,suggested_label,"
        "mean_probability_of_suggested_label\ntest,42,Shirt,0.0100,T-shirt/top,0.9700\n"
    )
