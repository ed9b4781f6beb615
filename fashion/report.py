"""Results for people and programs: console tables, metrics.json, comparison.json and pictures."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from fashion import plots
from fashion.checkpoint import SUFFIX
from fashion.comparison import find_suspects, suspects_csv
from fashion.data import CLASS_NAMES, SYNTHETIC, Dataset
from fashion.environment import collect_versions, describe_device
from fashion.evaluation import measure_calibration
from fashion.files import write_file, write_json
from fashion.plots import Style
from fashion.runs import Run, save_weights
from fashion.training import Trainer

METRICS_NAME, PAGE_NAME, PREDICTION_NAME = "metrics.json", "report.html", "prediction.png"
SYNTHETIC_NOTE = "The images are synthetic: these results say nothing about Fashion-MNIST."

# Captions of all pictures, in the order in which report.html shows them: by name or, for pictures
# of one model, by ending. README.md shows the same captions.
CAPTIONS = {
    "comparison.png": "Results by class, most frequent confusions, and costs of the models.",
    "learning_curves.png": "Validation loss and accuracy of the models, averaged over the seeds.",
    "_loss.png": "Loss and accuracy on training and validation images by epoch.",
    "_confusion.png": "Confusion matrix of the test images in percent of the true class.",
    "_incorrect.png": "The most confident errors of each class.",
    "_correct.png": "Correct predictions and their uncalibrated probabilities.",
    "calibration.png": "Accuracy of predictions by their confidence, before calibration.",
    "suspect_labels.png": "Labels that look wrong, because all runs give them a low probability.",
    "kernel_grid.png": "Kernels of a convolution before and after training.",
    "training.gif": "Kernels of the first convolution during training.",
    "image_transform_grid.png": "Feature maps of a convolution for one image.",
    "feature_progression.png": "From image to prediction: the activations of each layer.",
    "top_activations.png": "The images that most activate a layer's most class-selective units.",
    "saliency.png": "Saliency maps: red pixels support the prediction, blue pixels oppose it.",
    "embedding.png": "t-SNE map of the last hidden layer, coloured by class.",
    PREDICTION_NAME: "What the models see in your own pictures, and which pixels decide.",
}
# Endings of the files that belong to one model, and the names of all others.
MODEL_ENDINGS = (SUFFIX, *(name for name in CAPTIONS if name.startswith("_")))
OTHER_FILES = (
    METRICS_NAME,
    "comparison.json",
    "suspect_labels.csv",
    *(name for name in CAPTIONS if not name.startswith("_") and name != PREDICTION_NAME),
    PAGE_NAME,
)


def result_files(names: Iterable[str]) -> list[str]:
    """Return the names of all files that results of these models can consist of.

    They include figures of what a model has learned, which new models make obsolete, but not the
    predictions for the user's own pictures.
    """
    of_models = [f"{name}{ending}" for name in names for ending in MODEL_ENDINGS]
    return [*of_models, *OTHER_FILES]


def describe_results(folder: Path) -> str | None:
    """Return which results a folder holds, or None if there are none or they cannot be read."""
    try:
        metrics = json.loads((folder / METRICS_NAME).read_bytes())
        epochs = (f"{name} {len(run['history'])}" for name, run in metrics["models"].items())
        return f"seed {metrics['seed']}, epochs: {', '.join(epochs)}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def format_duration(seconds: float) -> str:
    """Return a duration such as "8.4 s", "2 min 5 s" or "1 h 10 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(math.floor(seconds + 0.5), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def print_dataset(dataset: Dataset) -> None:
    """Print the sizes of the dataset's parts and its pixel statistics."""
    print(
        f"{dataset.title}: {len(dataset.train_indices):,} training, "
        f"{len(dataset.validation_indices):,} validation and {len(dataset.test_images):,} test "
        f"images; pixel mean {dataset.mean:.4f}, standard deviation {dataset.std:.4f}"
    )


def print_epoch_header() -> None:
    """Print the header of the table of epochs."""
    print("    epoch  train loss  val loss  train acc  val acc          lr  seconds  time left")


