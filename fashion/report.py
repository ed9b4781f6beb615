"""Results for people and programs: console tables, metrics.json, comparison.json and pictures."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fashion import plots
from fashion.checkpoint import SUFFIX
from fashion.comparison import find_suspects, suspects_csv
from fashion.data import CLASS_NAMES, SYNTHETIC, Dataset
from fashion.environment import collect_versions, describe_device
from fashion.evaluation import calibrate
from fashion.files import write_file, write_json
from fashion.plots import Style
from fashion.runs import Run
from fashion.training import Trainer

METRICS_NAME = "metrics.json"

# Endings of the files that belong to one model, and the files that compare models.
MODEL_ENDINGS = (SUFFIX, "_loss.png", "_correct.png", "_incorrect.png", "_confusion.png")
COMPARISON_FILES = (
    "comparison.json",
    "comparison.png",
    "learning_curves.png",
    "calibration.png",
    "suspect_labels.png",
    "suspect_labels.csv",
)


def result_files(names: Iterable[str]) -> list[str]:
    """Return the names of all files that results of these models can consist of."""
    of_models = [f"{name}{ending}" for name in names for ending in MODEL_ENDINGS]
    return [*of_models, METRICS_NAME, *COMPARISON_FILES]


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
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_left} min"
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
    print(
        f"{'epoch':>9}  {'train loss':>10}  {'val loss':>8}  {'train acc':>9}  {'val acc':>7}  "
        f"{'learn rate':>10}  {'seconds':>7}  time left"
    )


def print_epoch(trainer: Trainer, resumed_at: int = 0) -> None:
    """Print the last epoch of a training and the time left.

    Args:
        trainer: Has finished at least one epoch.
        resumed_at: Number of epochs that an earlier process trained; its speed does not count.
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
    print(f"\nResults on {dataset.title}")
    print(
        f"{'model':<5}  {'parameters':>10}  {'train time':>12}  {'val acc':>7}  {'test acc':>8}  "
        f"{'flip-averaged':>13}"
    )
    for name, run in runs.items():
        print(
            f"{name.upper():<5}  {run.parameters:>10,}  {format_duration(run.train_seconds):>12}  "
            f"{run.history[-1]['validation_accuracy']:>7.2%}  {run.test.accuracy:>8.2%}  "
            f"{run.flip_averaged_accuracy:>13.2%}"
        )
    if dataset.name == SYNTHETIC:
        print("The images were drawn by a program: these results say nothing about Fashion-MNIST.")


def print_comparison(comparison: Mapping[str, Any]) -> None:
    """Print the statistics over seeds: each model, the differences, and the classes."""
    print(f"\nSeeds {', '.join(map(str, comparison['seeds']))} on {comparison['dataset']}")
    for name, model in comparison["models"].items():
        accuracy, averaged = model["test_accuracy"], model["flip_averaged_accuracy"]
        values = " ".join(f"{value:.2%}" for value in accuracy["values"])
        error = model["expected_calibration_error"]["mean"]
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
            f"95 % interval {_format_interval(accuracy['ci95'])}, "
            f"range {accuracy['min']:.2%} to {accuracy['max']:.2%}\n"
            f"  averaged over each image and its mirror image: mean {averaged['mean']:.2%}, "
            f"standard deviation {averaged['std']:.2%}\n"
            f"  expected calibration error {error:.2%}; {model['parameters']:,} parameters, "
            f"{model['multiply_accumulates']:,} multiply-accumulates per image\n"
            f"  {format_duration(model['train_seconds']['mean'])} of training; {latencies}\n"
            f"  seeds per model to detect a difference of {seeds}"
        )
    for difference in comparison["differences"]:
        accuracy, mcnemar = difference["test_accuracy"], difference["mcnemar_of_first_seed"]
        print(
            f"{difference['of'].upper()}: {accuracy['mean']:+.2%} "
            f"(95 % interval {_format_interval(accuracy['ci95'])}), paired by seed; McNemar's "
            f"exact test on seed {mcnemar['seed']}: {mcnemar['only_first_correct']} images only "
            f"{mcnemar['first'].upper()} correct, {mcnemar['only_second_correct']} only "
            f"{mcnemar['second'].upper()}, p = {mcnemar['p_value']:.2g}"
        )
    _print_class_table(comparison["models"])


