"""Ask why the CNN beats the FFN: neighbouring pixels, fewer images, size, and robustness.

    python -m experiments.why_convolution

Trains both networks whole and changed in one respect, with the same optimizer, batches and number
of steps, without augmentation or dropout, and with three seeds each. Prints test accuracies and
writes why_convolution.json, why_convolution.png and robustness.png to the folder
outputs/why_convolution. Takes about an hour on two CPU cores, or eight minutes with --quick, which
trains on 5,000 images. The same command continues after an interruption.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fashion.comparison import count_multiply_accumulates, summarize_values
from fashion.data import CLASSES, SIZE, Dataset, pixel_statistics
from fashion.device import environment
from fashion.evaluation import accuracy, predict
from fashion.files import write_json
from fashion.options import Parser
from fashion.recipe import Recipe
from fashion.runs import Run
from fashion.script import list_files, quiet, run
from fashion.style import GREY, colour, label, make_figure, marker, save_figure, styled

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from experiments.distortions import DISTORTIONS
from experiments.shared import percent, start
from fashionmnist import train

NAMES = ("ffn", "cnn")
WHOLE, PERMUTED = "as it is", "permuted pixels"
RECIPE = Recipe(epochs=3, batch_size=256, learning_rate=0.02, max_shift=0, flip=False)
LEARNING_RATES = {"ffn": 0.02, "cnn": 0.03}  # chosen on validation images
SIZES = (500, 1_500, 5_000, 15_000)  # numbers of training images, besides all
QUICK_IMAGES = 5_000
# As many parameters or as many multiply-accumulates (MACs) as the other network.
RESIZED: list[tuple[str, str, dict[str, Any]]] = [
    ("ffn", "parameters of the CNN", {"widths": (406, 192, 96, 48)}),
    ("ffn", "MACs of the CNN", {"widths": (3072, 1024, 256, 64)}),
    ("cnn", "MACs of the FFN", {"channels": (8, 18, 36)}),
]
SPREAD = "one standard deviation over the seeds"

Result = Mapping[str, Any]


def main() -> None:
    """Train all variants, measure, print and write the files."""
    parser = Parser("Ask why the CNN beats the FFN.", prog="-m experiments.why_convolution")
    parser.add_argument("--quick", action="store_true", help=f"train on {QUICK_IMAGES:,} images")
    args, dataset = start(parser, "why_convolution", QUICK_IMAGES)
    result = experiment(dataset, args.seeds, args.out / "runs")
    path = args.out / "why_convolution.json"
    write_json(path, result)
    causes = save_figure(draw_causes(result, dataset), path.with_suffix(".png"))
    robustness = save_figure(draw_robustness(result, dataset), args.out / "robustness.png")
    list_files([path, causes, robustness])


def experiment(dataset: Dataset, seeds: int, folder: Path) -> dict[str, Any]:
    """Train all variants and return what they reached, in fractions."""
    images, test_images = permute(dataset.images), permute(dataset.test_images)
    permuted = replace(dataset, images=images, test_images=test_images)
    sizes = {f"{size:,} images": size for size in SIZES if size < len(dataset.train)}
    # Each change returns the dataset of a seed.
    changes: dict[str, Callable[[int], Dataset]]
    changes = {WHOLE: lambda _: dataset, PERMUTED: lambda _: permuted}
    changes |= {text: partial(fewer, dataset, size) for text, size in sizes.items()}
    variants = [*((name, text, {}) for name in NAMES for text in changes), *RESIZED]

    print(f"\nTest accuracy in percent, {seeds} seed(s)", flush=True)
    reached: dict[str, dict[str, Any]] = {name: {} for name in NAMES}
    whole: dict[str, list[Run]] = {}
    size: list[dict[str, Any]] = []
    for name, text, model in variants:
        change = changes.get(text, changes[WHOLE])
        runs = [train_one(name, seed, change(seed), folder, **model) for seed in range(seeds)]
        values = [accuracy(run.logits["test"], dataset.test_labels.cpu()) for run in runs]
        reached[name][text] = summarize_values(values)
        print(f"  {f'{label(name)}, {text}':<34}{percent(reached[name][text])}", flush=True)
        if text == WHOLE:
            whole[name] = runs
        if text == WHOLE or model:
            network = runs[0].model
            row = {"network": name, "text": text, "accuracy": reached[name][text]}
            row["parameters"] = sum(parameter.numel() for parameter in network.parameters())
            row["multiply_accumulates"] = count_multiply_accumulates(network)
            size.append(row)
    return {
        "environment": environment(dataset.images.device),
        "dataset": dataset.title,
        "accuracy": reached,
        "images": sizes | {WHOLE: len(dataset.train)},
        "size": size,
        "robustness": measure_robustness(whole, dataset),
    }


def train_one(name: str, seed: int, dataset: Dataset, folder: Path, **model: Any) -> Run:
    """Train and score a network, all with the same settings."""
    arguments = {"dropout": 0} | model
    recipe = replace(RECIPE, learning_rate=LEARNING_RATES[name], model=arguments)
    with quiet():
        run = train(name, recipe, seed, dataset, folder)
        run.score(dataset)
    return run


def permute(images: Tensor) -> Tensor:
    """Return images (N, 28, 28) whose pixels have changed places, in each image in the same way."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(SIZE**2, generator=generator).to(images.device)
    return images.flatten(1)[:, order].view_as(images)


def fewer(dataset: Dataset, images: int, seed: int) -> Dataset:
    """Return the dataset with this number of training images, which the seed chooses.

    They are repeated, so that the number of steps stays the same.
    """
    count, generator = len(dataset.train), torch.Generator().manual_seed(seed)
    order = torch.randperm(count, generator=generator)[:images]
    chosen = dataset.train[order.to(dataset.train.device)]
    mean, std = pixel_statistics(dataset.images[chosen])
    chosen = chosen.repeat(math.ceil(count / images))[:count]
    return replace(dataset, train=chosen, mean=mean, std=std)


