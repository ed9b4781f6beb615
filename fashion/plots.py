"""Figures of training and comparison. `dataset` is the title of a dataset."""

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

from fashion.comparison import SUSPICIOUS, Suspect, calibrate
from fashion.data import CLASSES, SIZE, Dataset, Views
from fashion.evaluation import BINS, calibration
from fashion.recipe import Recipe
from fashion.runs import Run
from fashion.style import GREY, SEQUENTIAL, colour, draw_tiles, label, make_figure, marker, styled

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike
from torch import Tensor, nn

MEMBERS, VIEWS = 6, 18  # training images of each class, and most views of one of them
EXAMPLES = 3  # of each class in the figures of predictions
DISAGREEMENTS = 8  # images that only one of two networks classifies correctly
CONFUSIONS = 8  # most frequent pairs of true and predicted class
SUSPECTS = 40  # shown at most
COSTS = (  # title, format and value of the panels of costs
    ("Parameters", "{:,.0f}", lambda m: m["parameters"]),
    ("Multiply-accumulates per image", "{:,.2f} M", lambda m: m["multiply_accumulates"] / 1e6),
    ("Training time", "{:,.1f} s", lambda m: m["train_seconds"]["mean"]),
    ("Inference time for 1,000 images", "{:,.1f} ms", lambda m: 1e3 * m["latency_seconds"]["1000"]),
)
GREYS = {"vmin": 0, "vmax": 255}
Curve = tuple[str, str, Sequence[Run], str, str]  # label, part, runs, colour, line


@styled()
def draw_dataset(dataset: Dataset, recipes: Mapping[str, Recipe]) -> Figure:
    """Draw training images of each class, and views of one in a training with augmentation."""
    train, images, labels = dataset.train.cpu(), dataset.images.cpu(), dataset.labels.cpu()
    tiles = np.full((len(CLASSES), MEMBERS, SIZE, SIZE), 255, np.uint8)
    for number in range(len(CLASSES)):
        members = train[labels[train] == number][:MEMBERS]
        tiles[number, : len(members)] = images[members]
    figure = make_figure(f"Training images, {dataset.title}", 10.5, 10.5)
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1), subplot_kw={"anchor": "N"})
    names = [text for name in CLASSES for text in (name, *[""] * (MEMBERS - 1))]
    draw_tiles(left, tiles.reshape(-1, SIZE, SIZE), names, GREYS, MEMBERS)
    left.set_title(f"{MEMBERS} images of each class", pad=18)

    # A boot, if there is one, since one sees whether it is mirrored.
    example = int(members[0] if len(members) else train[0])
    name = max(recipes, key=lambda each: recipes[each].shift_share)
    recipe, count = recipes[name], min(VIEWS, recipes[name].epochs)
    use = f"in {count} epochs of the {label(name)}"
    if not augmentation(recipe):
        recipe, count = Recipe(epochs=VIEWS, batch_size=1, learning_rate=0), VIEWS
        use = "with augmentation, which this training does not use"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        views = Views(images[[example]], recipe)
        shown = [views.show(torch.tensor([0]), epoch)[0].numpy() for epoch in range(count)]
    x, y = np.transpose(draw_tiles(right, np.stack(shown), [""] * count, GREYS, 3))
    # A cross at the centre, without which one hardly sees a shift by one pixel.
    right.hlines(y + (SIZE - 1) / 2, x, x + SIZE - 1, "red", lw=0.8)
    right.vlines(x + (SIZE - 1) / 2, y, y + SIZE - 1, "red", lw=0.8)
    title = f"Training image {example} {use}: {augmentation(recipe)}"
    right.set_title(fill(title, 42), pad=18)
    return figure


def augmentation(recipe: Recipe) -> str:
    """Return in words how a training changes its images, or an empty text."""
    parts = []
    if recipe.max_shift and recipe.shift_share:
        share = f" ({recipe.shift_share:.0%} of the time)" if recipe.shift_share < 1 else ""
        parts.append(f"shifted by up to {recipe.max_shift} px{share}")
    return ", ".join([*parts, "mirrored every other time"] if recipe.flip else parts)


