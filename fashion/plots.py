"""Figures of training and comparison, and the common style of all figures.

Figures are made without pyplot: no window opens and no global state changes. Functions that draw
take the style of a model, or the styles of several models by name, and the title of the dataset.
"""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from fashion.comparison import SUSPECT_PROBABILITY, Suspect
from fashion.data import CLASS_NAMES, Dataset
from fashion.evaluation import CALIBRATION_BINS, Calibration
from fashion.files import write_file

# The palette of Okabe and Ito (https://jfly.uni-koeln.de/color), made for colour-blind readers.
VERMILION, GREEN = "#D55E00", "#009E73"
MODEL_COLOURS = (VERMILION, "#0072B2", GREEN, "#CC79A7", "#E69F00", "#56B4E9")
MODEL_MARKERS = ("s", "o", "^", "D", "v", "P", "X")
GREY = "#6E6E6E"
DIVERGING, SEQUENTIAL = "RdBu_r", "Blues"  # for signed and for non-negative values
STYLE: dict[Any, Any] = {
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
    "text.parse_math": False,  # names of files may contain dollar signs
}
GRID_ROWS = GRID_COLUMNS = 5  # of the figures of predictions
SUSPECT_ROWS, SUSPECT_COLUMNS = 5, 8
CONFUSIONS_SHOWN = 5  # per model
COSTS = (  # title, format and value of the panels of costs
    ("Parameters", "{:,.0f}", lambda m: m["parameters"]),
    ("Multiply-accumulates per image", "{:,.1f} M", lambda m: m["multiply_accumulates"] / 1e6),
    ("Training time", "{:,.1f} s", lambda m: m["train_seconds"]["mean"]),
    ("Inference time for 1,000 images", "{:,.1f} ms", lambda m: 1e3 * m["latency_seconds"]["1000"]),
)

History = Sequence[Mapping[str, float]]
Cell = tuple[np.ndarray, str, str]  # image, title above it, caption below


@dataclass(frozen=True)
class Style:
    """How a model appears in figures: its name in titles and legends, colour and marker."""

    label: str
    colour: str
    marker: str


def assign_styles(names: Iterable[str]) -> dict[str, Style]:
    """Return a style for each model name; the label is the name in capitals."""
    looks = zip(names, cycle(MODEL_COLOURS), cycle(MODEL_MARKERS), strict=False)
    return {name: Style(name.upper(), colour, marker) for name, colour, marker in looks}


@contextmanager
def styled() -> Iterator[None]:
    """Apply STYLE while a figure is made or saved, as a decorator or in a with statement."""
    with matplotlib.rc_context(STYLE):
        yield


def make_figure(title: str, width: float, height: float) -> Figure:
    """Return an empty figure with a title, its size in inches."""
    figure = Figure(figsize=(width, height))
    figure.suptitle(title)
    return figure


@styled()
def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically.

    Raises:
        RunError: If the file cannot be written.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_file(path, buffer.getvalue())


def percent(value: float, _: object = None) -> str:
    """Return the label of a tick at a fraction, with as many decimals as necessary."""
    return f"{round(100 * value, 6) + 0:g}%".replace("-", "−")


def format_percent(*axes: Axis) -> None:
    """Label axes of fractions in percent."""
    for axis in axes:
        axis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10]))
        axis.set_major_formatter(percent)


def group_bars(count: int, width: float = 0.8) -> tuple[np.ndarray, float]:
    """Return the offsets of bars from the centre of a group of this width, and a bar's width."""
    return (np.arange(count) - (count - 1) / 2) * width / count, width / count


def hide_axes(*panels: Axes) -> None:
    """Reduce the axes of panels to a thin frame; hide empty panels."""
    for axes in panels:
        axes.grid(False)
        axes.set(xticks=[], yticks=[], frame_on=axes.has_data())
        axes.spines[:].set(visible=True, color="#BBBBBB", linewidth=0.8)


# One model


