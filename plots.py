"""The figures of training and comparison, and the style of all. save_figure writes one.

Figures are made without pyplot: nothing is shown, nothing global is changed.
"""

import io
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, PercentFormatter

from comparison import CALIBRATION_BINS, Calibration, Suspect
from data import CLASS_NAMES, Dataset
from files import write_file

# The palette of Okabe and Ito (https://jfly.uni-koeln.de/color), made for colour-blind readers.
BLUE, VERMILION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6E6E6E"
MODEL_COLOURS = {"ffn": VERMILION, "cnn": BLUE}
MODEL_MARKS = {"ffn": "s", "cnn": "o"}
# Signed numbers: red above, blue below, white at zero. Counts and activations: dark is much.
DIVERGING, SEQUENTIAL = "RdBu_r", "Blues"
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "figure.titlesize": 13,
    "figure.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "legend.frameon": False,
    "image.cmap": "gray",
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.06,
    "figure.constrained_layout.h_pad": 0.06,
    "savefig.dpi": 130,
}
GRID_ROWS = GRID_COLUMNS = 5  # of the prediction grids
SMALLEST_BIN = 0.002  # share of the images, of a bin in the reliability diagram
CONFUSIONS_SHOWN = 5  # of each model, in the comparison

FigureMaker = Callable[..., Figure]


