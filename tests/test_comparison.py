from dataclasses import replace

from fashion import comparison
from fashion.data import CLASSES

import numpy as np
import pytest
import torch
import torch.nn.functional as F


def certain(predictions):
    """Logits of networks that are certain of these classes."""
    return 20 * F.one_hot(predictions, 10).float()


@pytest.fixture(scope="module")
def series(finished, tiny):
    """Two runs of each of three networks, wrong on a given number of the first test images."""
    truth, held_out, series = tiny.test_labels, tiny.labels[tiny.validation], {}
    for name, wrong in {"narrow": (60, 30), "wide": (15, 0), "deep": (15, 45)}.items():
        series[name] = []
        for run, count in zip(finished["ffn"], wrong, strict=True):
            predictions = torch.where(torch.arange(300) < count, (truth + 1) % 10, truth)
            mirrored = certain(predictions)
            mirrored[0] = 2 * certain(truth[:1])  # so sure that the mean is correct
            logits = {
                "test": certain(predictions) / (5 if run.seed == 0 else 1),
                "mirrored": mirrored,
                "validation": certain(
                    torch.where(torch.arange(200) < 40, (held_out + 1) % 10, held_out)
                ),
            }
            recipe = replace(run.recipe, flip=name != "wide")
            series[name].append(replace(run, name=name, recipe=recipe, logits=logits))
    return series


@pytest.fixture(scope="module")
def compared(series, tiny):
    return comparison.compare(series, tiny)


def test_mean_deviation_and_students_interval():
    summary = comparison.summarize_values([1.0, 2.0, 3.0])
    # Student's t for 2 degrees of freedom and 95 %, two-sided, is 4.3027.
    half = 4.302653 / np.sqrt(3)
    assert summary.pop("ci95") == pytest.approx([2 - half, 2 + half], abs=1e-5)
    assert summary == {"values": [1, 2, 3], "mean": 2, "std": 1, "min": 1, "max": 3}
    one = comparison.summarize_values([0.9])
    assert one["mean"] == 0.9 and one["ci95"] is None and one["std"] is None


def test_paired_difference_is_second_minus_first():
    paired = comparison.compare_paired([0.1, 0.2, 0.3], [0.2, 0.4, 0.6])
    assert paired["mean"] == pytest.approx(0.2) and paired["std"] == pytest.approx(0.1)
    # t = 0.2 / (0.1 / sqrt(3)) = 3.4641 with 2 degrees of freedom: p = 1 - t / sqrt(2 + t * t).
    t = 2 * np.sqrt(3)
    assert paired["p_value"] == pytest.approx(1 - t / np.sqrt(2 + t * t))
    # Differences of 0.07 but for rounding cannot be tested.
    assert comparison.compare_paired([0.30, 0.40], [0.37, 0.47])["p_value"] is None


def test_mcnemar_is_the_exact_binomial_test():
    first = np.array([1] * 10 + [1] + [0] * 5 + [0] * 4, dtype=bool)
    second = np.array([1] * 10 + [0] + [1] * 5 + [0] * 4, dtype=bool)
    result = comparison.mcnemar_exact(first, second)
    assert (result["only_first_correct"], result["only_second_correct"]) == (1, 5)
    # Of 6 discordant images at most 1 on the rarer side: 2 * (1 + 6) / 2 ** 6.
    assert result["p_value"] == pytest.approx(0.21875)
    assert comparison.mcnemar_exact(first, first)["p_value"] == 1
    assert comparison.mcnemar_exact(first[::-1], first)["p_value"] == 1  # as many on both sides