@styled()
def draw_loss(history: History, style: Style, dataset: str) -> Figure:
    """Draw loss and accuracy of training and validation by epoch; see Trainer.validate."""
    figure = make_figure(f"Learning curves, {style.label} on {dataset}", 11, 4.6)
    epochs = [entry["epoch"] for entry in history]
    marker = "o" if len(epochs) < 3 else ""  # a line does not show a single epoch
    parts = (("train", "training", GREY, "--"), ("validation", "validation", style.colour, "-"))
    for axes, measure in _loss_and_accuracy(figure):
        for part, name, colour, line in parts:
            values = [entry[f"{part}_{measure}"] for entry in history]
            final = f"{values[-1]:.3f}" if measure == "loss" else f"{values[-1]:.1%}"
            label = f"{name}, final {final}"
            axes.plot(epochs, values, line, color=colour, marker=marker, lw=2, label=label)
        axes.set(title=measure.capitalize(), xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.legend()
    note = "Training values are means over each epoch, with the recipe's dropout, augmentation and "
    note += "label smoothing, if it has them; they can be worse than validation values."
    figure.supxlabel(note, fontsize=9, color=GREY)
    return figure


def _loss_and_accuracy(figure: Figure) -> Iterator[tuple[Axes, str]]:
    """Yield axes for the loss and for the accuracy, each with the name of its measure."""
    loss, accuracy = figure.subplots(1, 2)
    loss.set_ylabel("cross-entropy (nats)")
    accuracy.set_ylabel("accuracy")
    format_percent(accuracy.yaxis)
    yield loss, "loss"
    yield accuracy, "accuracy"


def choose_examples(labels: np.ndarray, probabilities: np.ndarray, correct: bool) -> np.ndarray:
    """Return the indices of up to 25 examples, evenly distributed over the true classes.

    From true classes (N,) and predicted probabilities (N, 10), choose the first correct predictions
    of each class, or the most confident errors. The indices are ordered by class.
    """
    candidates = np.flatnonzero((probabilities.argmax(1) == labels) == correct)
    if not correct:
        confidence = probabilities[candidates].max(1)
        candidates = candidates[np.argsort(-confidence, kind="stable")]
    # The first candidate of every class, then the second of every class, and so on.
    ranks = np.empty(len(candidates), dtype=int)
    for label in range(len(CLASS_NAMES)):
        members = labels[candidates] == label
        ranks[members] = np.arange(members.sum())
    chosen = candidates[np.argsort(ranks, kind="stable")][: GRID_ROWS * GRID_COLUMNS]
    return chosen[np.argsort(labels[chosen], kind="stable")]


@styled()
def draw_predictions(
    images: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
    correct: bool,
    style: Style,
    dataset: str,
) -> Figure:
    """Draw test images with their predicted class, its probability, and for errors the true class.

    The images are the whole test set, uint8 (N, 28, 28); for the other arguments and the selection
    see choose_examples.
    """
    content = "Correct predictions" if correct else "Most confident errors of each class"
    figure = make_figure(f"{content}, {style.label} on {dataset}", 9.5, 11.5)
    cells = []
    for index in choose_examples(labels, probabilities, correct):
        title = f"{CLASS_NAMES[probabilities[index].argmax()]} {probabilities[index].max():.0%}"
        if not correct:
            title += f"\ntrue: {CLASS_NAMES[labels[index]]}"
        cells.append((images[index], title, f"test image {index}"))
    panels = figure.subplots(GRID_ROWS, GRID_COLUMNS)
    _draw_cells(panels, cells, GREEN if correct else VERMILION)
    return figure


def _draw_cells(panels: np.ndarray, cells: Sequence[Cell], colour: str) -> None:
    """Fill panels with images, the titles in this colour."""
    for axes, (image, title, caption) in zip(panels.flat, cells, strict=False):
        axes.imshow(image, vmin=0, vmax=255)
        axes.set_title(title, color=colour, fontsize=9.5)
        axes.set_xlabel(caption, fontsize=8, color=GREY)
    hide_axes(*panels.flat)
    if not cells:
        panels.flat[0].figure.text(0.5, 0.5, "none", ha="center", color=GREY)


@styled()
def draw_confusion(matrix: ArrayLike, style: Style, dataset: str) -> Figure:
    """Draw a confusion matrix (10, 10), rows true and columns predicted, in percent of the row."""
    counts = np.asarray(matrix)
    shares = 100 * counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    figure = make_figure(f"Confusion matrix, {style.label} on {dataset}", 9.5, 8)
    axes = figure.subplots()
    axes.grid(False)
    # A compressed scale, since the errors of interest are all small.
    mesh = axes.imshow(shares, cmap=SEQUENTIAL, norm="asinh", vmin=0, vmax=100)
    for row, column in zip(*np.nonzero(counts), strict=True):
        value = shares[row, column]
        colour = "white" if value > 9 else "black"  # white on dark cells
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(CLASS_NAMES)), CLASS_NAMES, rotation=40, ha="right")
    axes.set_yticks(range(len(CLASS_NAMES)), CLASS_NAMES)
    axes.set(xlabel="predicted class", ylabel="true class")
    ticks, label = [0, 1, 2, 5, 10, 20, 50, 100], "share of the true class (%)"
    figure.colorbar(mesh, shrink=0.8, label=label, ticks=ticks, format="%d").minorticks_off()
    return figure


