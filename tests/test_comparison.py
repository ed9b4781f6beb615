import csv
import io
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

import comparison
from cnn import CNN
from data import CLASS_NAMES
from ffn import FFN
from runs import score
from training import RECIPES, Trainer


@pytest.fixture(scope="module")
def runs(tiny_dataset):
    """Two runs of one short epoch of each model."""
    return {
        name: [score(train(name, seed, tiny_dataset)) for seed in (0, 1)] for name in ("ffn", "cnn")
    }


def train(name, seed, dataset):
    trainer = Trainer(name, dataset, replace(RECIPES[name], epochs=1), seed, torch.float32)
    trainer.train_epoch()
    return trainer


# Statistics, against values worked out by hand or from printed tables


def test_mean_deviation_and_students_interval():
    summary = comparison.summarize_values([1.0, 2.0, 3.0])
    assert (summary["mean"], summary["std"], summary["min"], summary["max"]) == (2, 1, 1, 3)
    # 4.3027: Student's t for 2 degrees of freedom and 95 %, two-sided.
    half = 4.302653 / np.sqrt(3)
    assert summary["ci95"] == pytest.approx([2 - half, 2 + half], abs=1e-5)


def test_one_value_has_no_interval_and_equal_values_a_point():
    assert comparison.summarize_values([0.9])["ci95"] is None
    assert comparison.summarize_values([0.5, 0.5])["ci95"] == [0.5, 0.5]


def test_paired_difference_is_second_minus_first():
    paired = comparison.compare_paired([0.1, 0.2, 0.3], [0.2, 0.4, 0.6])
    assert paired["mean"] == pytest.approx(0.2) and paired["std"] == pytest.approx(0.1)
    # t = 0.2 / (0.1 / sqrt(3)) = 3.4641 with 2 degrees of freedom: p = 1 - t / sqrt(2 + t * t).
    t = 2 * np.sqrt(3)
    assert paired["p_value"] == pytest.approx(1 - t / np.sqrt(2 + t * t))


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


def test_calibration_by_hand():
    probabilities = np.full((4, 10), 0.0)
    for row, confidence in enumerate([0.9, 0.92, 0.6, 0.62]):
        probabilities[row] = (1 - confidence) / 9
        probabilities[row, 0] = confidence
    labels = np.array([0, 0, 0, 5])
    calibration = comparison.calibrate(probabilities, labels)
    assert calibration.confidence == pytest.approx([0.61, 0.91])
    assert calibration.accuracy == pytest.approx([0.5, 1.0])
    assert calibration.share == pytest.approx([0.5, 0.5])
    assert calibration.error == pytest.approx(0.5 * 0.11 + 0.5 * 0.09)


def test_perfect_confidence_has_a_bin():
    assert comparison.calibrate(np.eye(10), np.arange(10)).error == 0


def test_precision_recall_and_f1_by_hand():
    matrix = np.zeros((10, 10))
    matrix[0, :2] = 6, 2
    matrix[1, :2] = 4, 8
    scores = comparison.scores_by_class(matrix)
    assert scores["precision"][:3] == pytest.approx([0.6, 0.8, 0])
    assert scores["recall"][:3] == pytest.approx([0.75, 8 / 12, 0])
    assert scores["f1"][0] == pytest.approx(2 * 0.6 * 0.75 / 1.35)


# Cost


def test_multiply_accumulates_by_hand():
    widths = [784, 512, 256, 128, 64, 10]
    by_hand = sum(a * b for a, b in pairwise(widths))
    assert comparison.count_multiply_accumulates(FFN()) == by_hand
    convolutions = 9 * (28 * 28 * 1 * 32 + 14 * 14 * 32 * 64 + 7 * 7 * 64 * 128)
    linear = 1152 * 256 + 256 * 128 + 128 * 10
    assert comparison.count_multiply_accumulates(CNN()) == convolutions + linear


# The whole


def test_comparison_says_everything(runs, tiny_dataset):
    result = comparison.compare(runs, tiny_dataset)
    assert result["seeds"] == [0, 1] and list(result["models"]) == ["ffn", "cnn"]
    for name, model in result["models"].items():
        accuracies = [run.test.accuracy for run in runs[name]]
        assert model["test_accuracy"]["values"] == accuracies
        assert model["test_accuracy"]["mean"] == pytest.approx(np.mean(accuracies))
        assert set(model["by_class"]) == set(CLASS_NAMES)
        assert np.sum(model["confusion_matrix"]) == 2 * 200
        assert set(model["latency_seconds"]) == {"1", "1000"}
        assert min(model["latency_seconds"].values()) > 0
        recall = model["by_class"]["Coat"]["recall"]["values"]
        assert recall == pytest.approx([run.test.accuracy_by_class[4] for run in runs[name]])
    difference = result["difference"]["test_accuracy"]["values"]
    assert difference == pytest.approx(
        [c.test.accuracy - f.test.accuracy for f, c in zip(*runs.values(), strict=True)]
    )


def test_one_run_of_one_model_can_be_described(runs, tiny_dataset):
    result = comparison.compare({"cnn": runs["cnn"][:1]}, tiny_dataset)
    assert result["models"]["cnn"]["test_accuracy"]["std"] is None
    assert result["models"]["cnn"]["seeds_needed"] == {}
    assert "difference" not in result


# Suspect labels


def sure_logits(guesses):
    return 20 * torch.nn.functional.one_hot(torch.as_tensor(guesses), 10).float()


def test_suspects_are_the_labels_that_every_run_rejects(runs, tiny_dataset):
    test, validation = (
        tiny_dataset.test_labels,
        tiny_dataset.labels[tiny_dataset.validation_indices],
    )
    # Both runs reject test label 7 and validation label 3; only one of them rejects test label 9.
    guesses, others = test.clone(), test.clone()
    guesses[7] = others[7] = (test[7] + 1) % 10
    guesses[9] = (test[9] + 1) % 10
    validation_guesses = validation.clone()
    validation_guesses[3] = (validation[3] + 2) % 10
    agreeing = [
        replace(run, test_logits=sure_logits(g), validation_logits=sure_logits(validation_guesses))
        for run, g in zip(runs["ffn"], (guesses, others), strict=True)
    ]
    suspects = comparison.find_suspects(agreeing, tiny_dataset)
    found = {(suspect.part, suspect.index): suspect for suspect in suspects}
    training_index = int(tiny_dataset.validation_indices[3])
    assert set(found) == {("test", 7), ("validation", training_index)}
    assert found["test", 7].label == test[7] and found["test", 7].suggestion == guesses[7]
    assert found["test", 7].highest < 1e-6 < 0.99 < found["test", 7].agreement
    assert found["validation", training_index].label == tiny_dataset.labels[training_index]


def test_suspects_as_csv():
    suspects = [comparison.Suspect("test", 42, 6, 0.01, 0, 0.97)]
    (row,) = csv.DictReader(io.StringIO(comparison.suspects_csv(suspects)))
    assert row == {
        "part": "test",
        "index": "42",
        "given_label": "Shirt",
        "highest_probability_of_given_label": "0.0100",
        "suggested_label": "T-shirt/top",
        "mean_probability_of_suggested_label": "0.9700",
    }
