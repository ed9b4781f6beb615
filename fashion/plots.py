"""Figures of training and comparison. `dataset` is the title of a dataset."""

from collections.abc import Mapping, Sequence
from typing import Any

from fashion.comparison import SUSPICIOUS, Suspect
from fashion.data import CLASSES, Dataset
from fashion.evaluation import BINS, calibration
from fashion.runs import Run
from fashion.style import GREY, SEQUENTIAL, colour, draw_tiles, label, make_figure, marker, styled

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike
from torch import Tensor

EXAMPLES = 3  # of each class in the figures of predictions
SUSPECTS = 40  # shown at most
COSTS = (  # title, format and value of the panels of costs
    ("Parameters", "{:,.0f}", lambda m: m["parameters"]),
    ("Multiply-accumulates per image", "{:,.2f} M", lambda m: m["multiply_accumulates"] / 1e6),
    ("Training time", "{:,.1f} s", lambda m: m["train_seconds"]["mean"]),
    ("Inference time for 1,000 images", "{:,.1f} ms", lambda m: 1e3 * m["latency_seconds"]["1000"]),
)
Curve = tuple[str, str, Sequence[Run], str, str]  # label, part, runs, colour, line

# One network


@styled()
def draw_loss(run: Run, dataset: str) -> Figure:
    """Draw loss and accuracy of training and validation by epoch."""
    figure = make_figure(f"Learning curves, {label(run.name)} on {dataset}", 11, 4.6)
    training = ("training", "train", [run], GREY, "--")
    draw_curves(figure, [training, ("validation", "validation", [run], colour(run.name), "-")])
    note = "Training values are means while the weights change, with any augmentation and dropout."
    figure.supxlabel(note, fontsize=9, color=GREY)
    return figure


def draw_curves(figure: Figure, curves: Sequence[Curve]) -> None:
    """Draw losses and accuracies by epoch, mean and standard deviation over runs."""
    losses, accuracies = figure.subplots(1, 2)
    for axes, measure in ((losses, "loss"), (accuracies, "accuracy")):
        ranges = []
        for name, part, runs, shade, line in curves:
            values = [[row[f"{part}_{measure}"] for row in run.history] for run in runs]
            mean, std = np.mean(values, 0), np.std(values, 0, ddof=min(1, len(runs) - 1))
            epochs = np.arange(1, len(mean) + 1)
            text = f"{name}, final {mean[-1]:.3f}"
            axes.plot(epochs, mean, line, color=shade, marker=".", lw=2, label=text)
            axes.fill_between(epochs, mean - std, mean + std, color=shade, alpha=0.2)
            # The first epochs of longer trainings would flatten the others.
            ranges += [(mean - std)[len(mean) > 2 :], (mean + std)[len(mean) > 2 :]]
        low, high = np.quantile(np.concatenate(ranges), (0, 1))
        margin = 0.08 * (high - low or 1)
        axes.set_ylim(low - margin, high + margin)
        axes.set(title=measure.capitalize(), xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.legend()
    losses.set_ylabel("cross-entropy (nats)")
    accuracies.set_ylabel("accuracy")
    accuracies.yaxis.set_major_formatter(PercentFormatter(1))


@styled()
def draw_predictions(run: Run, dataset: Dataset, correct: bool) -> Figure:
    """Draw test images with their true and predicted class, and the probability of the latter.

    Of each class, they are the first correct predictions, or the most confident errors.
    """
    labels, probabilities = dataset.test_labels.cpu().numpy(), run.probabilities.numpy()
    guesses, confidence = probabilities.argmax(1), probabilities.max(1)
    candidates = np.flatnonzero((guesses == labels) == correct)
    if not correct:
        candidates = candidates[np.argsort(-confidence[candidates], kind="stable")]
    groups = (candidates[labels[candidates] == number] for number in range(len(CLASSES)))
    chosen = [index for group in groups for index in group[:EXAMPLES]]
    names = [
        f"{CLASSES[guesses[i]]} {confidence[i]:.0%}\ntrue: {CLASSES[labels[i]]}\ntest image {i}"
        for i in chosen
    ]
    content = "Correct predictions" if correct else "Most confident errors of each class"
    title = f"{content}, {label(run.name)} on {dataset.title}"
    return draw_images(title, [dataset.test_images[i] for i in chosen], names, 2 * EXAMPLES)


def draw_images(title: str, images: list[Tensor], names: list[str], columns: int) -> Figure:
    """Draw images with their names."""
    height = 2.2 * -(-len(images) // columns) + 0.8
    figure = make_figure(title if images else f"{title}: none", 1.75 * columns, height)
    if images:
        tiles = np.array([image.cpu().numpy() for image in images])
        draw_tiles(figure.subplots(), tiles, names, {"vmin": 0, "vmax": 255}, columns)
    return figure


@styled()
def draw_confusion(name: str, matrix: ArrayLike, dataset: str) -> Figure:
    """Draw a confusion matrix (10, 10), rows true and columns predicted, in percent of the row."""
    counts = np.asarray(matrix)
    shares = 100 * counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    figure = make_figure(f"Confusion matrix, {label(name)} on {dataset}", 9.5, 8)
    axes = figure.subplots()
    axes.grid(False)
    # A compressed scale, since the errors of interest are all small.
    mesh = axes.imshow(shares, cmap=SEQUENTIAL, norm="asinh", vmin=0, vmax=100)
    for row, column in zip(*np.nonzero(shares), strict=True):
        value = shares[row, column]
        shade = "white" if value > 9 else "black"  # white on dark cells
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=shade, fontsize=9)
    axes.set_xticks(range(len(CLASSES)), CLASSES, rotation=40, ha="right")
    axes.set_yticks(range(len(CLASSES)), CLASSES)
    axes.set(xlabel="predicted class", ylabel="true class")
    ticks, text = [0, 1, 2, 5, 10, 20, 50, 100], "share of the true class (%)"
    figure.colorbar(mesh, shrink=0.8, label=text, ticks=ticks, format="%d").minorticks_off()
    return figure


# Several networks or seeds


@styled()
def draw_comparison(comparison: Mapping[str, Any]) -> Figure:
    """Draw accuracy, F1 scores and costs of all networks; see comparison.compare."""
    models, seeds = comparison["models"], len(comparison["seeds"])
    spread = f", {seeds} seeds per network" if seeds > 1 else ""
    figure = make_figure(f"Test results on {comparison['dataset']}{spread}", 13, 5 + len(models))
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.25, 1)).flat
    draw_scores(left.subplots(), models)
    names, colours = [label(name) for name in models], [colour(name) for name in models]
    for axes, (title, text, cost) in zip(right.subplots(len(COSTS), 1), COSTS, strict=True):
        bars = axes.barh(names, [cost(model) for model in models.values()], 0.65, color=colours)
        axes.bar_label(bars, fmt=text, padding=4, fontsize=9)
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.margins(x=0.35)
        axes.set_title(title, loc="left")
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
    return figure