def styled(make: FigureMaker) -> FigureMaker:
    """Apply STYLE while the figure is made, and to nothing else."""

    @wraps(make)
    def make_styled(*args: object, **kwargs: object) -> Figure:
        with matplotlib.rc_context(STYLE):
            return make(*args, **kwargs)

    return make_styled


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all.

    Raises:
        WorldFault: when the file cannot be written.
    """
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="png")
    write_file(path, buffer.getvalue())


@styled
def draw_learning_curves(history: Sequence[dict[str, float]], model: str, dataset: str) -> Figure:
    """Draw loss and accuracy of training and validation by epoch, side by side.

    Args:
        history: entries as Trainer.train_epoch returns them.
        model: a key of MODEL_COLOURS.
        dataset: what the title says that the pictures are.
    """
    figure = Figure(figsize=(11, 4.6))
    figure.suptitle(f"{model.upper()} on {dataset}: learning curves")
    epochs = [entry["epoch"] for entry in history]
    # One epoch is one point, which a line would not show.
    marker = "o" if len(epochs) < 3 else ""
    for axes, measure, unit in zip(
        figure.subplots(1, 2),
        ("loss", "accuracy"),
        ("cross-entropy (nats)", "accuracy"),
        strict=True,
    ):
        for part, colour, line in (
            ("train", GREY, "--"),
            ("validation", MODEL_COLOURS[model], "-"),
        ):
            values = [entry[f"{part}_{measure}"] for entry in history]
            last = f"{values[-1]:.3f}" if measure == "loss" else f"{values[-1]:.1%}"
            label = f"{'training' if part == 'train' else part}, at the end {last}"
            axes.plot(epochs, values, line, color=colour, marker=marker, lw=2, label=label)
        # The first epochs lie so far off that they would flatten all that comes after.
        shown = [
            entry[f"{part}_{measure}"]
            for entry in history[len(history) // 10 :]
            for part in ("train", "validation")
        ]
        margin = 0.05 * (max(shown) - min(shown) or 1)
        axes.set_ylim(min(shown) - margin, max(shown) + margin)
        axes.set(title=measure.capitalize(), xlabel="epoch", ylabel=unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()
        if measure == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    figure.supxlabel(
        "Training is measured while learning, with dropout, augmentation and label smoothing on: "
        "it can look worse than validation.",
        fontsize=9,
        color=GREY,
    )
    return figure


def choose_examples(labels: np.ndarray, probabilities: np.ndarray, correct: bool) -> np.ndarray:
    """Choose up to 25 test images to show, spread over the true classes.

    The classes take turns. Of the incorrectly classified ones each class gives its most confident
    mistakes first, of the others simply its first in the test set.

    Args:
        labels: (N,), the true classes.
        probabilities: (N, 10), the predicted ones.
        correct: whether to choose among the correct predictions or the incorrect.

    Returns:
        Indices, in order of the class.
    """
    predictions, confidence = probabilities.argmax(1), probabilities.max(1)
    candidates = np.flatnonzero((predictions == labels) == correct)
    if not correct:
        candidates = candidates[np.argsort(-confidence[candidates], kind="stable")]
    # Each candidate's turn is its rank within its own class.
    turns = np.empty(len(candidates), dtype=int)
    for label in np.unique(labels):
        members = labels[candidates] == label
        turns[members] = np.arange(members.sum())
    first = candidates[np.argsort(turns, kind="stable")][: GRID_ROWS * GRID_COLUMNS]
    return first[np.argsort(labels[first], kind="stable")]


@styled
def draw_predictions(
    images: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
    correct: bool,
    model: str,
    dataset: str,
) -> Figure:
    """Draw up to 25 test images with the predicted class, its probability, and the true class.

    Args:
        images: uint8 (N, 28, 28), the whole test set; choose_examples picks from it.
        labels: (N,).
        probabilities: (N, 10).
        correct: whether to show correct predictions or mistakes.
        model: a key of MODEL_COLOURS.
        dataset: what the title says that the pictures are.
    """
    figure = Figure(figsize=(9.5, 11.5))
    what = "correct predictions" if correct else "most confident mistakes of each class"
    figure.suptitle(f"{model.upper()} on {dataset}: {what}")
    chosen = choose_examples(labels, probabilities, correct)
    panels = figure.subplots(GRID_ROWS, GRID_COLUMNS).flat
    for axes, index in zip(panels, chosen, strict=False):
        guess = probabilities[index].argmax()
        says = f"{CLASS_NAMES[guess]} {probabilities[index, guess]:.0%}"
        if not correct:
            says += f"\nis: {CLASS_NAMES[labels[index]]}"
        axes.imshow(images[index], vmin=0, vmax=255)
        axes.set_title(says, color=GREEN if correct else VERMILION, fontsize=10)
        axes.set_xlabel(f"test image {index}", fontsize=8, color=GREY)
    for axes in figure.axes:
        hide_axes(axes)
    if not len(chosen):
        figure.text(0.5, 0.5, "none: there is no such prediction", ha="center", color=GREY)
    return figure


@styled
def draw_confusion(matrix: Sequence[Sequence[int]], model: str, dataset: str) -> Figure:
    """Draw which class is taken for which, in percent of the true class.

    Args:
        matrix: (10, 10) images, rows the true class, columns the predicted one.
        model: a key of MODEL_COLOURS.
        dataset: what the title says that the pictures are.
    """
    counts = np.asarray(matrix)
    percent = 100 * counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    figure = Figure(figsize=(9.5, 8))
    figure.suptitle(f"{model.upper()} on {dataset}: what is taken for what")
    axes = figure.subplots()
    axes.grid(False)
    # A root-like scale: the mistakes, all below 25 %, are what the reader looks for.
    mesh = axes.imshow(percent, cmap=SEQUENTIAL, norm="asinh", vmin=0, vmax=100)
    for row, column in zip(*np.nonzero(counts), strict=True):
        value = percent[row, column]
        axes.text(
            column,
            row,
            f"{value:.1f}",
            ha="center",
            va="center",
            color="white" if mesh.norm(value) > 0.55 else "black",
            fontsize=9,
        )
    axes.set_xticks(range(len(CLASS_NAMES)), CLASS_NAMES, rotation=40, ha="right")
    axes.set_yticks(range(len(CLASS_NAMES)), CLASS_NAMES)
    axes.set(xlabel="predicted class", ylabel="true class")
    bar = figure.colorbar(mesh, shrink=0.8, label="share of the true class (%)")
    bar.set_ticks(
        [0, 1, 2, 5, 10, 20, 50, 100], labels=["0", "1", "2", "5", "10", "20", "50", "100"]
    )
    bar.minorticks_off()
    return figure


@styled
def draw_comparison(comparison: dict[str, Any]) -> Figure:
    """Draw the models side by side: accuracy, classes, confusions and cost.

    Args:
        comparison: what comparison.compare returns.
    """
    models, seeds = comparison["models"], comparison["seeds"]
    names = " and ".join(name.upper() for name in models)
    figure = Figure(figsize=(13, 9.5))
    figure.suptitle(f"{names} on {comparison['dataset']}, {_count(len(seeds), 'seed')} each")
    left, right = figure.subfigures(1, 2, width_ratios=(1.25, 1))
    by_class, confusions = left.subplots(2, 1, height_ratios=(1.25, 1))
    top, bottom = right.subfigures(2, 1, height_ratios=(1, 2.4))
    _draw_classes(by_class, models, "recall" if len(seeds) == 1 else "f1")
    _draw_confusions(confusions, models)
    _draw_accuracies(top.subplots(), models)
    costs = (
        ("Parameters", lambda model: model["parameters"], "{:,.0f}"),
        (
            "Multiply-accumulates a picture",
            lambda model: model["multiply_accumulates"] / 1e6,
            "{:,.1f} million",
        ),
        ("Training time", lambda model: model["train_seconds"]["mean"], "{:,.1f} s"),
        (
            "Time for 1,000 pictures",
            lambda model: 1000 * model["latency_seconds"]["1000"],
            "{:,.0f} ms",
        ),
    )
    for axes, (title, cost, text) in zip(bottom.subplots(len(costs), 1), costs, strict=True):
        values = {name: cost(model) for name, model in models.items()}
        _draw_bars(axes, values, text)
        axes.set_title(title, loc="left")
    return figure


def _count(number: int, noun: str) -> str:
    """Write a number with its noun: "1 seed", "5 seeds"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _draw_classes(axes: Axes, models: dict[str, Any], measure: str) -> None:
    """Draw a measure of each class for each model, with its 95 % interval over seeds."""
    means = {
        name: np.array([model["by_class"][label][measure]["mean"] for label in CLASS_NAMES])
        for name, model in models.items()
    }
    order = np.argsort(np.mean(list(means.values()), axis=0), kind="stable")
    heights = np.arange(len(order))
    ends = np.array([values[order] for values in means.values()])
    axes.hlines(heights, ends.min(0), ends.max(0), color="#CCCCCC", lw=3)
    for name, model in models.items():
        intervals = [model["by_class"][CLASS_NAMES[label]][measure]["ci95"] for label in order]
        values = means[name][order]
        errors = None
        if intervals[0]:
            errors = np.abs(np.array(intervals).T - values)
        axes.errorbar(
            values,
            heights,
            xerr=errors,
            fmt=MODEL_MARKS[name],
            color=MODEL_COLOURS[name],
            ms=7,
            capsize=3,
            label=name.upper(),
        )
    axes.set_yticks(heights, [CLASS_NAMES[label] for label in order])
    what = {"recall": "test accuracy", "f1": "F1"}[measure]
    note = ", with 95 % intervals over seeds" if measure == "f1" else ""
    axes.set_title(f"{what[0].upper()}{what[1:]} by class{note}", loc="left")
    axes.set_xlabel(what)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend(loc="lower right")