def print_epoch(trainer: Trainer, resumed_at: int = 0) -> None:
    """Print the last epoch of a training and the time left.

    An earlier process trained the epochs up to resumed_at; its speed does not count.
    """
    row, epochs = trainer.history[-1], trainer.recipe.epochs
    seconds = trainer.epoch_seconds[resumed_at:]
    left = sum(seconds) / len(seconds) * (epochs - row["epoch"])
    print(
        f"{row['epoch']:>4}/{epochs:<4}  {row['train_loss']:>10.4f}  "
        f"{row['validation_loss']:>8.4f}  {row['train_accuracy']:>9.2%}  "
        f"{row['validation_accuracy']:>7.2%}  {row['learning_rate']:>10.2e}  "
        f"{seconds[-1]:>7.1f}  {format_duration(left)}",
        flush=True,
    )


def print_results(dataset: Dataset, runs: Mapping[str, Run]) -> None:
    """Print one row per model: size, training time and accuracies."""
    print(f"\nResults on {dataset.title}, seed {next(iter(runs.values())).seed}")
    print("model  parameters    train time  val acc  test acc  flip-averaged")
    for name, run in runs.items():
        print(
            f"{name.upper():<5}  {run.parameters:>10,}  {format_duration(run.train_seconds):>12}  "
            f"{run.history[-1]['validation_accuracy']:>7.2%}  {run.test.accuracy:>8.2%}  "
            f"{run.flip_averaged_accuracy:>13.2%}"
        )
    note = "flip-averaged: predictions averaged over each image and its mirror image"
    without = [name.upper() for name, run in runs.items() if not run.metadata["recipe"]["flip"]]
    if without:
        note += f" ({', '.join(without)} trained without mirror images)"
    print(note)
    if dataset.name == SYNTHETIC:
        print(SYNTHETIC_NOTE)


def print_comparison(comparison: Mapping[str, Any]) -> None:
    """Print the statistics over seeds: each model, the differences, and the classes."""
    print(f"\nSeeds {', '.join(map(str, comparison['seeds']))} on {comparison['dataset']}")
    for name, model in comparison["models"].items():
        accuracy, averaged = model["test_accuracy"], model["flip_averaged_accuracy"]
        values = " ".join(f"{value:.2%}" for value in accuracy["values"])
        latencies = ", ".join(
            f"{1000 * seconds:.1f} ms for {count} image{'' if count == '1' else 's'}"
            for count, seconds in model["latency_seconds"].items()
        )
        seeds = ", ".join(
            f"{100 * float(difference):g} points: {count}"
            for difference, count in model["seeds_needed"].items()
        )
        print(
            f"{name.upper()}: test accuracy {values}\n"
            f"  mean {accuracy['mean']:.2%}, standard deviation {accuracy['std']:.2%}, "
            f"{_format_interval(accuracy)}, range {accuracy['min']:.2%} to {accuracy['max']:.2%}\n"
            f"  predictions averaged over each image and its mirror image: "
            f"mean {averaged['mean']:.2%}, standard deviation {averaged['std']:.2%}\n"
            f"  predictions averaged over the {len(accuracy['values'])} networks: "
            f"{model['ensemble_accuracy']:.2%}\n"
            f"  expected calibration error {model['expected_calibration_error']['mean']:.2%}; "
            f"{model['parameters']:,} parameters, "
            f"{model['multiply_accumulates']:,} multiply-accumulates per image\n"
            f"  {format_duration(model['train_seconds']['mean'])} of training; {latencies}\n"
            f"  seeds per model to detect a difference of {seeds}"
        )
    for difference in comparison["differences"]:
        accuracy, mcnemar = difference["test_accuracy"], difference["mcnemar_of_first_seed"]
        print(
            f"{difference['of'].upper()}: {100 * accuracy['mean']:+.2f} points "
            f"({_format_interval(accuracy, '')}), paired by seed; McNemar's "
            f"exact test on seed {mcnemar['seed']}: {mcnemar['only_first_correct']} images "
            f"classified correctly only by {mcnemar['first'].upper()}, "
            f"{mcnemar['only_second_correct']} only by {mcnemar['second'].upper()}, "
            f"p = {mcnemar['p_value']:.2g}"
        )
    models, measures = comparison["models"], ("precision", "recall", "f1")
    heads = "".join(
        f"{f'{name.upper()} {measure}':>17}" for name, measure in product(models, measures)
    )
    print(f"\n{'class':<11}{heads}   (%, ± half the 95 % interval)")
    for label in CLASS_NAMES:
        cells = ""
        for model, measure in product(models.values(), measures):
            values = model["by_class"][label][measure]
            low, high = values["ci95"]
            cells += f"{100 * values['mean']:>11.1f} ± {100 * (high - low) / 2:>3.1f}"
        print(f"{label:<11}{cells}")