# Several models


@styled()
def draw_comparison(comparison: Mapping[str, Any], styles: Mapping[str, Style]) -> Figure:
    """Draw accuracy, scores by class, confusions and cost of all models; see comparison.compare."""
    models = {styles[name]: model for name, model in comparison["models"].items()}
    seeds = len(comparison["seeds"])
    count = f"{seeds} seed{'' if seeds == 1 else 's'}"
    extra = 1.5 * (len(models) - 2)  # inches: each further model adds its confusions
    title = f"Test results on {comparison['dataset']}, {count} per model"
    figure = make_figure(title, 13, 9.5 + extra)
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.25, 1)).flat
    top, bottom = right.subfigures(2, 1, squeeze=False, height_ratios=(1, 2.4)).flat
    by_class, confusions = left.subplots(2, 1, height_ratios=(5.3, 4.2 + extra))
    _draw_classes(by_class, models, "recall" if seeds == 1 else "f1")
    _draw_confusions(confusions, models)
    _draw_accuracies(top.subplots(), models)
    for axes, (title, text, cost) in zip(bottom.subplots(len(COSTS), 1), COSTS, strict=True):
        values = [cost(model) for model in models.values()]
        _draw_bars(axes, values, [style.label for style in models], models, text)
        axes.margins(x=0.35)
        axes.set_title(title, loc="left")
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
    return figure


def _draw_bars(
    axes: Axes, values: Sequence[float], labels: Sequence[str], styles: Iterable[Style], text: str
) -> None:
    """Draw horizontal bars, the first one at the top, each with its value in this format."""
    places, colours = range(len(values)), [style.colour for style in styles]
    bars = axes.barh(places, values, color=colours, height=0.65)
    axes.bar_label(bars, fmt=text, padding=4, fontsize=9)
    axes.set_yticks(places, labels, fontsize=9)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")


def _draw_classes(axes: Axes, models: Mapping[Style, Any], measure: str) -> None:
    """Draw a score of each class for each model, with its 95% interval over seeds."""
    tables = [model["by_class"] for model in models.values()]
    means = np.array([[table[name][measure]["mean"] for name in CLASS_NAMES] for table in tables])
    order = np.argsort(means.mean(axis=0), kind="stable")
    means, classes = means[:, order], [CLASS_NAMES[label] for label in order]
    heights = np.arange(len(classes))
    axes.hlines(heights, means.min(0), means.max(0), color="#CCCCCC", lw=3)
    for style, values, table in zip(models, means, tables, strict=True):
        intervals = [table[name][measure]["ci95"] for name in classes]
        ends = np.clip(np.array(intervals).T, 0, 1) if intervals[0] else None
        errors = None if ends is None else np.abs(ends - values)
        look: dict[str, Any] = {"fmt": style.marker, "color": style.colour, "label": style.label}
        axes.errorbar(values, heights, xerr=errors, ms=7, capsize=3, **look)
    axes.set_yticks(heights, classes)
    score = {"recall": "accuracy", "f1": "F1 score"}[measure]
    note = ", 95% intervals over seeds" if intervals[0] else ""
    axes.set_title(f"Test {score} by class{note}", loc="left")
    axes.set_xlabel(f"test {score}")
    format_percent(axes.xaxis)
    axes.legend(loc="lower right")


