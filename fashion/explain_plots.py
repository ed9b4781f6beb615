"""Figures of what is inside a network, in the style of plots.

Functions that draw take the style of a model, or the styles of several models by name, and the
title of the figure. Names of kernels are those of kernel_name.
"""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import FuncNorm
from matplotlib.figure import Figure, FigureBase
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from PIL import Image

from fashion import plots
from fashion.data import CLASS_NAMES
from fashion.explain import OCCLUSION_SIZE, KernelKind, Progression, Unit
from fashion.files import write_file
from fashion.plots import DIVERGING, GREY, VERMILION, Style, hide_axes, make_figure, styled

TILES_PER_ROW = 8  # of kernels and maps: 32 or 64 tiles fill a page well
EMBEDDINGS_PER_ROW = 3
# Percentage of the values that a common scale may clip, so that outliers do not make the rest pale.
# The pointed ends of the colour bar show it.
CLIPPED_PERCENT = 0.5
CLIPPED_PERCENT_OF_WEIGHTS = 2  # some first-layer kernels are many times larger than the rest
# Symbols of the kinds of kernels. Each arrow stands for 45 degrees.
ARROWS = "→↗↑↖←↙↓↘"
SIGNS = {("spot", 1): "●", ("spot", -1): "○", ("area", 1): "■", ("area", -1): "□"}
LEGEND = (
    "symbols of kernels   ↗ edge, from dark to light   ● light spot   ○ dark spot   ■ light area   "
    "□ dark area   none: other"
)
DIMMED = 0.3  # brightness of an image outside a patch
OUTLINE = 60  # grey level of the contour line in a saliency map
HEADER_HEIGHT = 0.11  # of the row of scales above saliency maps, relative to the other rows
NOTE = (
    "Red supports the predicted class, blue opposes it. Each column has its own scale, on which "
    "colours follow the square root to show small values. Grey: outline of the input. Occlusion: "
    "decrease of the log-odds ln(p / (1 − p)) of the predicted class, which has the probability p, "
    f"when the {OCCLUSION_SIZE} × {OCCLUSION_SIZE} pixels around a pixel are made black."
)
NOTE_ON_GRADIENTS = (
    " Integrated gradients: contribution of a pixel to the log-odds, relative to a black image."
)
# Ten colours for colour-blind readers (Petroff, https://arxiv.org/abs/2107.02270).
CLASS_COLOURS = matplotlib.color_sequences["petroff10"]
NAME_LENGTH = 26  # characters of a file name that fit above a panel
GIF_DPI = 64
GIF_LEGEND_WIDTH = 62  # characters per line
GIF_FRAME_MS, GIF_LAST_MS = 90, 2500  # a hundred frames take about ten seconds


# Kernels and maps


def kernel_name(number: int, kind: KernelKind) -> str:
    """Return a kernel's number with the symbol of its kind, see LEGEND."""
    if kind.kind == "edge":
        return f"{number} {ARROWS[round(kind.angle / 45) % 8]}"
    return f"{number} {SIGNS.get((kind.kind, kind.sign), '')}".strip()


@styled()
def draw_kernels(
    trained: np.ndarray, untrained: np.ndarray, names: Sequence[str], title: str
) -> Figure:
    """Draw kernels (K, height, width) before and after training, on a common scale."""
    columns, rows = _grid_shape(len(trained))
    figure = make_figure(title, 2 * 0.78 * columns + 2.2, 0.95 * rows + 1.6)
    figure.supxlabel(LEGEND, fontsize=9, color=GREY)
    scale = _scale([trained, untrained], CLIPPED_PERCENT_OF_WEIGHTS)
    # The right part also holds the colour bar, which is about as wide as 1.4 tiles.
    widths = (columns, columns + 1.4)
    left, right = figure.subfigures(1, 2, squeeze=False, wspace=0.04, width_ratios=widths).flat
    numbers = [name.split()[0] for name in names]  # the kinds are those of the trained kernels
    left.suptitle("before training (random)", fontsize=11)
    right.suptitle("after training", fontsize=11)
    _draw_tiles(left, untrained, numbers, scale)
    _add_bar(right, _draw_tiles(right, trained, names, scale), "weight", extend="both")
    return figure


