"""Compare models over many seeds: accuracy, calibration, cost, and labels that look wrong.

All intervals are two-sided and cover 95 %. The statistics are SciPy's.
"""

import csv
import io
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from data import CLASS_NAMES, IMAGE_SIZE, Dataset
from runs import Run
from training import MODELS

CONFIDENCE = 0.95
POWER = 0.8  # the chance to find a difference that exists, as is usual in planning
# Differences in accuracy that one may want to tell apart: 0.1 and 0.5 points.
DIFFERENCES = (0.001, 0.005)
# Equal bins of confidence, as many as in Guo et al., arXiv:1706.04599.
CALIBRATION_BINS = 15
# A label is suspect when no run of any model gives it more than this probability.
SUSPECT_PROBABILITY = 0.05
MAX_SEEDS = 10_000_000  # nobody will train more
LATENCY_BATCHES = (1, 1000)
LATENCY_REPEATS = 9


def summarize_values(values: Sequence[float]) -> dict[str, Any]:
    """Describe values, one a seed: themselves, mean, standard deviation, interval, extremes.

    The interval of the mean is Student's; of a single value there is neither interval nor
    deviation (None).
    """
    array = np.asarray(values, dtype=float)
    spread = array.std(ddof=1) if len(array) > 1 else None
    return {
        "values": array.tolist(),
        "mean": array.mean().item(),
        "std": None if spread is None else spread.item(),
        "ci95": None if spread is None else _interval(array),
        "min": array.min().item(),
        "max": array.max().item(),
    }


def _interval(values: np.ndarray) -> list[float]:
    """Return the interval of the mean of at least two values."""
    error = stats.sem(values)
    if error == 0:
        return [values.mean().item()] * 2
    low, high = stats.t.interval(CONFIDENCE, len(values) - 1, values.mean(), error)
    return [float(low), float(high)]


def compare_paired(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Describe the differences second − first, seed by seed, with Student's paired test."""
    differences = np.subtract(second, first)
    result = summarize_values(differences)
    enough = len(differences) > 1 and differences.std() > 0
    result["p_value"] = float(stats.ttest_rel(second, first).pvalue) if enough else None
    return result


def mcnemar_exact(first_correct: np.ndarray, second_correct: np.ndarray) -> dict[str, Any]:
    """Compare two classifiers on the same images by McNemar's exact test.

    Only images that one of them alone gets right tell them apart; with equal skill each would have
    half of those (McNemar, Psychometrika 12, 1947; exact as a binomial test).

    Args:
        first_correct: bool (N,), which images the first one gets right.
        second_correct: the same for the second one.
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
    """Return how many seeds of each of two models tell them apart by Student's two-sample test.

    Args:
        std: standard deviation of the accuracy over seeds, above 0.
        difference: of the two true mean accuracies, in the same unit, above 0.

    Returns:
        The smallest number, at least 2, that finds the difference with probability POWER.
    """
    counts = range(2, MAX_SEEDS)
    return counts[bisect_left(counts, POWER, key=lambda count: _power(count, std, difference))]


def _power(count: int, std: float, difference: float) -> float:
    """Return the chance that a two-sample t-test with so many seeds each finds a difference."""
    freedom = 2 * count - 2
    critical = stats.t.ppf((1 + CONFIDENCE) / 2, freedom)
    shift = difference / (std * np.sqrt(2 / count))
    return stats.nct.sf(critical, freedom, shift) + stats.nct.cdf(-critical, freedom, shift)


@dataclass(frozen=True)
class Calibration:
    """How often predictions of a certain confidence are right, by bin of confidence.

    Attributes:
        centre: of each bin that has predictions.
        confidence: mean confidence in it.
        accuracy: fraction of correct ones in it.
        share: fraction of all predictions in it.
    """

    centre: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    share: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error (Naeini et al., AAAI 2015), a fraction."""
        return float((self.share * np.abs(self.confidence - self.accuracy)).sum())


def calibrate(probabilities: np.ndarray, labels: np.ndarray) -> Calibration:
    """Sort predictions, probabilities (N, 10), by confidence and compare with labels (N,)."""
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == labels
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)
    filled = counts > 0
    sums = [np.bincount(bins, values, CALIBRATION_BINS)[filled] for values in (confidence, correct)]
    return Calibration(
        centre=(np.flatnonzero(filled) + 0.5) / CALIBRATION_BINS,
        confidence=sums[0] / counts[filled],
        accuracy=sums[1] / counts[filled],
        share=counts[filled] / len(labels),
    )