def _draw_confusions(axes: Axes, models: dict[str, Any]) -> None:
    """Draw each model's most frequent confusions, in percent of the true class."""
    labels, lengths, colours = [], [], []
    for name, model in models.items():
        matrix = np.array(model["confusion_matrix"], dtype=float)
        share = matrix / matrix.sum(1, keepdims=True).clip(min=1)
        np.fill_diagonal(share, 0)
        for place in np.argsort(-share, axis=None, kind="stable")[:CONFUSIONS_SHOWN]:
            true, guess = divmod(int(place), len(CLASS_NAMES))
            labels.append(f"{name.upper()}: {CLASS_NAMES[true]} taken for {CLASS_NAMES[guess]}")
            lengths.append(share[true, guess])
            colours.append(MODEL_COLOURS[name])
    heights = -np.arange(len(labels), dtype=float)
    bars = axes.barh(heights, lengths, color=colours, height=0.7)
    axes.bar_label(bars, [f"{length:.1%}" for length in lengths], padding=3, fontsize=9)
    axes.set_yticks(heights, labels, fontsize=9)
    axes.margins(x=0.12)
    axes.grid(visible=False, axis="y")
    axes.set_title("Most frequent confusions", loc="left")
    axes.set_xlabel("share of the true class")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _draw_accuracies(axes: Axes, models: dict[str, Any]) -> None:
    """Draw each seed's test accuracy, their mean and its 95 % interval."""
    for height, (name, model) in enumerate(reversed(models.items())):
        accuracy, colour = model["test_accuracy"], MODEL_COLOURS[name]
        text = f"{accuracy['mean']:.2%}"
        if accuracy["ci95"]:
            text += f" ± {100 * accuracy['std']:.2f}"
            axes.plot(accuracy["ci95"], [height, height], color=colour, lw=10, alpha=0.25)
            axes.plot(accuracy["mean"], height, "|", color=colour, ms=22, mew=2)
        values = accuracy["values"]
        axes.plot(values, [height] * len(values), MODEL_MARKS[name], color=colour, ms=6, alpha=0.8)
        axes.annotate(
            text,
            (accuracy["mean"], height),
            xytext=(0, 15),
            textcoords="offset points",
            ha="center",
            color=colour,
        )
    axes.set_yticks(range(len(models)), [name.upper() for name in reversed(models)])
    axes.set_ylim(-0.5, len(models) - 0.3)
    axes.margins(x=0.25)
    many = len(next(iter(models.values()))["test_accuracy"]["values"]) > 1
    note = " of each seed; mean ± deviation, 95 % interval" if many else ""
    axes.set_title(f"Test accuracy{note}", loc="left")
    axes.set_xlabel("test accuracy")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=1))