@styled()
def draw_image_transform(
    image: np.ndarray, maps: np.ndarray, names: Sequence[str], signed: bool, title: str
) -> Figure:
    """Draw an image and the feature maps of kernels (K, height, width), on a common scale.

    The output of a convolution is signed; after batch norm and ReLU it is not.
    """
    columns, rows = _grid_shape(len(maps))
    height = 1.2 * rows + 1.1
    widths = (0.8 * height, 1.05 * columns + 1.3)
    figure = make_figure(title, sum(widths), height)
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=widths).flat
    _draw_image(left.subplots(), image, "input image")
    right.supxlabel(LEGEND, fontsize=9, color=GREY)
    panels = _draw_tiles(right, maps, names, _scale(maps, CLIPPED_PERCENT, signed))
    label, extend = ("response", "both") if signed else ("activation", "max")
    _add_bar(right, panels, label, extend=extend)
    return figure


def _grid_shape(count: int, per_row: int = TILES_PER_ROW) -> tuple[int, int]:
    """Return the numbers of columns and rows of a grid with this number of tiles."""
    columns = min(count, per_row)
    return columns, -(-count // columns)


def _scale(values: Any, clipped: float = 0, signed: bool = True) -> dict[str, Any]:
    """Return colours and limits for values, of which the scale may clip this percentage."""
    limit = np.percentile(np.abs(values), 100 - clipped) or 1
    low, colours = (-limit, DIVERGING) if signed else (0, plots.SEQUENTIAL)
    return {"cmap": colours, "vmin": low, "vmax": limit}


def _draw_image(axes: Axes, image: np.ndarray | Image.Image, title: str = "") -> None:
    """Draw a greyscale or RGB image with its title."""
    axes.imshow(image, vmin=0, vmax=255)
    axes.set_title(title, fontsize=9)
    hide_axes(axes)


def _draw_tiles(
    part: FigureBase, tiles: np.ndarray, names: Iterable[object], scale: Mapping[str, Any]
) -> np.ndarray:
    """Draw a grid of named tiles on a common scale; return its panels."""
    columns, rows = _grid_shape(len(tiles))
    panels = part.subplots(rows, columns, squeeze=False)
    for axes, tile, name in zip(panels.flat, tiles, names, strict=False):
        axes.imshow(tile, **scale)
        axes.set_title(f"{name}", fontsize=8, pad=2)
    hide_axes(*panels.flat)
    return panels


def _add_bar(part: FigureBase, panels: np.ndarray, label: str, **keywords: Any) -> None:
    """Add the colour bar of panels with a common scale beside them, without moving them."""
    look = {"aspect": 30, "shrink": 0.9, "panchor": False} | keywords
    part.colorbar(panels[0, 0].images[0], ax=panels, label=label, **look)


@styled()
def draw_progression(
    image: np.ndarray, progression: Progression, style: Style, title: str
) -> Figure:
    """Draw an image's activations layer by layer: feature maps, hidden layers, probabilities.

    Each row has its own scale, since activations differ in size between layers. Of each block, the
    maps with the largest standard deviation are shown; a map that is high everywhere is not
    informative. See explain.follow.
    """
    blocks, hidden = progression.activations, progression.hidden
    heights = (1.5, *[1.5] * len(blocks), 0.9 * len(hidden), 2.6)
    figure = make_figure(title, 1.25 * TILES_PER_ROW + 1.5, sum(heights) + 1.1)
    parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights).flat
    first, *rows, strips, last = parts
    first.suptitle(f"input: {' × '.join(map(str, image.shape))} pixels", fontsize=10)
    _draw_image(first.subplots(), image)
    for number, (row, maps) in enumerate(zip(rows, blocks, strict=True), start=1):
        strongest = np.argsort(-maps.std(axis=(1, 2)), kind="stable")[:TILES_PER_ROW]
        row.suptitle(
            f"output of block {number}: the {len(strongest)} of {len(maps)} feature maps that "
            f"vary most, {maps.shape[1]} × {maps.shape[2]} values each",
            fontsize=10,
        )
        scale = _scale(maps[strongest], signed=False)
        panels = _draw_tiles(row, maps[strongest], strongest, scale)
        _add_bar(row, panels, "activation", aspect=10, shrink=1)
    widths = ", ".join(str(len(values)) for values in hidden)
    strips.suptitle(f"hidden linear layers ({widths} units), one stripe per unit", fontsize=10)
    panels = strips.subplots(len(hidden), 1, squeeze=False)
    scale = _scale(np.concatenate(hidden), signed=False)
    for axes, values in zip(panels.flat, hidden, strict=True):
        axes.imshow(values[None], aspect="auto", **scale)
    hide_axes(*panels.flat)
    _add_bar(strips, panels, "activation", aspect=10, shrink=1)
    last.suptitle("output: class probabilities", fontsize=10)
    _draw_probabilities(last.subplots(), {style: progression.probabilities}, upright=True)
    return figure