def scores_by_class(matrix: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """Return precision, recall and F1 of each class, (10,) fractions, from a confusion matrix.

    A class that is never predicted, or has no images, has 0.
    """
    counts = np.asarray(matrix, dtype=float)
    hits = counts.diagonal()
    predicted, true = counts.sum(0), counts.sum(1)
    return {
        "precision": hits / predicted.clip(min=1),
        "recall": hits / true.clip(min=1),
        "f1": 2 * hits / (predicted + true).clip(min=1),
    }


def count_multiply_accumulates(model: nn.Module) -> int:
    """Return the multiplications, each with its addition, that one picture takes."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.eval()(torch.zeros(1, 1, IMAGE_SIZE, IMAGE_SIZE))
    return counter.get_total_flops() // 2


@torch.inference_mode()
def measure_latency(model: nn.Module, batch_size: int, device: torch.device) -> float:
    """Return the median seconds from a batch in the device's memory to its logits, in float32."""
    model = model.to(device, memory_format=torch.channels_last).eval()
    images = torch.zeros(batch_size, 1, IMAGE_SIZE, IMAGE_SIZE, device=device)
    times = []
    for _ in range(LATENCY_REPEATS):
        start = time.perf_counter()
        model(images).cpu()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def probabilities_of(run: Run) -> np.ndarray:
    """Return the run's probabilities for the test images, float32 (N, 10)."""
    return run.test_logits.softmax(1).numpy()


def compare(runs: dict[str, list[Run]], dataset: Dataset) -> dict[str, Any]:
    """Return all that comparison.json says.

    Args:
        runs: for each model its runs, the same seeds in the same order.
        dataset: what they were trained and scored on.
    """
    labels = dataset.test_labels.cpu().numpy()
    result: dict[str, Any] = {
        "dataset": dataset.title,
        "seeds": [run.seed for run in next(iter(runs.values()))],
        "models": {
            name: _describe_model(finished, labels, dataset) for name, finished in runs.items()
        },
    }
    if len(runs) == 2:
        first, second = runs
        accuracies = [result["models"][name]["test_accuracy"]["values"] for name in runs]
        right = [probabilities_of(runs[name][0]).argmax(1) == labels for name in runs]
        result["difference"] = {
            "of": f"{second} - {first}",
            "test_accuracy": compare_paired(*accuracies),
            "mcnemar_of_first_seed": {
                "first": first,
                "second": second,
                "seed": runs[first][0].seed,
                **mcnemar_exact(*right),
            },
        }
    return result


def _describe_model(runs: list[Run], labels: np.ndarray, dataset: Dataset) -> dict[str, Any]:
    """Describe one model over its seeds."""
    accuracy = summarize_values([run.test.accuracy for run in runs])
    scores = [scores_by_class(run.test.confusion_matrix) for run in runs]
    model = MODELS[runs[0].name](**runs[0].checkpoint["arguments"])
    return {
        "test_accuracy": accuracy,
        "flip_averaged_accuracy": summarize_values([run.flip_averaged_accuracy for run in runs]),
        "validation_accuracy": summarize_values(
            [run.history[-1]["validation_accuracy"] for run in runs]
        ),
        "by_class": {
            label: {
                measure: summarize_values([score[measure][number] for score in scores])
                for measure in ("precision", "recall", "f1")
            }
            for number, label in enumerate(CLASS_NAMES)
        },
        "expected_calibration_error": summarize_values(
            [calibrate(probabilities_of(run), labels).error for run in runs]
        ),
        "parameters": runs[0].parameters,
        "multiply_accumulates": count_multiply_accumulates(model),
        "train_seconds": summarize_values([run.train_seconds for run in runs]),
        "latency_seconds": {
            str(size): measure_latency(model, size, dataset.images.device)
            for size in LATENCY_BATCHES
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
    """An image whose given label every run rejects.

    Attributes:
        part: "test" or "validation".
        index: in the test file, or in the training file for a validation image.
        label: the given one.
        highest: the largest probability that any run gives it.
        suggestion: the class with the largest mean probability over all runs.
        agreement: that mean probability.
    """

    part: str
    index: int
    label: int
    highest: float
    suggestion: int
    agreement: float


def find_suspects(runs: Sequence[Run], dataset: Dataset) -> list[Suspect]:
    """Return the images whose given label every run rejects, the surest first."""
    parts = (
        ("test", "test_logits", dataset.test_labels, torch.arange(len(dataset.test_labels))),
        (
            "validation",
            "validation_logits",
            dataset.labels[dataset.validation_indices],
            dataset.validation_indices,
        ),
    )
    suspects = []
    for part, logits, labels, indices in parts:
        given = labels.cpu().numpy()
        probabilities = np.stack([getattr(run, logits).softmax(1).numpy() for run in runs])
        highest = probabilities[:, np.arange(len(given)), given].max(0)
        mean = probabilities.mean(0)
        suspects += [
            Suspect(
                part,
                int(indices[row]),
                int(given[row]),
                float(highest[row]),
                int(mean[row].argmax()),
                float(mean[row].max()),
            )
            for row in np.flatnonzero(highest <= SUSPECT_PROBABILITY)
        ]
    return sorted(suspects, key=lambda suspect: -suspect.agreement)


def suspects_csv(suspects: Sequence[Suspect]) -> str:
    """Return the suspects as a table in CSV, one line each below a line of column names."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(
        [
            "part",
            "index",
            "given_label",
            "highest_probability_of_given_label",
            "suggested_label",
            "mean_probability_of_suggested_label",
        ]
    )
    for suspect in suspects:
        table.writerow(
            [
                suspect.part,
                suspect.index,
                CLASS_NAMES[suspect.label],
                f"{suspect.highest:.4f}",
                CLASS_NAMES[suspect.suggestion],
                f"{suspect.agreement:.4f}",
            ]
        )
    return text.getvalue()
