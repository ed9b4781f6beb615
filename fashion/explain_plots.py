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
from matplotlib.figure import Figure, FigureBase, SubFigure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from fashion import plots
from fashion.data import CLASS_NAMES
from fashion.explain import KernelKind, Progression, Unit
from fashion.files import write_file
from fashion.plots import DIVERGING, GREY, SEQUENTIAL, VERMILION, Style, hide_axes, styled

TILES_PER_ROW = 8  # of kernels and maps: 32 or 64 tiles fill a page well
MAPS_PER_BLOCK = 8  # in the feature progression
EMBEDDINGS_PER_ROW = 3
# Percentage of the values that a common scale may clip, so that outliers do not make the rest pale.
# The pointed ends of the colour bar show it.
CLIPPED_PERCENT = 0.5
CLIPPED_PERCENT_OF_WEIGHTS = 2  # some first-layer kernels are many times larger than the rest
# Symbols of the kinds of kernels. Each arrow stands for 45 degrees.
ARROWS = "→↗↑↖←↙↓↘"
SIGNS = {("spot", 1): "●", ("spot", -1): "○", ("area", 1): "■", ("area", -1): "□"}
LEGEND = (
    "arrow: edge, from dark to light   ● light spot   ○ dark spot   ■ light area   □ dark area   "
    "no symbol: other"
)
DIMMED = 0.3  # brightness of an image outside a patch
PERCENT = {"format": FuncFormatter(plots.percent), "pad": 0.01}  # of a colour bar
OUTLINE = 60  # grey level of the contour line in a saliency map
# Ten colours for colour-blind readers (Petroff, https://arxiv.org/abs/2107.02270).
CLASS_COLOURS = matplotlib.color_sequences["petroff10"]
NAME_LENGTH = 26  # characters of a file name that fit above a panel
GIF_DPI = 64
GIF_FRAME_MS = 90  # a hundred frames take about ten seconds
GIF_LAST_MS = 2500
GIF_COLOURS, GIF_GREYS = 111, 17  # together 128, few enough for a small file


# Kernels and maps


def kernel_name(number: int, kind: KernelKind) -> str:
    """Return a kernel's number with the symbol of its kind, see LEGEND."""
    if kind.kind == "edge":
        return f"{number} {ARROWS[round(kind.angle / 45) % 8]}"
    return f"{number} {SIGNS.get((kind.kind, kind.sign), '')}".strip()


@styled
def draw_kernels(
    trained: np.ndarray, untrained: np.ndarray, names: Sequence[str], title: str
) -> Figure:
    """Draw kernels (K, height, width) before and after training, on a common scale."""
    columns, rows = _grid_shape(len(trained))
    figure = Figure(figsize=(2 * 0.78 * columns + 2.2, 0.95 * rows + 1.6))
    figure.suptitle(title)
    figure.supxlabel(LEGEND, fontsize=9, color=GREY)
    limit = np.percentile(np.abs([trained, untrained]), 100 - CLIPPED_PERCENT_OF_WEIGHTS) or 1
    # The right part also holds the colour bar, which is about as wide as 1.4 tiles.
    widths = (columns, columns + 1.4)
    parts = figure.subfigures(1, 2, squeeze=False, wspace=0.04, width_ratios=widths).flat
    heads = {"before training (random)": untrained, "after training": trained}
    for part, (head, kernels) in zip(parts, heads.items(), strict=True):
        part.suptitle(head, fontsize=11)
        panels = part.subplots(rows, columns, squeeze=False)
        mesh = _draw_tiles(panels, kernels, names, cmap=DIVERGING, vmin=-limit, vmax=limit)
    _add_bar(part, mesh, panels, "weight", extend="both")
    return figure


