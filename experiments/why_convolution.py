"""Ask why the CNN beats the FFN: neighbouring pixels, fewer images, size, and robustness.

    python -m experiments.why_convolution

Trains both networks whole and changed in one respect, with the same optimizer, batches and number
of steps, without augmentation or dropout; each gets the best of four learning rates, by seed 0's
accuracy on validation images. Prints test accuracies and writes why_convolution.json,
why_convolution.png and robustness.png, which also shows the networks in pretrained/, to the folder
outputs/why_convolution. Takes 16 minutes on two CPU cores, or 25 with --seeds 5. The same command
continues after an interruption.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fashion.checkpoint import Network, load
from fashion.comparison import compare_paired, count_multiply_accumulates, summarize_values
from fashion.data import CLASSES, SIZE, Dataset, pixel_statistics
from fashion.evaluation import accuracy, predict
from fashion.options import Parser
from fashion.recipe import Recipe
from fashion.runs import Run
from fashion.script import PRETRAINED, list_files, quiet, run
from fashion.style import GREY, colour, label, make_figure, marker, save_figure, styled

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from experiments.distortions import DISTORTIONS
from experiments.shared import percent, record, start
from fashionmnist import train
from models import MODELS

NAMES = ("ffn", "cnn")
WHOLE, PERMUTED, SHIPPED = "as it is", "permuted pixels", " in pretrained/"
LEARNING_RATES = (0.015, 0.03, 0.06, 0.12)  # one is chosen for each network and change
RECIPE = Recipe(epochs=2, batch_size=512, learning_rate=0.03, max_shift=0, flip=False)
SIZES = (1_000, 7_500)  # numbers of training images, besides all
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
    args, dataset = start(parser, "why_convolution")
    shipped = {name: load(PRETRAINED / f"{name}.safetensors", MODELS) for name in NAMES}
    result = experiment(dataset, args.seeds, args.out / "runs", shipped)
    path = record(args.out / "why_convolution.json", dataset, args.seeds, result)
    causes = save_figure(draw_causes(result, dataset), path.with_suffix(".png"))
    robustness = save_figure(draw_robustness(result, dataset), args.out / "robustness.png")
    list_files([path, causes, robustness])


def experiment(
    dataset: Dataset, seeds: int, folder: Path, shipped: Mapping[str, Network]
) -> dict[str, Any]:
    """Train all variants and return what they reached, in fractions."""
    sizes = {f"{size:,} images": size for size in SIZES if size < len(dataset.train)}
    # Each change returns the dataset of a seed.
    changes: dict[str, Callable[[int], Dataset]]
    changes = {WHOLE: lambda _: dataset, PERMUTED: partial(permuted, dataset)}
    changes |= {text: partial(fewer, dataset, size) for text, size in sizes.items()}
    variants = [*((name, text, {}) for name in NAMES for text in changes), *RESIZED]

    print(f"\nTest accuracy in percent, {seeds} seed(s)", flush=True)
    reached: dict[str, dict[str, Any]] = {name: {} for name in NAMES}
    whole: dict[str, list[Run]] = {}
    for number, (name, text, model) in enumerate(variants, 1):
        print(f"{number:>3}/{len(variants)} {f'{label(name)}, {text}':<28}", end="", flush=True)
        runs = train_all(name, model, changes.get(text, changes[WHOLE]), seeds, folder)
        values = [accuracy(run.logits["test"], dataset.test_labels.cpu()) for run in runs]
        network, rate = runs[0].model, runs[0].recipe.learning_rate
        reached[name][text] = summarize_values(values) | {
            "learning_rate": rate,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "multiply_accumulates": count_multiply_accumulates(network),
        }
        print(f"{percent(reached[name][text]):>14}, learning rate {rate}")
        if text == WHOLE:
            whole[name] = runs

    print("\nCNN minus FFN in points, with 95 % intervals over the seeds")
    differences = {}
    for text in reached["ffn"] | reached["cnn"]:
        pair = [reached[name].get(text, reached[name][WHOLE])["values"] for name in NAMES]
        differences[text] = compare_paired(*pair)
        ends = " to ".join(f"{100 * end:+.2f}" for end in differences[text]["ci95"] or ())
        print(f"  {text:<24}{100 * differences[text]['mean']:+.2f}  {ends}")
    print("\nTesting on distorted images", flush=True)
    return {
        "epochs": RECIPE.epochs,
        "accuracy": reached,
        "cnn_minus_ffn": differences,
        "images": sizes | {WHOLE: len(dataset.train)},
        "robustness": measure_robustness(whole, shipped, dataset),
    }


def train_all(
    name: str, model: dict[str, Any], change: Callable[[int], Dataset], seeds: int, folder: Path
) -> list[Run]:
    """Train and score a network with each seed, with the rate that is best for the first one."""

    def train_one(seed: int, rate: float) -> Run:
        recipe = replace(RECIPE, learning_rate=rate, model={"dropout": 0} | model)
        return train(name, recipe, seed, change(seed), folder)

    with quiet():
        trials = [train_one(0, rate) for rate in LEARNING_RATES]
        best = max(trials, key=lambda run: run.history[-1]["validation_accuracy"])
        runs = [best, *(train_one(seed, best.recipe.learning_rate) for seed in range(1, seeds))]
        for each in runs:
            each.score(change(each.seed))
    return runs


def permute(images: Tensor, seed: int = 0) -> Tensor:
    """Return images (N, 28, 28) whose pixels have changed places, in each image in the same way."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(SIZE**2, generator=generator).to(images.device)
    return images.flatten(1)[:, order].view_as(images)