def draw_loss(run: Run, dataset: str) -> Figure:
    """Draw loss and accuracy of training and validation by epoch."""
    dropout = any(isinstance(each, nn.Dropout) and each.p > 0 for each in run.model.modules())
    used = {"augmentation": augmentation(run.recipe), "dropout": dropout}
    used["label smoothing"] = run.recipe.label_smoothing
    conditions = ["means over each epoch", *(f"with {key}" for key, value in used.items() if value)]
    title = f"Learning curves, {label(run.name)} on {dataset}\nTraining: {', '.join(conditions)}"
    training = ("training", "train", [run], GREY, "--")
    return draw_curves(
        title, [training, ("validation", "validation", [run], colour(run.name), "-")]
    )


@styled()
def draw_curves(title: str, curves: Sequence[Curve]) -> Figure:
    """Draw losses and accuracies by epoch, mean and standard deviation over runs."""
    figure = make_figure(title, 11, 4.8)
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
    return figure


def draw_predictions(run: Run, dataset: Dataset, correct: bool) -> Figure:
    """Draw the first correct predictions for images of each class, or the most confident errors."""
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


@styled()
def draw_images(title: str, images: list[Tensor], names: list[str], columns: int) -> Figure:
    """Draw images with their names."""
    height = 2.2 * -(-len(images) // columns) + 0.8
    figure = make_figure(title if images else f"{title}: none", 1.75 * columns, height)
    if images:
        tiles = np.array([image.cpu().numpy() for image in images])
        draw_tiles(figure.subplots(), tiles, names, GREYS, columns)
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


@styled()
def draw_comparison(comparison: Mapping[str, Any]) -> Figure:
    """Draw accuracy, F1 scores and costs of all networks; see comparison.compare."""
    models, seeds = comparison["models"], len(comparison["seeds"])
    spread = f", {seeds} seeds per network" if seeds > 1 else ""
    figure = make_figure(f"Test results on {comparison['dataset']}{spread}", 13, 8 + len(models))
    left, right = figure.subfigures(1, 2, squeeze=False).flat
    draw_scores(left.subplots(), models)
    upper, lower = right.subfigures(2, 1, squeeze=False, height_ratios=(1.5, 1)).flat
    draw_confusions(upper.subplots(), models, seeds)
    names, colours = [label(name) for name in models], [colour(name) for name in models]
    for axes, (title, text, cost) in zip(lower.subplots(2, 2).flat, COSTS, strict=True):
        bars = axes.barh(names, [cost(model) for model in models.values()], 0.65, color=colours)
        axes.bar_label(bars, fmt=text, padding=4, fontsize=9)
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.margins(x=0.4)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
    return figure


def draw_confusions(axes: Axes, models: Mapping[str, Any], seeds: int) -> None:
    """Draw how often each network makes the confusions that are most frequent in all together."""
    counts = np.array([model["confusion_matrix"] for model in models.values()]) / seeds
    counts[:, range(len(CLASSES)), range(len(CLASSES))] = 0
    order = np.argsort(-counts.sum(0), axis=None, kind="stable")[:CONFUSIONS]
    pairs = np.unravel_index(order, counts.shape[1:])
    width = 0.8 / len(models)
    for number, name in enumerate(models):
        places = np.arange(CONFUSIONS) + (number - (len(models) - 1) / 2) * width
        values = counts[number][pairs]
        bars = axes.barh(places, values, width, color=colour(name), label=label(name))
        axes.bar_label(bars, fmt="{:.3g}", padding=3, fontsize=8)
    names = [f"{CLASSES[true]} → {CLASSES[guess]}" for true, guess in zip(*pairs, strict=True)]
    axes.set_yticks(range(CONFUSIONS), names)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_title("Most frequent confusions: true → predicted class", loc="left")
    axes.margins(x=0.08)
    axes.set_xlabel(f"test images{', mean over seeds' * (seeds > 1)}")
    axes.legend(loc="lower right")


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


def draw_learning_curves(series: Mapping[str, Sequence[Run]], dataset: str) -> Figure:
    """Draw the validation results during training, mean and standard deviation over seeds."""
    seeds = len(next(iter(series.values())))
    title = f"Validation during training on {dataset}\nmean ± standard deviation over {seeds} seeds"
    curves = [(label(name), "validation", runs, colour(name), "-") for name, runs in series.items()]
    return draw_curves(title, curves)


@styled()
def draw_disagreements(first: Run, last: Run, dataset: Dataset) -> Figure:
    """Draw test images that only one of two networks classifies correctly, with both answers.

    Shown are those on which the less confident of both is most confident.
    """
    labels, names = dataset.test_labels.cpu().numpy(), (label(first.name), label(last.name))
    probabilities = np.stack([run.probabilities.numpy() for run in (first, last)])
    guesses, confidence = probabilities.argmax(2), probabilities.max(2)
    title = f"Images that only one network classifies correctly, test set of {dataset.title}\n"
    title += "Those with the most confident answers; probabilities before calibration"
    figure = make_figure(title, 14, 6.4)
    for number, part in enumerate(figure.subfigures(2, 1, squeeze=False).flat):
        found = np.flatnonzero((guesses[number] == labels) & (guesses[1 - number] != labels))
        chosen = found[np.argsort(-confidence[:, found].min(0), kind="stable")][:DISAGREEMENTS]
        texts = []
        for i in chosen:
            answers = zip(names, guesses[:, i], confidence[:, i], strict=True)
            lines = [f"{name}: {CLASSES[guess]} {share:.0%}" for name, guess, share in answers]
            texts.append("\n".join([*lines, f"true: {CLASSES[labels[i]]}", f"test image {i}"]))
        title = f"{names[number]} correct, {names[1 - number]} wrong"
        part.suptitle(f"{title}: {len(found):,} of {len(labels):,} images", fontsize=11)
        if len(chosen):
            images = dataset.test_images.cpu()[chosen].numpy()
            draw_tiles(part.subplots(), images, texts, GREYS, DISAGREEMENTS)
    return figure


@styled()
def draw_calibration(series: Mapping[str, Sequence[Run]], dataset: Dataset) -> Figure:
    """Draw reliability diagrams: the accuracy of predictions by their confidence.

    The curves pool the test images of all runs; errors and temperatures are means over the runs.
    """
    labels = dataset.test_labels.cpu().numpy()
    figure = make_figure(f"Reliability diagrams, test set of {dataset.title}", 13, 8)
    panels = figure.subplots(2, 2, height_ratios=(3, 1), sharex=True, sharey="row")
    width = 0.8 / BINS / len(series)
    for (axes, shares), scaled in zip(panels.T, (False, True), strict=True):
        axes.plot([0, 1], [0, 1], "--", color=GREY, label="perfect calibration")
        for number, (name, runs) in enumerate(series.items()):
            temperatures, calibrated = zip(*(calibrate(run, dataset) for run in runs), strict=True)
            predicted = calibrated if scaled else [run.probabilities.numpy() for run in runs]
            error = np.mean([calibration(each, labels).error for each in predicted])
            pooled = calibration(np.concatenate(predicted), np.tile(labels, len(runs)))
            text = f"{label(name)}, expected calibration error {error:.1%}"
            text += f", temperature {np.mean(temperatures):.2f}" * scaled
            # The accuracy of a handful of images is mostly noise.
            enough = pooled.share * len(labels) * len(runs) >= 20
            curve = pooled.confidence[enough], pooled.accuracy[enough]
            axes.plot(*curve, f"{marker(name)}-", color=colour(name), label=text)
            centres = pooled.centre + (number - (len(series) - 1) / 2) * width
            shares.bar(centres, pooled.share, width, color=colour(name))
        axes.set_title("after temperature scaling" if scaled else "before calibration")
        axes.legend(loc="lower right")
        shares.set_xlabel("confidence: probability of the predicted class")
        for axis in (axes.yaxis, shares.xaxis, shares.yaxis):
            axis.set_major_formatter(PercentFormatter(1))
    panels[0, 0].set_ylabel("accuracy (above the diagonal: underconfident)")
    panels[1, 0].set_ylabel("share of images")
    return figure


def draw_suspects(suspects: Sequence[Suspect], dataset: Dataset) -> Figure:
    """Draw up to 40 images whose label every run rejects; see comparison.find_suspects."""
    files = {"test": dataset.test_images, "training": dataset.images}
    images, names = [], []
    for suspect in suspects[:SUSPECTS]:
        file = "test" if suspect.part == "test" else "training"
        guess = f"networks: {suspect.suggestion} {suspect.mean_probability:.0%}"
        images.append(files[file][suspect.image])
        names.append(f"label: {suspect.label}\n{guess}\n{file} file, image {suspect.image}")
    title = f"Suspicious labels, {dataset.title}\n{len(images)} of {len(suspects)} images whose "
    title += f"given label has a probability of at most {SUSPICIOUS:.0%} in every run"
    return draw_images(title, images, names, 8)