def _draw_probabilities(
    axes: Axes, probabilities: Mapping[Style, np.ndarray], upright: bool = False
) -> None:
    """Draw each model's class probabilities as bars, vertical or from top to bottom."""
    offsets, thickness = plots.group_bars(len(probabilities))
    places = np.arange(len(CLASS_NAMES))
    draw = axes.bar if upright else axes.barh
    for offset, (style, values) in zip(offsets, probabilities.items(), strict=True):
        bars = draw(places + offset, values, thickness, color=style.colour, label=style.label)
        texts = [f"{value:.0%}" if value >= 0.01 else "" for value in values]
        axes.bar_label(bars, texts, padding=2, fontsize=8 if upright else 7)
    numbers, classes = (axes.yaxis, axes.xaxis) if upright else (axes.xaxis, axes.yaxis)
    classes.set_ticks(places, CLASS_NAMES, fontsize=9)
    classes.grid(False)
    classes.set_inverted(not upright)
    (axes.set_ylim if upright else axes.set_xlim)(0, 1.15)
    numbers.set_ticks([0, 0.5, 1], ["0%", "50%", "100%"])


# Units


@styled()
def draw_top_activations(
    units: Sequence[Unit], images: np.ndarray, labels: np.ndarray, title: str
) -> Figure:
    """Draw the images that activate each unit most, bright in the patch that activates it.

    The images, uint8 (N, 28, 28), and their classes (N,) are those that were passed to
    explain.find_units.
    """
    columns = len(units[0].images)
    figure = make_figure(title, 1.12 * columns + 2.2, 1.38 * len(units) + 1.1)
    panels = figure.subplots(len(units), columns, squeeze=False)
    for row, unit in zip(panels, units, strict=True):
        examples = zip(row, unit.images, unit.activations, unit.patches, strict=True)
        for axes, index, activation, (top, left, size) in examples:
            x, y = max(left, 0), max(top, 0)  # the patch can exceed the image
            patch = images[index, y : top + size, x : left + size]
            height, width = patch.shape
            shown = images[index] * DIMMED
            shown[y : y + height, x : x + width] = patch
            _draw_image(axes, shown)
            corner = (x - 0.5, y - 0.5)  # pixels extend by 0.5 around their coordinates
            axes.add_patch(Rectangle(corner, width, height, fill=False, ec=VERMILION, lw=1.5))
            axes.set_title(f"{CLASS_NAMES[labels[index]]}\n{activation:.1f}", fontsize=7.5, pad=2)
        text = f"unit {unit.number}\nselectivity {unit.selectivity:.2f}"
        row[0].set_ylabel(text, rotation=0, ha="right", va="center", fontsize=9)
    return figure


# Saliency


@dataclass(frozen=True)
class Explanation:
    """The saliency of one image for one model's predicted class, which has this probability.

    The saliency maps (28, 28) are those of explain.occlusion and explain.integrated_gradients.
    """

    label: int
    probability: float
    occlusion: np.ndarray
    gradients: np.ndarray


@styled()
def draw_saliency(
    images: np.ndarray,
    captions: Sequence[str],
    explanations: Sequence[Mapping[str, Explanation]],
    styles: Mapping[str, Style],
    title: str,
) -> Figure:
    """Draw the saliency maps of two methods for all models side by side.

    Each method and model has its own scale, since their values differ in size. Each image, uint8
    (28, 28), has a caption and an explanation of every model.
    """
    methods = {"occlusion": "occlusion", "gradients": "integrated gradients"}
    keys = [(method, name) for method in methods for name in explanations[0]]
    widths = (1, *[1] * len(keys))
    figure = make_figure(title, 1.9 * len(widths) + 0.4, 2.2 * len(images) + 2)
    text = fill(NOTE + NOTE_ON_GRADIENTS, 25 * len(widths))
    figure.supxlabel(text, fontsize=9, color=GREY)
    (header, *panels), *columns = _add_columns(figure, len(images), widths)
    header.set_title("input of the models", fontsize=10, y=0)
    for axes, image, caption in zip(panels, images, captions, strict=True):
        _draw_image(axes, image, caption)
    for column, (method, name) in zip(columns, keys, strict=True):
        chosen = [by_model[name] for by_model in explanations]
        maps = [getattr(each, method) for each in chosen]
        titles = [f"{CLASS_NAMES[each.label]} {each.probability:.0%}" for each in chosen]
        _draw_saliency(column, images, maps, titles, methods[method], styles[name])
    return figure