def _draw_confusions(axes: Axes, models: Mapping[Style, Any]) -> None:
    """Draw each model's most frequent confusions, as shares of the true class."""
    bars = []
    for style, model in models.items():
        matrix = np.array(model["confusion_matrix"])
        shares = matrix / matrix.sum(1, keepdims=True).clip(min=1)
        np.fill_diagonal(shares, 0)
        for place in np.argsort(-shares, axis=None, kind="stable")[:CONFUSIONS_SHOWN]:
            true, guess = divmod(int(place), len(CLASS_NAMES))
            label = f"{style.label}: {CLASS_NAMES[true]} → {CLASS_NAMES[guess]}"
            bars.append((shares[true, guess], label, style))
    values, labels, looks = zip(*bars, strict=True)
    _draw_bars(axes, values, labels, looks, "{:.1%}")
    axes.margins(x=0.12, y=0.02)
    axes.set_title("Most frequent confusions, true → predicted class", loc="left")
    axes.set_xlabel("share of the true class")
    format_percent(axes.xaxis)


def _draw_accuracies(axes: Axes, models: Mapping[Style, Any]) -> None:
    """Draw each seed's test accuracy, their mean and its 95% interval."""
    note = ""
    for height, (style, model) in enumerate(models.items()):
        accuracy, colour = model["test_accuracy"], style.colour
        mean, text = accuracy["mean"], f"{accuracy['mean']:.2%}"
        if accuracy["ci95"]:
            note = " by seed: mean ± std, 95% interval"
            text += f" ± {100 * accuracy['std']:.2f}"
            axes.hlines(height, *accuracy["ci95"], color=colour, lw=10, alpha=0.25)
            axes.plot(mean, height, "|", color=colour, ms=22, mew=2)
        values = accuracy["values"]
        axes.plot(values, [height] * len(values), style.marker, color=colour, ms=6, alpha=0.8)
        axes.text(mean, height - 0.3, text, ha="center", color=colour)
    axes.set_yticks(range(len(models)), [style.label for style in models])
    axes.set_ylim(len(models) - 0.5, -0.7)
    axes.margins(x=0.25)
    axes.set_title(f"Test accuracy{note}", loc="left")
    axes.set_xlabel("test accuracy")
    format_percent(axes.xaxis)


@styled()
def draw_learning_curves(
    histories: Mapping[str, Sequence[History]], styles: Mapping[str, Style], dataset: str
) -> Figure:
    """Draw the validation results during training, mean and standard deviation over seeds.

    The histories of a model, at least two, have equal length.
    """
    seeds = len(next(iter(histories.values())))
    title = f"Learning curves on {dataset}\nmean ± standard deviation over {seeds} seeds"
    figure = make_figure(title, 11, 4.8)
    for axes, measure in _loss_and_accuracy(figure):
        final = []
        for name, runs in histories.items():
            style, epochs = styles[name], len(runs[0])
            values = np.array([[entry[f"validation_{measure}"] for entry in run] for run in runs])
            progress = np.arange(1, epochs + 1) / epochs  # models differ in their epochs
            mean, std = values.mean(0), values.std(0, ddof=1)
            axes.fill_between(progress, mean - std, mean + std, color=style.colour, alpha=0.2)
            label = f"{style.label}, {epochs} epochs"
            axes.plot(progress, mean, color=style.colour, lw=2, label=label)
            final.append(mean[-1])
        # The first epochs would compress the differences between models.
        if measure == "loss":
            axes.set_ylim(0.5 * min(final), 2 * max(final))
        else:
            axes.set_ylim(1 - 2 * (1 - min(final)), 1 - 0.5 * (1 - max(final)))
        format_percent(axes.xaxis)
        axes.set(title=f"Validation {measure}", xlabel="training progress")
        axes.legend(loc="upper right" if measure == "loss" else "lower right")
    return figure