def draw_scores(axes: Axes, models: Mapping[str, Any]) -> None:
    """Draw accuracy and F1 scores of each network, means as markers and ranges over seeds."""
    scores = {
        name: [*(model["by_class"][each]["f1"] for each in CLASSES), model["test_accuracy"]]
        for name, model in models.items()
    }
    means = np.array([[score["mean"] for score in row] for row in scores.values()])
    order = [*np.argsort(means[:, :-1].mean(0), kind="stable"), len(CLASSES)]
    heights = np.arange(len(order))
    axes.hlines(heights, means.min(0)[order], means.max(0)[order], color="#CCCCCC", lw=3)
    for name, row in scores.items():
        mean, low, high = ([row[i][key] for i in order] for key in ("mean", "min", "max"))
        text = f"{label(name)}, accuracy {mean[-1]:.2%}"
        axes.plot(mean, heights, marker(name), color=colour(name), ms=7, label=text)
        axes.hlines(heights, low, high, color=colour(name), lw=2)
    axes.set_yticks(heights, [(*CLASSES, "All (accuracy)")[i] for i in order])
    several = len(row[-1]["values"]) > 1
    axes.set_title(f"Accuracy and F1 scores{', with their range over seeds' * several}", loc="left")
    axes.set_xlabel("score on the test images")
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.legend(loc="upper left")  # where classes with high scores leave room


@styled()
def draw_learning_curves(series: Mapping[str, Sequence[Run]], dataset: str) -> Figure:
    """Draw the validation results during training, mean and standard deviation over seeds."""
    seeds = len(next(iter(series.values())))
    title = f"Validation during training on {dataset}\nmean ± standard deviation over {seeds} seeds"
    figure = make_figure(title, 11, 4.8)
    curves = [(label(name), "validation", runs, colour(name), "-") for name, runs in series.items()]
    draw_curves(figure, curves)
    return figure


@styled()
def draw_calibration(series: Mapping[str, Sequence[Run]], dataset: Dataset) -> Figure:
    """Draw a reliability diagram: the accuracy of predictions by their confidence.

    The curves pool the test images of all runs; the errors are means over the runs.
    """
    labels = dataset.test_labels.cpu().numpy()
    title = f"Reliability diagram, test set of {dataset.title}"
    figure = make_figure(title, 7.5, 8)
    axes, shares = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    axes.plot([0, 1], [0, 1], "--", color=GREY, label="perfect calibration")
    width = 0.8 / BINS / len(series)
    for number, (name, runs) in enumerate(series.items()):
        predicted = [run.probabilities.numpy() for run in runs]
        error = np.mean([calibration(each, labels).error for each in predicted])
        pooled = calibration(np.concatenate(predicted), np.tile(labels, len(runs)))
        text = f"{label(name)}, expected calibration error {error:.1%}"
        # The accuracy of a handful of images is mostly noise.
        enough = pooled.share * len(labels) * len(runs) >= 20
        curve = pooled.confidence[enough], pooled.accuracy[enough]
        axes.plot(*curve, f"{marker(name)}-", color=colour(name), label=text)
        centres = pooled.centre + (number - (len(series) - 1) / 2) * width
        shares.bar(centres, pooled.share, width, color=colour(name))
    axes.set(title="above the diagonal: underconfident; below it: overconfident", ylabel="accuracy")
    axes.legend(loc="lower right")
    shares.set_xlabel("confidence: probability of the predicted class before calibration")
    shares.set_ylabel("share of images")
    for axis in (axes.yaxis, shares.xaxis, shares.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    return figure


@styled()
def draw_suspects(suspects: Sequence[Suspect], dataset: Dataset) -> Figure:
    """Draw up to 40 images whose label every run rejects; see comparison.find_suspects."""
    files = {
        "test": ("test file", dataset.test_images),
        "validation": ("training file", dataset.images),
    }
    images, names = [], []
    for suspect in suspects[:SUSPECTS]:
        file, content = files[suspect.part]
        guess = f"networks: {suspect.suggestion} {suspect.mean_probability:.0%}"
        images.append(content[suspect.image])
        names.append(f"label: {suspect.label}\n{guess}\n{file}, image {suspect.image}")
    title = (
        f"Suspicious labels, {dataset.title}\n{len(images)} of {len(suspects)} images whose given "
        f"label has a probability of at most {SUSPICIOUS:.0%} in every run"
    )
    return draw_images(title, images, names, 8)