def permuted(dataset: Dataset, seed: int) -> Dataset:
    """Return the dataset with its pixels in an order that the seed chooses."""
    images, test_images = permute(dataset.images, seed), permute(dataset.test_images, seed)
    return replace(dataset, images=images, test_images=test_images)


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


def measure_robustness(
    runs: Mapping[str, Sequence[Run]], shipped: Mapping[str, Network], dataset: Dataset
) -> dict[str, Any]:
    """Return the accuracy of all networks for each level of each distortion."""
    device = dataset.images.device
    networks = {
        name: [(run.model, dataset.mean, dataset.std) for run in series]
        for name, series in runs.items()
    } | {
        name + SHIPPED: [(network.model.to(device), network.mean, network.std)]
        for name, network in shipped.items()
    }
    result: dict[str, Any] = {kind: {name: {} for name in networks} for kind in DISTORTIONS}
    for kind, (_, levels, apply) in DISTORTIONS.items():
        for level in levels:
            images = apply(dataset.test_images, level)
            for name, series in networks.items():
                logits = [predict(model, images, mean, std) for model, mean, std in series]
                values = [accuracy(each, dataset.test_labels) for each in logits]
                result[kind][name][f"{level:g}"] = summarize_values(values)
    return result


@styled()
def draw_causes(result: Result, dataset: Dataset) -> Figure:
    """Draw the accuracy with permuted pixels, fewer images and other sizes of the networks."""
    title = f"Test accuracy of FFN and CNN after {result['epochs']} epochs, {dataset.title}"
    figure = make_figure(title, 15, 5.2)
    locality, data, size = figure.subplots(1, 3, width_ratios=(0.8, 1, 1.2))
    for name, reached in result["accuracy"].items():
        draw_line(locality, [0, 1], [reached[WHOLE], reached[PERMUTED]], name)
        images = result["images"]
        draw_line(data, [*images.values()], [reached[text] for text in images], name)
    locality.set(title="Locality: pixels in a random order", xlim=(-0.6, 1.6))
    locality.set_xticks([0, 1], [WHOLE, PERMUTED])
    sample = choose_sample(dataset)
    draw_examples(locality, [sample[0], permute(sample)[0]])
    data.set(title="Data: fewer training images, as many steps", xlabel="training images")
    data.set_xscale("log")
    data.set_xticks([*images.values()], [f"{count:,}" for count in images.values()])
    data.minorticks_off()
    locality.legend(loc="lower left")
    data.legend(loc="lower right")
    draw_resized(size, result["accuracy"])
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
    text = f"Solid: {result['epochs']} epochs without augmentation\nDashed: default recipes\nBars: "
    handles = panels[0].get_legend_handles_labels()
    last.legend(*handles, loc="center", fontsize=11, title=text + SPREAD)
    return figure


def choose_sample(dataset: Dataset) -> Tensor:
    """Return the first ankle boot of the test images, (1, 28, 28): it has a direction."""
    return dataset.test_images[dataset.test_labels == CLASSES.index("Ankle boot")][:1]


def draw_line(axes: Axes, places: Sequence[int], summaries: Sequence[Result], name: str) -> None:
    """Draw means over seeds as a line, dashed for shipped networks, and deviations as bars."""
    means, spreads = ([summary[key] or 0 for summary in summaries] for key in ("mean", "std"))
    short = name.removesuffix(SHIPPED)
    look: dict[str, Any] = {"marker": marker(short), "color": colour(short), "lw": 2, "ms": 5}
    look |= {"ls": "-", "capsize": 4} if name == short else {"ls": "--", "mfc": "white"}
    look["label"] = name.replace(short, label(short))
    axes.errorbar(places, means, spreads, **look)
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


def draw_resized(axes: Axes, reached: Result) -> None:
    """Draw the accuracy of the networks as they are and resized, the best at the top."""
    shown, labels = (WHOLE, *(text for _, text, _ in RESIZED)), []
    rows = [(n, text, part[text]) for n, part in reached.items() for text in shown if text in part]
    rows.sort(key=lambda row: row[2]["mean"])
    for height, (name, text, row) in enumerate(rows):
        look: dict[str, Any] = {"fmt": marker(name), "color": colour(name)}
        axes.errorbar(row["mean"], height, xerr=row["std"] or 0, capsize=4, ms=8, **look)
        parameters, macs = (row[key] / 1e6 for key in ("parameters", "multiply_accumulates"))
        labels.append(
            f"{label(name)}, {text}: {row['mean']:.1%}\n"
            f"{parameters:.2f} M parameters, {macs:.2f} M MACs"
        )
    axes.set_yticks(range(len(rows)), labels)
    axes.set(title="Size: equal parameters or MACs", xlabel="test accuracy")
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.locator_params(axis="x", nbins=5)


if __name__ == "__main__":
    sys.exit(run(main, "; the same command continues"))