@styled()
def draw_calibration(
    calibrations: Mapping[str, Calibration],
    comparison: Mapping[str, Any],
    styles: Mapping[str, Style],
) -> Figure:
    """Draw a reliability diagram: the accuracy of predictions by their confidence.

    Each calibration pools the test predictions of all runs of a model. The calibration errors and
    the title come from the comparison, see comparison.compare.
    """
    title = f"Reliability diagram, test set of {comparison['dataset']}"
    question = "How often are predictions of a given confidence correct?"
    figure = make_figure(f"{title}\n{question}", 7.5, 8)
    axes, shares = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    axes.plot([0, 1], [0, 1], "--", color=GREY, label="perfect calibration")
    offsets, width = group_bars(len(calibrations), 0.8 / CALIBRATION_BINS)
    for offset, (name, calibration) in zip(offsets, calibrations.items(), strict=True):
        style = styles[name]
        error = comparison["models"][name]["expected_calibration_error"]["mean"]
        label = f"{style.label}, expected calibration error {error:.1%}"
        enough = calibration.share >= 0.002  # the accuracy of a handful of images is mostly noise
        confidence, accuracy = calibration.confidence[enough], calibration.accuracy[enough]
        axes.plot(confidence, accuracy, f"{style.marker}-", color=style.colour, label=label)
        shares.bar(calibration.centre + offset, calibration.share, width, color=style.colour)
    axes.set(title="above the diagonal: underconfident; below it: overconfident", ylabel="accuracy")
    axes.legend(loc="lower right")
    shares.set(
        xlabel="confidence: probability of the predicted class before calibration",
        ylabel="share of images",
    )
    format_percent(axes.yaxis, shares.xaxis, shares.yaxis)
    return figure


@styled()
def draw_suspects(suspects: Sequence[Suspect], dataset: Dataset) -> Figure:
    """Draw up to 40 images whose label every run rejects; see comparison.find_suspects."""
    shown = suspects[: SUSPECT_ROWS * SUSPECT_COLUMNS]
    rows = max(1, -(-len(shown) // SUSPECT_COLUMNS))
    note = f" ({len(shown)} shown)" if len(shown) < len(suspects) else ""
    title = (
        f"Suspicious labels, {dataset.title}\n{len(suspects)} images{note} whose given label has a "
        f"probability of at most {SUSPECT_PROBABILITY:.0%} in every run"
    )
    figure = make_figure(title, 1.75 * SUSPECT_COLUMNS, 2.35 * rows + 1)
    cells = []
    for suspect in shown:
        images = dataset.test_images if suspect.part == "test" else dataset.images
        label, guess = CLASS_NAMES[suspect.label], CLASS_NAMES[suspect.suggestion]
        title = f"label: {label}\nmodels: {guess} {suspect.mean_probability:.0%}"
        file = "test" if suspect.part == "test" else "training"  # holds the validation images too
        caption = f"{file} file, image {suspect.index}"
        cells.append((images[suspect.index].cpu().numpy(), title, caption))
    _draw_cells(figure.subplots(rows, SUSPECT_COLUMNS, squeeze=False), cells, "black")
    return figure


@styled()
def draw_benchmark(models: Mapping[str, dict[str, Any]], styles: Mapping[str, Style]) -> Figure:
    """Draw the training speed of each model in several training loops.

    Args:
        models: For each model "target_accuracy" and "loops": by loop "images_per_second" and
            "seconds_to_target" (None if it was not reached), or None if it was not measured. The
            loop of this project comes first.
        styles: Style of each model.
    """
    rows = max(len(model["loops"]) for model in models.values())
    height = len(models) * (0.45 * rows + 1.1)
    figure = make_figure("Speed of several training loops", 10, height + 0.3)
    note = "This project: images per second of the default recipe, time of a quick training"
    figure.supxlabel(note, fontsize=9, color=GREY)
    panels = figure.subplots(len(models), squeeze=False).flat
    for axes, (name, model) in zip(panels, models.items(), strict=True):
        loops = {loop: result for loop, result in model["loops"].items() if result}
        speeds, texts = [result["images_per_second"] for result in loops.values()], []
        for result in loops.values():
            seconds = result["seconds_to_target"]
            reached = "accuracy not reached" if seconds is None else f"{seconds:,.1f} s"
            texts.append(f"{result['images_per_second']:,.0f} images/s, {reached}")
        colours = [styles[name].colour, *[GREY] * (len(loops) - 1)]
        axes.bar_label(axes.barh(list(loops), speeds, color=colours), texts, padding=4)
        accuracy = f"{model['target_accuracy']:.1%} test accuracy"
        axes.set_title(f"{styles[name].label}: images per second, and time to {accuracy}")
        axes.set_xlim(0, 1.6 * max(speeds))  # leaves room for the texts
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel("images per second")
    return figure