def _add_columns(figure: Figure, rows: int, widths: Sequence[float]) -> np.ndarray:
    """Add columns of panels, each below an empty header; return the axes of each column."""
    heights = (HEADER_HEIGHT, *[1] * rows)
    grid = figure.subplots(1 + rows, len(widths), width_ratios=widths, height_ratios=heights)
    hide_axes(*grid[0])
    return grid.T


def _draw_saliency(
    column: Sequence[Axes],
    images: Iterable[np.ndarray],
    maps: Sequence[np.ndarray],
    titles: Sequence[str],
    method: str,
    style: Style,
) -> None:
    """Draw a model's saliency maps with the outlines of the images, below their common scale."""
    header, *panels = column
    limit = _scale(maps, CLIPPED_PERCENT)["vmax"]
    root, square = (lambda x: np.sign(x) * np.sqrt(np.abs(x))), (lambda x: x * np.abs(x))
    scale = FuncNorm((root, square), -limit, limit)
    for axes, image, values, title in zip(panels, images, maps, titles, strict=True):
        shown = axes.imshow(values, DIVERGING, scale)
        if image.max() > OUTLINE > image.min():
            axes.contour(image, levels=[OUTLINE], colors=[GREY], linewidths=0.7)
        axes.set_title(title, fontsize=9, color=style.colour)
    hide_axes(*panels)
    bar = header.inset_axes((0, 0, 1, 0.5))
    ticks = MaxNLocator(4, symmetric=True)  # more labels would overlap
    header.figure.colorbar(shown, bar, orientation="horizontal", extend="both", ticks=ticks)
    bar.tick_params(labelsize=8)
    bar.set_xlabel("support (log-odds)", fontsize=8)
    header.set_title(f"{style.label}\n{method}", fontsize=10, color=style.colour)


# Embedding


@styled()
def draw_embedding(
    places: Mapping[str, np.ndarray],
    predictions: Mapping[str, np.ndarray],
    labels: np.ndarray,
    styles: Mapping[str, Style],
    title: str,
) -> Figure:
    """Draw each model's embedding (N, 2), coloured by true class, with errors circled.

    See explain.last_hidden and explain.embed.
    """
    columns, rows = _grid_shape(len(places), EMBEDDINGS_PER_ROW)
    figure = make_figure(title, max(9, 6.3 * columns + 0.4), 6.2 * rows + 1.2)
    caption = (
        "t-SNE: each point is an image, coloured by its true class; errors are circled in black. "
        "Names mark the median of each class. Nearby points are similar in the last hidden layer; "
        "distances between groups have no meaning."
    )
    figure.supxlabel(fill(caption, max(110, 80 * columns)), fontsize=9, color=GREY)
    panels = figure.subplots(rows, columns, squeeze=False)
    halo = [withStroke(linewidth=3, foreground="white")]
    text = {"ha": "center", "va": "center", "weight": "bold", "path_effects": halo}
    colours = np.array(CLASS_COLOURS)[labels]
    for axes, (name, points) in zip(panels.flat, places.items(), strict=False):
        style, wrong = styles[name], predictions[name] != labels
        axes.scatter(*points[~wrong].T, s=3, c=colours[~wrong], linewidths=0, rasterized=True)
        axes.scatter(*points[wrong].T, s=9, c=colours[wrong], edgecolors="black", linewidths=0.6)
        for label in np.unique(labels):
            axes.text(*np.median(points[labels == label], axis=0), CLASS_NAMES[label], **text)
        axes.set_title(f"{style.label}: {wrong.mean():.1%} errors", color=style.colour)
        axes.set(box_aspect=1, xmargin=0.03, ymargin=0.03)
        axes.set_aspect("equal", "datalim")
    hide_axes(*panels.flat)
    return figure


# Recording


