"""Comparison of models over many seeds: accuracy, calibration, cost and suspicious labels.

All intervals are two-sided 95 % intervals. The statistics are SciPy's.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fashion.data import CLASS_NAMES, IMAGE_SIZE, Dataset
from fashion.evaluation import measure_calibration, scores_by_class
from fashion.runs import Run

CONFIDENCE = 0.95
POWER = 0.8  # probability of detecting a real difference, the usual value in planning
# Differences in accuracy for which the required number of seeds is reported: 0.1 and 0.5 points.
DIFFERENCES = (0.001, 0.005)
# A label is suspicious if no run of any model gives it a higher probability.
SUSPECT_PROBABILITY = 0.05
MAX_SEEDS = 10_000_000  # upper end of the search
LATENCY_BATCHES = (1, 1000)
LATENCY_REPEATS = 9


def summarize_values(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, standard deviation, interval and extremes of values, one per seed.

    The interval of the mean is Student's. A single value has no interval and no deviation (None).
    """
    array = np.asarray(values, dtype=float)
    mean, std, interval = array.mean(), None, None
    if len(array) > 1:
        std = array.std(ddof=1).item()
        quantiles = stats.t.ppf([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], len(array) - 1)
        interval = (mean + stats.sem(array) * quantiles).tolist()
    return {
        "values": array.tolist(),
        "mean": mean.item(),
        "std": std,
        "ci95": interval,
        "min": array.min().item(),
        "max": array.max().item(),
    }


