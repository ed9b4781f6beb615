"""Comparison of networks over several seeds: accuracy, calibration, cost and suspicious labels."""

import statistics
import time
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from fashion import evaluation
from fashion.data import CLASSES, SIZE, Dataset
from fashion.runs import Run

import numpy as np
import scipy  # loads scipy.stats, which takes a second, when it is first used
import torch
from torch import nn

SUSPICIOUS = 0.05  # highest probability that any run may give to a suspicious label
LATENCY_BATCHES, LATENCY_REPEATS = (1, 1000), 3
AVERAGED = ("test_accuracy", "flip_averaged_accuracy", "validation_accuracy", "train_seconds")


def summarize_values(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, standard deviation, Student's 95 % interval and extremes of values by seed."""
    count, mean, std, interval = len(values), statistics.fmean(values), None, None
    if count > 1:
        std = statistics.stdev(values)
        half = float(scipy.stats.t.ppf(0.975, count - 1)) * std / count**0.5
        interval = [mean - half, mean + half]
    extremes = {"min": min(values), "max": max(values)}
    return {"values": list(values), "mean": mean, "std": std, "ci95": interval, **extremes}


def compare_paired(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Summarize the differences second − first per seed, with Student's paired test."""
    summary = summarize_values(np.subtract(second, first).tolist())
    # A single difference cannot be tested, nor those that are equal but for rounding.
    testable = (summary["std"] or 0) > 1e-12
    p_value = scipy.stats.ttest_rel(second, first).pvalue if testable else None
    return summary | {"p_value": p_value}


def mcnemar_exact(first_correct: np.ndarray, second_correct: np.ndarray) -> dict[str, Any]:
    """Compare two classifiers, correct on images or not, bool (N,), with McNemar's exact test."""
    first = int((first_correct & ~second_correct).sum())
    second = int((second_correct & ~first_correct).sum())
    p_value = scipy.stats.binomtest(first, first + second).pvalue if first + second else 1
    return {"only_first_correct": first, "only_second_correct": second, "p_value": float(p_value)}


def count_multiply_accumulates(model: nn.Module) -> int:
    """Return the number of multiply-accumulates of layers with weights for one image."""
    counts, device = [], next(model.parameters()).device

    def count(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            counts.append(output.numel() * layer.weight[0].numel())

    with nn.modules.module.register_module_forward_hook(count):
        evaluation.predict(model, torch.zeros(1, SIZE, SIZE, device=device), 0, 1)
    return sum(counts)


def measure_latency(model: nn.Module, count: int) -> float:
    """Return the median time in seconds from images on the model's device to their logits."""
    device, times = next(model.parameters()).device, []
    images = torch.zeros(count, SIZE, SIZE, dtype=torch.uint8, device=device)
    for _ in range(LATENCY_REPEATS):
        start = time.perf_counter()
        evaluation.predict(model, images, 0, 1).cpu()  # waits for a GPU
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def sampling_error(values: np.ndarray) -> float:
    """Return the standard error of a mean over test images, of which there could be others."""
    return float(values.std() / len(values) ** 0.5)


def calibrate(run: Run, dataset: Dataset) -> tuple[float, np.ndarray]:
    """Return the temperature that fits the validation images, and test probabilities with it."""
    labels = dataset.labels[dataset.validation].cpu()
    temperature = evaluation.fit_temperature(run.logits["validation"], labels)
    return temperature, (run.logits["test"] / temperature).softmax(1).numpy()


def measure(run: Run, dataset: Dataset) -> dict[str, Any]:
    """Return the results of a run; averages over mirror images only if it was trained on them."""
    labels, logits = dataset.test_labels.cpu(), run.logits
    averaged = evaluation.average_over_flip(logits["test"], logits["mirrored"])
    flipped = evaluation.accuracy(averaged, labels) if run.recipe.flip else None
    return {
        "seed": run.seed,
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "train_seconds": run.seconds,
        "validation_accuracy": run.history[-1]["validation_accuracy"],
        "test_accuracy": evaluation.accuracy(logits["test"], labels),
        "test_sampling_error": sampling_error((logits["test"].argmax(1) == labels).numpy()),
        "flip_averaged_accuracy": flipped,
    }


def compare(series: Mapping[str, Sequence[Run]], dataset: Dataset) -> dict[str, Any]:
    """Return the content of comparison.json for runs of each network with the same seeds."""
    labels, differences = dataset.test_labels.cpu(), []
    models = {name: summarize_runs(runs, dataset) for name, runs in series.items()}
    seeds = [run.seed for run in next(iter(series.values()))]
    for names in combinations(series, 2):
        correct = [(series[name][0].logits["test"].argmax(1) == labels).numpy() for name in names]
        pair = [models[name]["test_accuracy"]["values"] for name in names]
        mcnemar = {"first": names[0], "second": names[1], "seed": seeds[0]}
        difference = {
            "of": f"{names[1]} - {names[0]}",
            "test_accuracy": compare_paired(*pair),
            "test_sampling_error": sampling_error(correct[1] * 1.0 - correct[0]),
            "mcnemar_of_first_seed": mcnemar | mcnemar_exact(*correct),
        }
        differences.append(difference)
    return {"dataset": dataset.title, "seeds": seeds, "models": models, "differences": differences}


def summarize_runs(runs: Sequence[Run], dataset: Dataset) -> dict[str, Any]:
    """Summarize one network over its seeds."""
    labels, model = dataset.test_labels.cpu(), runs[0].model
    matrices = [evaluation.confusion_matrix(run.logits["test"], labels) for run in runs]
    scores = [evaluation.scores_by_class(matrix) for matrix in matrices]
    probabilities = [run.probabilities for run in runs]
    measures = [measure(run, dataset) for run in runs]
    values = {key: [each[key] for each in measures] for key in AVERAGED}
    error = lambda each: evaluation.calibration(each, labels.numpy()).error  # noqa: E731
    temperatures, calibrated = zip(*(calibrate(run, dataset) for run in runs), strict=True)
    values["temperature"] = temperatures
    values["expected_calibration_error"] = [error(each.numpy()) for each in probabilities]
    values["error_after_temperature_scaling"] = [error(each) for each in calibrated]
    summaries = {k: None if None in v else summarize_values(v) for k, v in values.items()}
    return summaries | {
        "test_sampling_error": measures[0]["test_sampling_error"],
        "ensemble_accuracy": evaluation.accuracy(torch.stack(probabilities).sum(0), labels),
        "by_class": {
            name: {key: summarize_values([s[key][i].item() for s in scores]) for key in scores[0]}
            for i, name in enumerate(CLASSES)
        },
        "confusion_matrix": np.sum(matrices, axis=0).tolist(),
        "parameters": measures[0]["parameters"],
        "multiply_accumulates": count_multiply_accumulates(model),
        "latency_seconds": {str(n): measure_latency(model, n) for n in LATENCY_BATCHES},
        "tested_at": [run.tested_at for run in runs],
    }


class Suspect(NamedTuple):
    """An image whose label may be wrong, because every run gives it a low probability."""

    part: str  # "test" or "validation"
    image: int  # index in the test file, or in the training file for a validation image
    label: str
    highest_probability: float  # that any run gives the label
    suggestion: str  # the class with the highest mean probability over all runs
    mean_probability: float  # of the suggestion


def find_suspects(runs: Sequence[Run], dataset: Dataset) -> list[Suspect]:
    """Return the images whose label every run rejects, those with the surest suggestion first."""
    suspects, held_out = [], dataset.validation.cpu()
    for part, indices, labels in (
        ("test", torch.arange(len(dataset.test_labels)), dataset.test_labels.cpu()),
        ("validation", held_out, dataset.labels.cpu()[held_out]),
    ):
        probabilities = torch.stack([run.logits[part] for run in runs]).softmax(2)
        highest = probabilities[:, torch.arange(len(labels)), labels].amax(0)
        mean = probabilities.mean(0)
        for i in (highest <= SUSPICIOUS).nonzero()[:, 0]:
            given = part, int(indices[i]), CLASSES[labels[i]], highest[i].item()
            suspects.append(Suspect(*given, CLASSES[mean[i].argmax()], mean[i].max().item()))
    return sorted(suspects, key=lambda suspect: -suspect.mean_probability)
