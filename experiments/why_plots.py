"""Figures of the experiment on why convolution helps."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from experiments.distortions import DISTORTIONS
from fashion.data import CLASS_NAMES, Dataset
from fashion.plots import GREY, Style, format_percent, make_figure, styled

SAMPLE_CLASS = "Ankle boot"  # of the image that shows the distortions; it has a direction
PANEL_COLUMNS = 4
SPREAD = "one standard deviation over the seeds"


@styled()
def draw_robustness(
    robustness: Mapping[str, Any], dataset: Dataset, styles: Mapping[str, Style]
) -> Figure:
    """Draw accuracy against each distortion, with samples; see measure_robustness."""
    rows = -(-(len(DISTORTIONS) + 1) // PANEL_COLUMNS)
    title = f"Test accuracy on distorted images, {dataset.title}"
    figure = make_figure(title, 15, 4.3 * rows)
    panels = figure.subplots(rows, PANEL_COLUMNS, sharey=True).flat
    sample = choose_sample(dataset)
    for axes, each in zip(panels, DISTORTIONS, strict=False):
        measured = robustness[each.name]
        names = [name for name in measured if name in styles]
        for name in names:
            draw_band(axes, range(len(each.levels)), measured[name], styles[name])
        axes.set_title(f"{each.name.capitalize()}: {each.unit}", loc="left")
        axes.set_xticks(range(len(each.levels)), [f"{level:g}" for level in each.levels])
        draw_samples(axes, [each.apply(sample, level)[0] for level in each.levels])
        axes.set_ylim(0, 1)
    for axes in panels[::PANEL_COLUMNS]:
        axes.set_ylabel("test accuracy")
        format_percent(axes.yaxis)
    handles, labels = panels[0].get_legend_handles_labels()
    for axes in panels[len(DISTORTIONS) :]:
        axes.axis("off")
    panels[len(DISTORTIONS)].legend(
        handles, labels, loc="center", fontsize=12, title=f"Bands:\n{SPREAD}"
    )
    return figure


@styled()
def draw_causes(
    result: Mapping[str, Any],
    dataset: Dataset,
    permuted: Tensor,
    styles: Mapping[str, Style],
) -> Figure:
    """Draw accuracy on permuted pixels, with fewer images, and with other sizes of the networks.

    Args:
        result: What the experiment writes to why_convolution.json.
        dataset: The dataset.
        permuted: The test images with permuted pixels, uint8 (N, 28, 28).
        styles: Style of each model.
    """
    figure = make_figure(f"Why the CNN wins: test accuracy, {dataset.title}", 15, 5.2)
    locality, data, size = figure.subplots(1, 3, width_ratios=(0.8, 1, 1.2))
    index = sample_index(dataset)
    _draw_locality(locality, result["locality"], styles)
    draw_samples(locality, [dataset.test_images[index], permuted[index]])
    _draw_sizes(data, result["data"], styles)
    _draw_resized(size, result["size"], styles)
    figure.supxlabel(f"Bands and bars: {SPREAD}", fontsize=9, color=GREY)
    return figure


def sample_index(dataset: Dataset) -> int:
    """Return the index of the first test image of SAMPLE_CLASS."""
    return int((dataset.test_labels == CLASS_NAMES.index(SAMPLE_CLASS)).nonzero()[0])


def choose_sample(dataset: Dataset) -> Tensor:
    """Return the first test image of SAMPLE_CLASS, uint8 (1, 28, 28)."""
    index = sample_index(dataset)
    return dataset.test_images[index : index + 1]


def draw_band(
    axes: Axes, places: Iterable[float], summaries: Sequence[Mapping[str, Any]], style: Style
) -> None:
    """Draw means over seeds as a line, and one standard deviation as a band."""
    x = np.asarray(list(places), dtype=float)
    means = np.array([summary["mean"] for summary in summaries])
    spreads = np.array([summary["std"] or 0 for summary in summaries])
    axes.plot(x, means, f"{style.marker}-", color=style.colour, label=style.label, lw=2, ms=5)
    axes.fill_between(x, means - spreads, means + spreads, color=style.colour, alpha=0.25, lw=0)


def draw_samples(axes: Axes, images: Sequence[Tensor]) -> None:
    """Draw images below the ticks at 0, 1, 2, ... of a horizontal axis."""
    low, high = axes.get_xlim()
    width = min(0.9 / (high - low), 0.2)
    for place, image in enumerate(images):
        centre = (place - low) / (high - low)
        inset = axes.inset_axes((centre - width / 2, -0.1 - 0.14 - 0.02, width, 0.14))
        inset.imshow(image.cpu().numpy(), vmin=0, vmax=255)
        inset.axis("off")


def _draw_locality(axes: Axes, locality: Mapping[str, Any], styles: Mapping[str, Style]) -> None:
    """Draw accuracy on original and permuted images."""
    kinds = ("original", "permuted")
    for name, style in styles.items():
        if name not in locality:
            continue
        summaries = [locality[name][kind] for kind in kinds]
        means = [summary["mean"] for summary in summaries]
        spreads = [summary["std"] or 0 for summary in summaries]
        look: dict[str, Any] = {"fmt": f"{style.marker}-", "color": style.colour}
        axes.errorbar(range(2), means, spreads, capsize=4, lw=2, label=style.label, **look)
        for place, mean in enumerate(means):
            offset = (8 if place else -8, 6)
            axes.annotate(
                f"{mean:.1%}",
                (place, mean),
                offset,
                textcoords="offset points",
                ha="left" if place else "right",
                color=style.colour,
            )
    axes.set_xlim(-0.6, 1.6)
    axes.margins(y=0.2)
    axes.set_xticks(range(2), kinds)
    axes.set_title("Locality: pixels in a fixed random order", loc="left")
    axes.set_ylabel("test accuracy")
    format_percent(axes.yaxis)
    axes.legend(loc="lower left")


def _draw_sizes(axes: Axes, data: Mapping[str, Any], styles: Mapping[str, Style]) -> None:
    """Draw accuracy against the number of training images."""
    for name, style in styles.items():
        if name in data:
            draw_band(axes, data["images"], data[name], style)
    axes.set_xscale("log")
    axes.set_xticks(data["images"], [f"{images:,}" for images in data["images"]])
    axes.minorticks_off()
    axes.set(xlabel="training images")
    axes.set_title("Data: fewer training images", loc="left")
    format_percent(axes.yaxis)
    axes.legend(loc="lower right")


def _draw_resized(axes: Axes, sizes: Mapping[str, Any], styles: Mapping[str, Style]) -> None:
    """Draw the accuracy of networks of several sizes, the smallest first."""
    order = sorted(sizes, key=lambda name: sizes[name]["accuracy"]["mean"])
    labels = []
    for height, name in enumerate(order):
        size = sizes[name]
        style = styles[name.partition("-")[0]]
        accuracy = size["accuracy"]
        look: dict[str, Any] = {"fmt": style.marker, "color": style.colour}
        axes.errorbar(accuracy["mean"], height, xerr=accuracy["std"] or 0, capsize=4, ms=8, **look)
        axes.annotate(
            f"{accuracy['mean']:.1%}",
            (accuracy["mean"], height),
            (0, 9),
            textcoords="offset points",
            ha="center",
            color=style.colour,
        )
        kind = "" if "-" in name else ", default"
        labels.append(
            f"{style.label}{kind}\n{size['parameters'] / 1e6:.2f} M parameters\n"
            f"{size['multiply_accumulates'] / 1e6:.2f} M multiply-accumulates"
        )
    axes.set_yticks(range(len(order)), labels)
    axes.margins(x=0.12, y=0.12)
    axes.set_title("Size: equal parameters or multiply-accumulates", loc="left")
    axes.set_xlabel("test accuracy")
    format_percent(axes.xaxis)