def compare_paired(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Summarize the differences second − first per seed, with Student's paired test."""
    differences = np.subtract(second, first)
    testable = len(differences) > 1 and differences.std() > 0
    p_value = float(stats.ttest_rel(second, first).pvalue) if testable else None
    return summarize_values(differences.tolist()) | {"p_value": p_value}


def mcnemar_exact(first_correct: np.ndarray, second_correct: np.ndarray) -> dict[str, Any]:
    """Compare two classifiers, correct on images or not, bool (N,), with McNemar's exact test.

    Only images that exactly one of them classifies correctly are informative. With equal skill,
    each would get half of these (McNemar, Psychometrika 12, 1947; exact as a binomial test).
    """
    only_first = int((first_correct & ~second_correct).sum())
    only_second = int((second_correct & ~first_correct).sum())
    discordant = only_first + only_second
    p_value = stats.binomtest(only_first, discordant).pvalue if discordant else 1.0
    return {
        "only_first_correct": only_first,
        "only_second_correct": only_second,
        "p_value": float(p_value),
    }


def seeds_needed(std: float, difference: float) -> int:
    """Return the number of seeds per model, at least 2, needed to detect a difference.

    Student's two-sample test then detects it with probability POWER.

    Args:
        std: Standard deviation of the accuracy over seeds, above 0.
        difference: Difference between the true mean accuracies, in the same unit, above 0.
    """
    counts = range(2, MAX_SEEDS)
    return counts[bisect_left(counts, POWER, key=lambda count: _power(count, std, difference))]


def _power(count: int, std: float, difference: float) -> float:
    """Return the power of a two-sample t-test with this number of seeds per model."""
    freedom = 2 * count - 2
    critical = stats.t.ppf((1 + CONFIDENCE) / 2, freedom)
    shift = difference / (std * np.sqrt(2 / count))
    return stats.nct.sf(critical, freedom, shift) + stats.nct.cdf(-critical, freedom, shift)


def count_multiply_accumulates(model: nn.Module) -> int:
    """Return the number of multiply-accumulate operations for one image."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.eval()(torch.zeros(1, 1, IMAGE_SIZE, IMAGE_SIZE))
    return counter.get_total_flops() // 2


@torch.inference_mode()
def measure_latency(model: nn.Module, batch_size: int, device: torch.device) -> float:
    """Return the median seconds from a batch on the device to its logits, in float32."""
    model = model.to(device).to(memory_format=torch.channels_last).eval()
    images = torch.zeros(batch_size, 1, IMAGE_SIZE, IMAGE_SIZE, device=device)
    times = []
    for _ in range(LATENCY_REPEATS):
        start = time.perf_counter()
        model(images).cpu()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def compare(runs: dict[str, list[Run]], dataset: Dataset) -> dict[str, Any]:
    """Return the content of comparison.json.

    Args:
        runs: The runs of each model, with the same seeds in the same order.
        dataset: What they were trained and scored on.

    Returns:
        dataset, seeds, models (by name) and differences (of each pair of models, the second minus
        the first).
    """
    return {
        "dataset": dataset.title,
        "seeds": [run.seed for run in next(iter(runs.values()))],
        "models": {name: _describe_model(finished, dataset) for name, finished in runs.items()},
        "differences": [
            _describe_difference(*pair, dataset) for pair in combinations(runs.values(), 2)
        ],
    }


def _describe_difference(first: list[Run], second: list[Run], dataset: Dataset) -> dict[str, Any]:
    """Compare two models seed by seed, and image by image for the first seed."""
    labels = dataset.test_labels.cpu().numpy()
    accuracies = [[run.test.accuracy for run in runs] for runs in (first, second)]
    correct = [runs[0].probabilities.argmax(1) == labels for runs in (first, second)]
    return {
        "of": f"{second[0].name} - {first[0].name}",
        "test_accuracy": compare_paired(*accuracies),
        "mcnemar_of_first_seed": {
            "first": first[0].name,
            "second": second[0].name,
            "seed": first[0].seed,
            **mcnemar_exact(*correct),
        },
    }


def _describe_model(runs: list[Run], dataset: Dataset) -> dict[str, Any]:
    """Summarize one model over its seeds."""

    def summarize(measure: Callable[[Run], float]) -> dict[str, Any]:
        return summarize_values([measure(run) for run in runs])

    labels, device = dataset.test_labels.cpu().numpy(), dataset.images.device
    accuracy = summarize(lambda run: run.test.accuracy)
    scores = [scores_by_class(run.test.confusion_matrix) for run in runs]
    model = runs[0].build_model()
    return {
        "test_accuracy": accuracy,
        "flip_averaged_accuracy": summarize(lambda run: run.flip_averaged_accuracy),
        # Of the mean probabilities of all runs.
        "ensemble_accuracy": float(
            (np.mean([run.probabilities for run in runs], axis=0).argmax(1) == labels).mean()
        ),
        "validation_accuracy": summarize(lambda run: run.history[-1]["validation_accuracy"]),
        "by_class": {
            label: {
                measure: summarize_values([score[measure][number] for score in scores])
                for measure in scores[0]
            }
            for number, label in enumerate(CLASS_NAMES)
        },
        "expected_calibration_error": summarize(
            lambda run: measure_calibration(run.probabilities, labels).error
        ),
        "parameters": runs[0].parameters,
        "multiply_accumulates": count_multiply_accumulates(model),
        "train_seconds": summarize(lambda run: run.train_seconds),
        "latency_seconds": {
            str(size): measure_latency(model, size, device) for size in LATENCY_BATCHES
        },
        "seeds_needed": {
            f"{difference:g}": seeds_needed(accuracy["std"], difference)
            for difference in DIFFERENCES
            if accuracy["std"]
        },
        "confusion_matrix": np.sum([run.test.confusion_matrix for run in runs], axis=0).tolist(),
        "tested_at": [run.tested_at for run in runs],
    }


@dataclass(frozen=True)
class Suspect:
    """An image whose label may be wrong: no run gives it more than SUSPECT_PROBABILITY.

    Attributes:
        part: "test" or "validation".
        index: Index in the test file, or in the training file for a validation image.
        label: The given label.
        highest: The highest probability that any run gives it.
        suggestion: The class with the highest mean probability over all runs.
        mean_probability: That probability.
    """

    part: str
    index: int
    label: int
    highest: float
    suggestion: int
    mean_probability: float


def find_suspects(runs: Sequence[Run], dataset: Dataset) -> list[Suspect]:
    """Return the images whose label every run rejects, those with the surest suggestion first."""
    held_out = dataset.validation_indices.cpu()
    parts = (
        ("test", torch.arange(len(dataset.test_labels)), dataset.test_labels),
        ("validation", held_out, dataset.labels.cpu()[held_out]),
    )
    suspects = []
    for part, indices, labels in parts:
        given = labels.cpu().numpy()
        logits = torch.stack([getattr(run, f"{part}_logits") for run in runs])
        probabilities = logits.softmax(2).numpy()
        highest = probabilities[:, np.arange(len(given)), given].max(0)
        mean = probabilities.mean(0)
        rejected = highest <= SUSPECT_PROBABILITY
        columns = (indices.numpy(), given, highest, mean.argmax(1), mean.max(1))
        rows = zip(*(column[rejected].tolist() for column in columns), strict=True)
        suspects += [Suspect(part, *row) for row in rows]
    return sorted(suspects, key=lambda suspect: -suspect.mean_probability)


def suspects_csv(suspects: Sequence[Suspect]) -> str:
    """Return the suspects as CSV, one line each below the column names."""
    lines = [
        "part,index,given_label,highest_probability_of_given_label,suggested_label,"
        "mean_probability_of_suggested_label"
    ]
    lines += [
        f"{each.part},{each.index},{CLASS_NAMES[each.label]},{each.highest:.4f},"
        f"{CLASS_NAMES[each.suggestion]},{each.mean_probability:.4f}"
        for each in suspects
    ]
    return "\n".join([*lines, ""])