def test_each_network_is_summarized_over_its_seeds(compared, series, tiny):
    assert compared["dataset"] == tiny.title and compared["seeds"] == [0, 1]
    narrow, wide = compared["models"]["narrow"], compared["models"]["wide"]
    assert narrow["test_accuracy"]["values"] == [240 / 300, 270 / 300]
    assert narrow["flip_averaged_accuracy"]["values"] == [241 / 300, 271 / 300]
    assert wide["flip_averaged_accuracy"] is None  # it has never seen a mirror image
    # Seed 0 gives logits of 4 and nine times 0, and is right in 80 %; seed 1 is certain.
    errors = [np.exp(4) / (np.exp(4) + 9) - 0.8, 0.1]
    assert narrow["expected_calibration_error"]["values"] == pytest.approx(errors, abs=1e-6)
    # The same for 80 % of the validation images, which a logit of ln(36) would fit.
    assert narrow["temperature"]["values"] == pytest.approx([20 / np.log(36)] * 2, rel=1e-3)
    low = 36**0.2 / (36**0.2 + 9)
    after = narrow["error_after_temperature_scaling"]["values"]
    assert after == pytest.approx([0.8 - low, 0.9 - 0.8], abs=1e-3)
    assert narrow["test_sampling_error"] == pytest.approx(np.sqrt(0.8 * 0.2 / 300))
    assert narrow["ensemble_accuracy"] == 0.9  # where the runs disagree, the certain one decides
    coats = tiny.test_labels == CLASSES.index("Coat")
    recall = [1 - int(coats[:wrong].sum()) / int(coats.sum()) for wrong in (60, 30)]
    assert narrow["by_class"]["Coat"]["recall"]["values"] == pytest.approx(recall)
    assert narrow["train_seconds"]["values"] == [run.seconds for run in series["narrow"]]
    assert narrow["parameters"] == 576_010 and narrow["multiply_accumulates"] == 574_080
    assert min(narrow["latency_seconds"].values()) > 0


def test_every_pair_of_networks_is_compared(compared):
    differences = {each["of"]: each for each in compared["differences"]}
    assert list(differences) == ["wide - narrow", "deep - narrow", "deep - wide"]
    values = differences["wide - narrow"]["test_accuracy"]["values"]
    assert values == pytest.approx([0.15, 0.1])
    # 45 differences of 1 and 255 of 0.
    error = np.sqrt(0.15 * 0.85 / 300)
    assert differences["wide - narrow"]["test_sampling_error"] == pytest.approx(error)
    mcnemar = differences["wide - narrow"]["mcnemar_of_first_seed"]
    assert mcnemar.pop("p_value") == pytest.approx(2 * 0.5**45)
    counts = {"only_first_correct": 0, "only_second_correct": 45}
    assert mcnemar == {"first": "narrow", "second": "wide", "seed": 0, **counts}


def test_suspicious_labels_are_those_that_every_run_rejects(series, tiny):
    test, held_out = tiny.test_labels, tiny.labels[tiny.validation]
    # Both runs reject test label 7 and, less surely, validation label 3; one rejects test label 9.
    predictions, validation = test.clone(), held_out.clone()
    predictions[7], validation[3] = (test[7] + 1) % 10, (held_out[3] + 2) % 10
    logits = certain(predictions)
    logits[9] = certain((test[9:10] + 1) % 10)[0]
    runs = [
        replace(run, logits={"test": each, "validation": certain(validation) / 4})
        for run, each in zip(series["wide"], (logits, certain(predictions)), strict=True)
    ]
    first, second = comparison.find_suspects(runs, tiny)  # the surest first
    assert first[:3] == ("test", 7, CLASSES[test[7]])
    assert second[:3] == ("validation", int(tiny.validation[3]), CLASSES[held_out[3]])
    suggestions = [first.suggestion, second.suggestion]
    assert suggestions == [CLASSES[predictions[7]], CLASSES[validation[3]]]
    # The probability of the other classes, for logits of 5 and nine times 0.
    low = 1 / (np.exp(5) + 9)
    assert second.highest_probability == pytest.approx(low, rel=1e-4)
    assert second.mean_probability == pytest.approx(1 - 9 * low, rel=1e-4)