def _draw_bars(axes: Axes, values: dict[str, float], text: str) -> None:
    """Draw one horizontal bar a model from zero, with its value written behind it."""
    names = list(values)[::-1]
    bars = axes.barh(
        [name.upper() for name in names],
        [values[name] for name in names],
        color=[MODEL_COLOURS[name] for name in names],
        height=0.6,
    )
    axes.bar_label(bars, [text.format(values[name]) for name in names], padding=4)
    axes.margins(x=0.35)
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)


@styled
def draw_series(histories: dict[str, list[list[dict[str, float]]]], dataset: str) -> Figure:
    """Draw validation loss and accuracy by epoch: mean over seeds, and band of one deviation.

    Args:
        histories: for each key of MODEL_COLOURS the histories of its runs, equally long.
        dataset: what the title says that the pictures are.
    """
    figure = Figure(figsize=(11, 4.8))
    count = _count(len(next(iter(histories.values()))), "seed")
    figure.suptitle(f"Learning {dataset}: mean of {count}, band of one standard deviation")
    for axes, measure, unit in zip(
        figure.subplots(1, 2),
        ("loss", "accuracy"),
        ("cross-entropy (nats)", "accuracy"),
        strict=True,
    ):
        last = []
        for name, runs in histories.items():
            values = np.array([[entry[f"validation_{measure}"] for entry in run] for run in runs])
            # Models have epochs of their own, so the share of the training is what they share.
            progress = np.arange(1, values.shape[1] + 1) / values.shape[1]
            mean, deviation = values.mean(0), values.std(0, ddof=1)
            colour = MODEL_COLOURS[name]
            axes.fill_between(progress, mean - deviation, mean + deviation, color=colour, alpha=0.2)
            label = f"{name.upper()}, {values.shape[1]} epochs"
            axes.plot(progress, mean, color=colour, lw=2, label=label)
            last.append(mean[-1])
        # The first epochs would squeeze what tells the models apart into a corner.
        if measure == "loss":
            axes.set_ylim(0.5 * min(last), 2 * max(last))
        else:
            axes.set_ylim(1 - 2 * (1 - min(last)), 1 - 0.5 * (1 - max(last)))
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set(title=f"Validation {measure}", xlabel="training done", ylabel=unit)
        axes.legend(loc="upper right" if measure == "loss" else "lower right")
    return figure