def _print_class_table(models: Mapping[str, Any]) -> None:
    """Print precision, recall and F1 of each class with half the width of their intervals."""
    measures = ("precision", "recall", "f1")
    heads = "".join(f"{name.upper() + ' ' + m:>17}" for name in models for m in measures)
    print(f"\n{'class':<11}{heads}   (%, ± half the 95 % interval)")
    for label in CLASS_NAMES:
        cells = ""
        for model in models.values():
            for measure in measures:
                values = model["by_class"][label][measure]
                half = (values["ci95"][1] - values["ci95"][0]) / 2
                cells += f"{100 * values['mean']:>11.1f} ± {100 * half:>3.1f}"
        print(f"{label:<11}{cells}")


def _format_interval(interval: Sequence[float]) -> str:
    """Return an interval of fractions in percent."""
    return " to ".join(f"{end:.2%}" for end in interval)


def collect_metrics(
    dataset: Dataset, runs: Mapping[str, Run], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content of metrics.json.

    Args:
        dataset: What the models were trained and scored on.
        runs: One run of each model, all with the same seed.
        settings: Settings of the command that are not part of a recipe.
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
        "models": {name: run.figures() for name, run in runs.items()},
    }


def draw_runs(
    dataset: Dataset, runs: Mapping[str, Run], styles: Mapping[str, Style]
) -> dict[str, Figure]:
    """Return the figures of one run of each model, by file name."""
    images, labels = dataset.test_images.cpu().numpy(), dataset.test_labels.cpu().numpy()
    figures = {}
    for name, run in runs.items():
        style = styles[name]
        figures[f"{name}_loss.png"] = plots.draw_learning_curves(run.history, style, dataset.title)
        for kind in ("correct", "incorrect"):
            figures[f"{name}_{kind}.png"] = plots.draw_predictions(
                images, labels, run.probabilities, kind == "correct", style, dataset.title
            )
        figures[f"{name}_confusion.png"] = plots.draw_confusion(
            run.test.confusion_matrix, style, dataset.title
        )
    return figures


def write_figures(out: Path, figures: Mapping[str, Figure]) -> None:
    """Write figures into a folder under their names.

    Raises:
        RunError: If one cannot be written.
    """
    for name, figure in figures.items():
        plots.save_figure(figure, out / name)


def write_comparison(
    out: Path,
    dataset: Dataset,
    runs: Mapping[str, Sequence[Run]],
    comparison: dict[str, Any],
    styles: Mapping[str, Style],
) -> None:
    """Write the comparison of models, and of seeds if there are several.

    Args:
        out: Folder to write to.
        dataset: What the models were trained and scored on.
        runs: The runs of each model, with the same seeds in the same order.
        comparison: The result of comparison.compare for these runs.
        styles: Style of each model.

    Raises:
        RunError: If a file cannot be written.
    """
    figures = {"comparison.png": plots.draw_comparison(comparison, styles)}
    if len(comparison["seeds"]) == 1:
        write_figures(out, figures)
        return
    labels = dataset.test_labels.cpu().numpy()
    histories = {name: [run.history for run in finished] for name, finished in runs.items()}
    pooled = {
        name: calibrate(
            np.concatenate([run.probabilities for run in finished]), np.tile(labels, len(finished))
        )
        for name, finished in runs.items()
    }
    suspects = find_suspects([run for finished in runs.values() for run in finished], dataset)
    figures |= {
        "learning_curves.png": plots.draw_series(histories, styles, dataset.title),
        "calibration.png": plots.draw_calibration(pooled, comparison, styles),
        "suspect_labels.png": plots.draw_suspects(suspects, dataset),
    }
    write_json(out / "comparison.json", comparison)
    write_file(out / "suspect_labels.csv", suspects_csv(suspects).encode())
    write_figures(out, figures)