@styled
def draw_image_transform(
    image: np.ndarray, maps: np.ndarray, names: Sequence[str], signed: bool, title: str
) -> Figure:
    """Draw an image and the feature maps of kernels (K, height, width), on a common scale.

    Maps are signed if they are the output of the convolution. After batch norm and ReLU they are
    not.
    """
    columns, rows = _grid_shape(len(maps))
    height = 1.2 * rows + 1.1
    widths = (0.8 * height, 1.05 * columns + 1.3)
    figure = Figure(figsize=(sum(widths), height))
    figure.suptitle(title)
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=widths).flat
    _draw_image(left.subplots(), image, "input image")
    limit = np.percentile(np.abs(maps), 100 - CLIPPED_PERCENT) or 1
    panels = right.subplots(rows, columns, squeeze=False)
    right.supxlabel(LEGEND, fontsize=9, color=GREY)
    if signed:
        mesh = _draw_tiles(panels, maps, names, cmap=DIVERGING, vmin=-limit, vmax=limit)
        _add_bar(right, mesh, panels, "response", extend="both")
    else:
        mesh = _draw_tiles(panels, maps, names, cmap=SEQUENTIAL, vmin=0, vmax=limit)
        _add_bar(right, mesh, panels, "activation", extend="max")
    return figure