def _format_interval(summary: Mapping[str, Any], unit: str = "%") -> str:
    """Return the interval of a mean, see comparison.summarize_values, in percent."""
    return "95 % interval " + " to ".join(f"{100 * end:.2f}{unit}" for end in summary["ci95"])


def collect_metrics(
    dataset: Dataset, runs: Mapping[str, Run], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content of metrics.json for one run of each model, all with the same seed.

    The settings are those of the command that are not part of a recipe.
    """
    return {
        "dataset": {
            "name": dataset.name,
            "title": dataset.title,
            "train_images": len(dataset.train_indices),
            "validation_images": len(dataset.validation_indices),
            "test_images": len(dataset.test_images),
            "mean": dataset.mean,
            "std": dataset.std,
        },
        "seed": next(iter(runs.values())).seed,
        "settings": {
            **settings,
            "recipes": {name: run.metadata["recipe"] for name, run in runs.items()},
            "models": {name: run.metadata["arguments"] for name, run in runs.items()},
        },
        "device": describe_device(dataset.images.device),
        "versions": collect_versions(),
        "models": {name: run.measurements() for name, run in runs.items()},
    }


def write_run(out: Path, dataset: Dataset, run: Run, style: Style) -> None:
    """Write the weights and the figures of one run; RunError if a file cannot be written."""
    save_weights(out / f"{run.name}{SUFFIX}", run)
    images, labels = dataset.test_images.cpu().numpy(), dataset.test_labels.cpu().numpy()
    figures = {
        "loss": plots.draw_loss(run.history, style, dataset.title),
        "confusion": plots.draw_confusion(run.test.confusion_matrix, style, dataset.title),
    }
    for kind in ("correct", "incorrect"):
        figures[kind] = plots.draw_predictions(
            images, labels, run.probabilities, kind == "correct", style, dataset.title
        )
    for kind, figure in figures.items():
        plots.save_figure(figure, out / f"{run.name}_{kind}.png")


def write_comparison(
    out: Path,
    dataset: Dataset,
    runs: Mapping[str, Sequence[Run]],
    comparison: dict[str, Any],
    styles: Mapping[str, Style],
) -> None:
    """Write the comparison of models, and of seeds if there are several; RunError if that fails.

    The runs of each model have the same seeds in the same order. The comparison is what
    comparison.compare returns for them.
    """
    figures = {"comparison": plots.draw_comparison(comparison, styles)}
    if len(comparison["seeds"]) > 1:
        labels = dataset.test_labels.cpu().numpy()
        histories = {name: [run.history for run in series] for name, series in runs.items()}
        pooled = {
            name: measure_calibration(
                np.concatenate([run.probabilities for run in series]), np.tile(labels, len(series))
            )
            for name, series in runs.items()
        }
        suspects = find_suspects([run for series in runs.values() for run in series], dataset)
        figures |= {
            "learning_curves": plots.draw_learning_curves(histories, styles, dataset.title),
            "calibration": plots.draw_calibration(pooled, comparison, styles),
            "suspect_labels": plots.draw_suspects(suspects, dataset),
        }
        write_json(out / "comparison.json", comparison)
        write_file(out / "suspect_labels.csv", suspects_csv(suspects).encode())
    for name, figure in figures.items():
        plots.save_figure(figure, out / f"{name}.png")