@styled
def draw_calibration(calibrations: dict[str, Calibration], comparison: dict[str, Any]) -> Figure:
    """Draw a reliability diagram: how often predictions of a certain confidence are right.

    Args:
        calibrations: for each key of MODEL_COLOURS its runs' pooled test predictions.
        comparison: what comparison.compare returns, for the errors and the title.
    """
    figure = Figure(figsize=(7.5, 8))
    figure.suptitle(f"Can the probabilities be trusted?\nTest set of {comparison['dataset']}")
    axes, shares = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    axes.plot([0, 1], [0, 1], "--", color=GREY, label="right as often as confident")
    width = 1 / (2.5 * CALIBRATION_BINS)
    for shift, (name, calibration) in zip((-0.5, 0.5), calibrations.items(), strict=False):
        error = comparison["models"][name]["expected_calibration_error"]["mean"]
        # The accuracy of a handful of images says nothing.
        enough = calibration.share >= SMALLEST_BIN
        axes.plot(
            calibration.confidence[enough],
            calibration.accuracy[enough],
            f"{MODEL_MARKS[name]}-",
            color=MODEL_COLOURS[name],
            label=f"{name.upper()}, expected calibration error {error:.1%}",
        )
        shares.bar(
            calibration.centre + shift * width,
            calibration.share,
            width,
            color=MODEL_COLOURS[name],
        )
    axes.set(
        ylabel="fraction that is right", title="Above the diagonal: too modest, below: too sure"
    )
    axes.legend(loc="lower right")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    shares.set(xlabel="confidence: probability of the predicted class", ylabel="share of images")
    for axis in (shares.xaxis, shares.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


@styled
def draw_suspects(suspects: Sequence[Suspect], dataset: Dataset) -> Figure:
    """Draw the images whose label every run rejects, the surest first.

    Args:
        suspects: what comparison.find_suspects returns.
        dataset: where the images are.
    """
    columns = 8
    shown = suspects[: 5 * columns]
    rows = max(1, -(-len(shown) // columns))
    figure = Figure(figsize=(1.75 * columns, 2.35 * rows + 1))
    figure.suptitle(
        f"Which labels of {dataset.title} look wrong?\n"
        f"{len(suspects)} images whose given label every run rejects; the surest {len(shown)}"
    )
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes, suspect in zip(panels.flat, shown, strict=False):
        images = dataset.test_images if suspect.part == "test" else dataset.images
        axes.imshow(images[suspect.index].cpu().numpy(), vmin=0, vmax=255)
        axes.set_title(
            f"label: {CLASS_NAMES[suspect.label]}\n{CLASS_NAMES[suspect.suggestion]} "
            f"{suspect.agreement:.0%}",
            fontsize=9,
        )
        axes.set_xlabel(f"{suspect.part} {suspect.index}", fontsize=8, color=GREY)
    for axes in panels.flat:
        hide_axes(axes)
    if not suspects:
        figure.text(0.5, 0.5, "none: every label has a run that accepts it", ha="center")
    return figure


@styled
def draw_benchmark(models: dict[str, dict[str, Any]]) -> Figure:
    """Draw how the two loops compare, and how the time of an epoch grows.

    Args:
        models: for each key of MODEL_COLOURS what benchmark.compare_loops returns, and under
            "growth" what benchmark.measure_growth does.
    """
    figure = Figure(figsize=(12, 4.6))
    figure.suptitle("What does training cost?")
    speed, images, width = figure.subplots(1, 3)
    names = list(models)
    bar = 0.38
    for shift, key, label, shade in (
        (-0.5, "classic_images_per_second", "classic", 0.4),
        (0.5, "images_per_second", "ours", 1),
    ):
        bars = speed.bar(
            np.arange(len(names)) + shift * bar,
            [models[name][key] for name in names],
            bar,
            color=[MODEL_COLOURS[name] for name in names],
            alpha=shade,
        )
        speed.bar_label(bars, [f"{label}\n{models[name][key]:,.0f}" for name in names], fontsize=9)
    speed.set_xticks(range(len(names)), [name.upper() for name in names])
    speed.margins(y=0.15)
    speed.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    speed.grid(visible=False, axis="x")
    speed.set(title="Both loops, same network", ylabel="images a second")
    for axes, key, title, label in (
        (images, "seconds_by_images", "More images", "training images"),
        (width, "seconds_by_width", "Wider layers", "width, times the default"),
    ):
        for name, model in models.items():
            steps = {float(size): time for size, time in model["growth"][key].items()}
            axes.plot(
                list(steps),
                list(steps.values()),
                f"{MODEL_MARKS[name]}-",
                color=MODEL_COLOURS[name],
                label=name.upper(),
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(list(steps), [f"{size:,g}" for size in steps])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.minorticks_off()
        axes.set(title=title, xlabel=label, ylabel="seconds an epoch (log scale)")
        axes.legend()
    return figure


def hide_axes(axes: Axes) -> None:
    """Leave of a panel's axes a thin frame, and of an empty panel nothing."""
    axes.grid(False)
    axes.set(xticks=[], yticks=[])
    axes.set_frame_on(axes.has_data())
    for spine in axes.spines.values():
        spine.set(visible=True, color="#BBBBBB", linewidth=0.8)