def _grid_shape(count: int) -> tuple[int, int]:
    """Return the numbers of columns and rows of a grid with this number of tiles."""
    columns = min(count, TILES_PER_ROW)
    return columns, -(-count // columns)


def _draw_image(axes: Axes, image: np.ndarray | Image.Image, title: str) -> None:
    """Draw a greyscale or RGB image with its title."""
    axes.imshow(image, vmin=0, vmax=255)
    axes.set_title(title, fontsize=9)
    hide_axes(axes)


def _draw_tiles(
    panels: np.ndarray, tiles: np.ndarray, names: Iterable[object], **scale: Any
) -> AxesImage:
    """Fill panels with named tiles on a common scale; return one of them for the colour bar."""
    for axes, tile, name in zip(panels.flat, tiles, names, strict=False):
        mesh = axes.imshow(tile, **scale)
        axes.set_title(f"{name}", fontsize=8, pad=2)
    for axes in panels.flat:
        hide_axes(axes)
    return mesh


def _add_bar(
    part: FigureBase, mesh: AxesImage, panels: np.ndarray, label: str, **keywords: Any
) -> None:
    """Add a colour bar beside panels without moving them in their grid."""
    look = {"aspect": 30, "shrink": 0.9, "panchor": False} | keywords
    part.colorbar(mesh, ax=panels, label=label, **look)


@styled
def draw_progression(
    image: np.ndarray, progression: Progression, style: Style, title: str
) -> Figure:
    """Draw an image's activations layer by layer: feature maps, hidden layers, probabilities.

    Each row has its own scale, since activations differ in size between layers. Of each block, the
    maps with the largest standard deviation are shown; a map that is high everywhere is not
    informative. See explain.follow.
    """
    blocks, hidden = progression.activations, progression.hidden
    heights = [1.5, *[1.5] * len(blocks), *[0.9 * len(hidden)] * bool(hidden), 2.6]
    figure = Figure(figsize=(1.25 * MAPS_PER_BLOCK + 1.5, sum(heights) + 1.1))
    figure.suptitle(title)
    first, *rows, last = figure.subfigures(
        len(heights), 1, squeeze=False, height_ratios=heights
    ).flat
    side = " × ".join(map(str, image.shape))
    first.suptitle(f"input: {side} pixels", fontsize=10)
    _draw_image(first.subplots(), image, "")
    for number, (row, maps) in enumerate(zip(rows, blocks, strict=False), start=1):
        strongest = np.argsort(-maps.std(axis=(1, 2)), kind="stable")[:MAPS_PER_BLOCK]
        row.suptitle(
            f"output of block {number}: the {len(strongest)} most varied of {len(maps)} feature "
            f"maps, {maps.shape[1]} × {maps.shape[2]} values each",
            fontsize=10,
        )
        panels = row.subplots(1, MAPS_PER_BLOCK, squeeze=False)
        top = maps[strongest].max() or 1
        scale = {"cmap": SEQUENTIAL, "vmin": 0, "vmax": top}
        mesh = _draw_tiles(panels, maps[strongest], strongest, **scale)
        _add_bar(row, mesh, panels, "activation", aspect=10, shrink=1)
    if hidden:
        _draw_hidden(rows[-1], hidden)
    last.suptitle("output: class probabilities", fontsize=10)
    _draw_probabilities(last.subplots(), {style: progression.probabilities}, upright=True)
    return figure


def _draw_hidden(part: SubFigure, hidden: Sequence[np.ndarray]) -> None:
    """Draw the units of each hidden layer as a strip."""
    widths = ", ".join(str(len(values)) for values in hidden)
    part.suptitle(f"hidden linear layers ({widths} units), one stripe per unit", fontsize=10)
    top = max(values.max() for values in hidden) or 1
    panels = part.subplots(len(hidden), 1, squeeze=False)
    for axes, values in zip(panels.flat, hidden, strict=True):
        mesh = axes.imshow(values[None], cmap=SEQUENTIAL, vmin=0, vmax=top, aspect="auto")
        hide_axes(axes)
    _add_bar(part, mesh, panels, "activation", aspect=10, shrink=1)


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
    number_axis, class_axis = (axes.yaxis, axes.xaxis) if upright else (axes.xaxis, axes.yaxis)
    class_axis.set_ticks(places, CLASS_NAMES, fontsize=9)
    class_axis.grid(False)
    plots.format_percent(number_axis)
    (axes.set_ylim if upright else axes.set_xlim)(0, 1.15)
    number_axis.set_ticks([0, 0.5, 1])
    if not upright:
        axes.invert_yaxis()


# Units


@styled
def draw_top_activations(
    units: Sequence[Unit], images: np.ndarray, labels: np.ndarray, title: str
) -> Figure:
    """Draw the images that activate each unit most, bright in the patch that activates it.

    The images, uint8 (N, 28, 28), and their classes (N,) are those that were passed to
    explain.find_units.
    """
    columns = len(units[0].images)
    figure = Figure(figsize=(1.12 * columns + 2.2, 1.38 * len(units) + 1.1))
    figure.suptitle(title)
    panels = figure.subplots(len(units), columns, squeeze=False)
    for row, unit in zip(panels, units, strict=True):
        for axes, index, activation, (top, left, size) in zip(
            row, unit.images, unit.activations, unit.patches, strict=True
        ):
            # The part of the patch inside the image.
            x, y = max(left, 0), max(top, 0)
            height, width = np.minimum((top + size, left + size), images.shape[1:]) - (y, x)
            patch = np.s_[y : y + height, x : x + width]
            shown = images[index] * DIMMED
            shown[patch] = images[index][patch]
            _draw_image(axes, shown, "")
            # Pixels extend by 0.5 around their coordinates.
            frame = Rectangle((x - 0.5, y - 0.5), width, height, fill=False)
            frame.set(edgecolor=VERMILION, linewidth=1.5)
            axes.add_patch(frame)
            axes.set_title(f"{CLASS_NAMES[labels[index]]}\n{activation:.1f}", fontsize=7.5, pad=2)
        text = f"unit {unit.number}\nselectivity {unit.selectivity:.2f}"
        row[0].set_ylabel(text, rotation=0, ha="right", va="center", fontsize=9)
    return figure


# Saliency


@dataclass(frozen=True)
class Explanation:
    """The saliency of one image for one model.

    Attributes:
        label: The predicted class.
        probability: Its probability.
        occlusion, gradients: Saliency maps (28, 28), see explain.occlusion and
            explain.integrated_gradients.
    """

    label: int
    probability: float
    occlusion: np.ndarray
    gradients: np.ndarray


@styled
def draw_saliency(
    images: np.ndarray,
    captions: Sequence[str],
    explanations: Sequence[Mapping[str, Explanation]],
    styles: Mapping[str, Style],
    title: str,
) -> Figure:
    """Draw the saliency maps of two methods for all models side by side.

    Each method has one scale for all images and models, so its maps can be compared. Each image,
    uint8 (28, 28), has a caption and an explanation of every model.
    """
    methods = {
        "occlusion": "Occlusion: decrease of the predicted class's probability when a square here "
        "is black",
        "gradients": "Integrated gradients: contribution of this pixel to the predicted class's "
        "probability",
    }
    names = list(explanations[0])
    columns = 1 + len(methods) * len(names)
    figure = Figure(figsize=(1.9 * columns + 1, 2.15 * len(images) + 2))
    figure.suptitle(title)
    panels = figure.subplots(len(images), columns, squeeze=False)
    for axes, image, caption in zip(panels[:, 0], images, captions, strict=True):
        _draw_image(axes, image, caption)
    for start, (method, label) in zip(range(1, columns, len(names)), methods.items(), strict=True):
        part = panels[:, start : start + len(names)]
        values = [getattr(each[name], method) for each in explanations for name in names]
        limit = np.percentile(np.abs(values), 100 - CLIPPED_PERCENT) or 1
        for row, image, by_model in zip(part, images, explanations, strict=True):
            for axes, name in zip(row, names, strict=True):
                explanation, style = by_model[name], styles[name]
                mesh = _draw_saliency_map(axes, image, getattr(explanation, method), limit)
                prediction = f"{CLASS_NAMES[explanation.label]}\n{explanation.probability:.0%}"
                axes.set_title(f"{style.label}: {prediction}", fontsize=9, color=style.colour)
        ticks = MaxNLocator(4, symmetric=True)  # more labels would overlap
        text = fill(label, 24 * len(names))
        _add_bar(figure, mesh, part, text, location="top", extend="both", ticks=ticks, **PERCENT)
    return figure


def _draw_saliency_map(
    axes: Axes, image: np.ndarray, values: np.ndarray, limit: float
) -> AxesImage:
    """Draw signed values over the outline of the image."""
    mesh = axes.imshow(values, cmap=DIVERGING, vmin=-limit, vmax=limit)
    if image.max() > OUTLINE > image.min():
        axes.contour(image, levels=[OUTLINE], colors=[GREY], linewidths=0.7)
    hide_axes(axes)
    return mesh


# Embedding


@styled
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
    columns = min(len(places), EMBEDDINGS_PER_ROW)
    rows = -(-len(places) // columns)
    figure = Figure(figsize=(max(9, 6.3 * columns + 0.4), 6.2 * rows + 1.2))
    figure.suptitle(title)
    caption = (
        "t-SNE: each point is an image, coloured by its true class; errors are circled in black. "
        "Names mark the median of each class. Nearby points are similar in the last hidden layer; "
        "distances between groups have no meaning."
    )
    figure.supxlabel(fill(caption, max(110, 80 * columns)), fontsize=9, color=GREY)
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes, (name, points) in zip(panels.flat, places.items(), strict=False):
        wrong = predictions[name] != labels
        colours = np.array(CLASS_COLOURS)[labels]
        axes.scatter(*points[~wrong].T, s=3, c=colours[~wrong], linewidths=0, rasterized=True)
        axes.scatter(*points[wrong].T, s=9, c=colours[wrong], edgecolors="black", linewidths=0.6)
        halo = [withStroke(linewidth=3, foreground="white")]
        text = {"ha": "center", "va": "center", "weight": "bold", "path_effects": halo}
        for label in np.unique(labels):
            x, y = np.median(points[labels == label], axis=0)
            axes.text(x, y, CLASS_NAMES[label], **text)
        style = styles[name]
        axes.set_title(f"{style.label}: {wrong.mean():.1%} errors", color=style.colour)
        low, high = points.min(axis=0), points.max(axis=0)
        middle, reach = (low + high) / 2, 0.53 * (high - low).max()  # half the extent and a margin
        limits = np.stack([middle - reach, middle + reach], axis=1)
        axes.set(xlim=limits[0], ylim=limits[1], aspect="equal")
    for axes in panels.flat:
        hide_axes(axes)
    return figure


# Recording


def draw_recording(
    frames: Sequence[np.ndarray], names: Sequence[str], titles: Sequence[str]
) -> Iterator[Image.Image]:
    """Yield an image for each frame of a recording, kernels (K, height, width), on a common scale.

    Each frame has its own title.
    """
    columns, rows = _grid_shape(len(names))
    limit = np.percentile(np.abs(frames[-1]), 100 - CLIPPED_PERCENT_OF_WEIGHTS) or 1
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(0.85 * columns + 1.4, 1.0 * rows + 0.9), dpi=GIF_DPI)
        canvas = FigureCanvasAgg(figure)
        panels = figure.subplots(rows, columns, squeeze=False)
        mesh = _draw_tiles(panels, frames[-1], names, cmap=DIVERGING, vmin=-limit, vmax=limit)
        _add_bar(figure, mesh, panels, "weight", extend="both")
        title = figure.suptitle(titles[-1])
        canvas.draw()
        figure.set_layout_engine("none")  # the layout must not change between frames
        for kernels, text in zip(frames, titles, strict=True):
            for axes, kernel in zip(panels.flat, kernels, strict=False):
                axes.images[0].set_data(kernel)
            title.set_text(text)
            canvas.draw()
            yield Image.fromarray(np.asarray(canvas.buffer_rgba()).copy()).convert("RGB")


def save_gif(images: Iterable[Image.Image], path: Path) -> None:
    """Write images of equal size as an endless GIF, atomically.

    Raises:
        RunError: If the file cannot be written.
    """
    # One palette for all frames, of the weights' colours and greys for text. Palettes chosen from
    # the pixels would flicker, and dithering would look like weights.
    colours = matplotlib.colormaps[DIVERGING](np.linspace(0, 1, GIF_COLOURS))[:, :3]
    greys = np.linspace((0, 0, 0), (1, 1, 1), GIF_GREYS)
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.uint8(255 * np.vstack([colours, greys])).tobytes())
    frames = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    durations = [GIF_FRAME_MS] * (len(frames) - 1) + [GIF_LAST_MS]
    buffer = io.BytesIO()
    frames[0].save(
        buffer, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0
    )
    write_file(path, buffer.getvalue())