def draw_recording(
    frames: Sequence[np.ndarray], names: Sequence[str], titles: Sequence[str]
) -> Iterator[Image.Image]:
    """Yield an image for each frame of a recording, kernels (K, height, width), on a common scale.

    Each frame has its own title.
    """
    columns, rows = _grid_shape(len(names))
    with styled():
        figure = Figure(figsize=(0.85 * columns + 1.4, rows + 1.3), dpi=GIF_DPI)
        figure.supxlabel(fill(LEGEND, GIF_LEGEND_WIDTH), fontsize=9, color=GREY)
        canvas = FigureCanvasAgg(figure)
        scale = _scale(frames[-1], CLIPPED_PERCENT_OF_WEIGHTS)
        panels = _draw_tiles(figure, frames[-1], names, scale)
        _add_bar(figure, panels, "weight", extend="both")
        heading = figure.suptitle(titles[-1])
        canvas.draw()
        figure.set_layout_engine("none")  # the layout must not change between frames
        for kernels, title in zip(frames, titles, strict=True):
            for axes, kernel in zip(panels.flat, kernels, strict=False):
                axes.images[0].set_data(kernel)
            heading.set_text(title)
            canvas.draw()
            yield Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def save_gif(images: Iterable[Image.Image], path: Path) -> None:
    """Write images of equal size as an endless GIF, atomically.

    Raises:
        RunError: If the file cannot be written.
    """
    # One palette for all frames, of the weights' colours and greys for text. Palettes chosen from
    # the pixels would flicker, and dithering would look like weights. 128 colours keep it small.
    colours = matplotlib.colormaps[DIVERGING](np.linspace(0, 1, 111))[:, :3]
    greys = np.linspace((0, 0, 0), (1, 1, 1), 17)
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.uint8(255 * np.vstack([colours, greys])).tobytes())
    frames = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    durations = [GIF_FRAME_MS] * (len(frames) - 1) + [GIF_LAST_MS]
    content = io.BytesIO()
    keywords = {"save_all": True, "append_images": frames[1:], "duration": durations, "loop": 0}
    frames[0].save(content, "GIF", **keywords)
    write_file(path, content.getvalue())


# Predictions


@dataclass(frozen=True)
class PictureReport:
    """A picture file and the models' predictions for it.

    Attributes:
        original: The picture in RGB, of any size; None if it is not drawn.
        seen: The input of the models, uint8 (28, 28).
        probabilities: Calibrated class probabilities (10,) by model.
        excess: Energy of the input above the model's limit, by model, see evaluation.energy.
        saliency: Saliency map (28, 28) of the predicted class by model, see explain.occlusion.
        doubt: Why the garment may not have been found in the picture, or None.
    """

    name: str
    original: Image.Image | None
    seen: np.ndarray
    probabilities: dict[str, np.ndarray]
    excess: dict[str, float]
    saliency: dict[str, np.ndarray]
    doubt: str | None = None


@styled()
def draw_reports(
    reports: Sequence[PictureReport], styles: Mapping[str, Style], title: str
) -> Figure:
    """Draw a row for each picture: the original, the models' input, probabilities and saliency.

    An input is marked as unlike the training images for the models whose excess is positive.
    """
    names = list(reports[0].probabilities)
    height = max(2.6, 1 + 0.9 * len(names))  # inches per row, for the labels of the bars
    figure = make_figure(title, 9.5 + 2 * len(names), height * len(reports) + 1.8)
    figure.supxlabel(fill(NOTE, 120 + 20 * len(names)), fontsize=9, color=GREY)
    columns = _add_columns(figure, len(reports), (1, 1, 1.5, *[1] * len(names)))
    for (original, seen, bars), report in zip(columns[:3, 1:].T, reports, strict=True):
        if report.original:
            _draw_image(original, report.original, shorten(report.name))
        strange = ", ".join(styles[name].label for name in names if report.excess[name] > 0)
        warning = strange and f"unlike the training images\n({strange})"
        _draw_image(seen, report.seen, warning)
        _draw_probabilities(bars, {styles[name]: report.probabilities[name] for name in names})
    columns[0, 0].set_title("picture", fontsize=10, y=0)
    columns[1, 0].set_title("input of the models", fontsize=10, y=0)
    handles, labels = columns[2, 1].get_legend_handles_labels()
    columns[2, 0].legend(handles, labels, title="probability", loc="center", ncols=len(names))
    images = [report.seen for report in reports]
    for column, name in zip(columns[3:], names, strict=True):
        probabilities = [report.probabilities[name] for report in reports]
        titles = [f"{CLASS_NAMES[each.argmax()]} {each.max():.0%}" for each in probabilities]
        maps = [report.saliency[name] for report in reports]
        _draw_saliency(column, images, maps, titles, "occlusion", styles[name])
    return figure


def shorten(name: str) -> str:
    """Return a file name without its folder, shortened to the width of a panel."""
    name = name.replace("\\", "/").rsplit("/", 1)[-1]
    name = name.encode(errors="backslashreplace").decode()  # names may contain bytes without text
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 8]}…{name[-7:]}"