def measure_robustness(runs: Mapping[str, Sequence[Run]], dataset: Dataset) -> dict[str, Any]:
    """Return the accuracy of each network for each level of each distortion."""
    result: dict[str, Any] = {kind: {name: {} for name in runs} for kind in DISTORTIONS}
    for kind, (_, levels, apply) in DISTORTIONS.items():
        for level in levels:
            images = apply(dataset.test_images, level)
            for name, series in runs.items():
                logits = [predict(run.model, images, dataset.mean, dataset.std) for run in series]
                values = [accuracy(each, dataset.test_labels) for each in logits]
                result[kind][name][f"{level:g}"] = summarize_values(values)
    return result


@styled()
def draw_causes(result: Result, dataset: Dataset) -> Figure:
    """Draw the accuracy with permuted pixels, fewer images and other sizes of the networks."""
    figure = make_figure(f"Why the CNN wins: test accuracy, {dataset.title}", 15, 5.2)
    locality, data, size = figure.subplots(1, 3, width_ratios=(0.8, 1, 1.2))
    for name, reached in result["accuracy"].items():
        draw_line(locality, [0, 1], [reached[WHOLE], reached[PERMUTED]], name)
        images = result["images"]
        draw_line(data, [*images.values()], [reached[text] for text in images], name)
    locality.set(title="Locality: pixels in a fixed random order", xlim=(-0.6, 1.6))
    locality.set_xticks([0, 1], [WHOLE, PERMUTED])
    sample = choose_sample(dataset)
    draw_examples(locality, [sample[0], permute(sample)[0]])
    data.set(title="Data: fewer training images, as many steps", xlabel="training images")
    data.set_xscale("log")
    data.set_xticks([*images.values()], [f"{count:,}" for count in images.values()])
    data.minorticks_off()
    locality.legend(loc="lower left")
    data.legend(loc="lower right")
    draw_resized(size, result["size"])
    figure.supxlabel(f"Bars: {SPREAD}", fontsize=9, color=GREY)
    return figure


@styled()
def draw_robustness(result: Result, dataset: Dataset) -> Figure:
    """Draw the accuracy against each distortion, with examples."""
    figure = make_figure(f"Test accuracy on distorted images, {dataset.title}", 15, 8.6)
    *panels, last = figure.subplots(2, 4, sharey=True).flat
    sample = choose_sample(dataset)
    for axes, (kind, (unit, levels, apply)) in zip(panels, DISTORTIONS.items(), strict=True):
        for name, summaries in result["robustness"][kind].items():
            draw_line(axes, range(len(levels)), [*summaries.values()], name)
        axes.set_title(f"{kind.capitalize()}: {unit}")
        axes.set_xticks(range(len(levels)), [*summaries])
        draw_examples(axes, [apply(sample, level)[0] for level in levels])
        axes.set_ylim(0, 1)
    last.axis("off")
    handles = panels[0].get_legend_handles_labels()
    last.legend(*handles, loc="center", fontsize=12, title=f"Bars:\n{SPREAD}")
    return figure


def choose_sample(dataset: Dataset) -> Tensor:
    """Return the first ankle boot of the test images, (1, 28, 28): it has a direction."""
    return dataset.test_images[dataset.test_labels == CLASSES.index("Ankle boot")][:1]


def draw_line(axes: Axes, places: Sequence[int], summaries: Sequence[Result], name: str) -> None:
    """Draw means over seeds as a line, and standard deviations as bars."""
    means, spreads = ([summary[key] or 0 for summary in summaries] for key in ("mean", "std"))
    look: dict[str, Any] = {"fmt": f"{marker(name)}-", "color": colour(name), "label": label(name)}
    axes.errorbar(places, means, spreads, capsize=4, lw=2, ms=5, **look)
    axes.set_ylabel("test accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1))


def draw_examples(axes: Axes, images: Sequence[Tensor]) -> None:
    """Draw images below the ticks at 0, 1, 2, ... of a horizontal axis."""
    low, high = axes.get_xlim()
    width = min(0.9 / (high - low), 0.2)
    for place, image in enumerate(images):
        centre = (place - low) / (high - low)
        inset = axes.inset_axes((centre - width / 2, -0.26, width, 0.14))
        inset.imshow(image.cpu().numpy(), vmin=0, vmax=255)
        inset.axis("off")


def draw_resized(axes: Axes, rows: Sequence[Result]) -> None:
    """Draw the accuracy of networks of several sizes, the best at the top."""
    rows, labels = sorted(rows, key=lambda row: row["accuracy"]["mean"]), []
    for height, row in enumerate(rows):
        name, mean, spread = row["network"], row["accuracy"]["mean"], row["accuracy"]["std"] or 0
        look: dict[str, Any] = {"fmt": marker(name), "color": colour(name)}
        axes.errorbar(mean, height, xerr=spread, capsize=4, ms=8, **look)
        parameters, macs = (row[key] / 1e6 for key in ("parameters", "multiply_accumulates"))
        labels.append(
            f"{label(name)}, {row['text']}: {mean:.1%}\n"
            f"{parameters:.2f} M parameters, {macs:.2f} M MACs"
        )
    axes.set_yticks(range(len(rows)), labels)
    axes.set(title="Size: equal parameters or MACs", xlabel="test accuracy")
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.locator_params(axis="x", nbins=5)


if __name__ == "__main__":
    sys.exit(run(main, "; the same command continues"))