# Predictions


@dataclass(frozen=True)
class PictureReport:
    """A picture and the models' predictions for it.

    Attributes:
        name: File name.
        original: The picture in RGB, of any size; None if it is not drawn.
        seen: The input of the models, uint8 (28, 28).
        probabilities: Class probabilities (10,) by model.
        saliency: Saliency map (28, 28) of the predicted class by model, see explain.occlusion.
    """

    name: str
    original: Image.Image | None
    seen: np.ndarray
    probabilities: dict[str, np.ndarray]
    saliency: dict[str, np.ndarray]


@styled
def draw_reports(
    reports: Sequence[PictureReport], styles: Mapping[str, Style], title: str
) -> Figure:
    """Draw a row for each picture: the original, the models' input, probabilities and saliency."""
    names = list(reports[0].probabilities)
    height = max(2.75, 1 + 0.9 * len(names))  # inches per row, for the labels of the bars
    figure = Figure(figsize=(9.5 + 2 * len(names), height * len(reports) + 1.5))
    figure.suptitle(title)
    widths = (1, 1, 1.5, *[1] * len(names))
    panels = figure.subplots(len(reports), len(widths), squeeze=False, width_ratios=widths)
    limit = np.abs([report.saliency[name] for report in reports for name in names]).max() or 1
    for row, report in zip(panels, reports, strict=True):
        if report.original:
            _draw_image(row[0], report.original, shorten(report.name))
        _draw_image(row[1], report.seen, "input of the models")
        _draw_probabilities(row[2], {styles[name]: report.probabilities[name] for name in names})
        # Above the panel, where no bar reaches.
        row[2].legend(fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 0.98), ncols=len(names))
        for axes, name in zip(row[3:], names, strict=True):
            mesh = _draw_saliency_map(axes, report.seen, report.saliency[name], limit)
            guess = CLASS_NAMES[report.probabilities[name].argmax()]
            text = f"{styles[name].label}\nsaliency for {guess}"
            axes.set_title(text, fontsize=9, color=styles[name].colour)
    label = "decrease of the probability\nwhen a square here is black"
    _add_bar(figure, mesh, panels[:, 3:], label, location="bottom", **PERCENT)
    return figure


def shorten(name: str) -> str:
    """Return a file name without its folder, shortened to the width of a panel."""
    name = name.replace("\\", "/").rsplit("/", 1)[-1]
    name = name.encode(errors="backslashreplace").decode()  # names may contain bytes without text
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 8]}…{name[-7:]}"
