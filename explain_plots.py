"""The figures that show what is inside a network, in the style of plots.py."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from data import CLASS_NAMES
from explain import KernelKind, Progression, Unit
from files import write_file
from plots import DIVERGING, GREY, MODEL_COLOURS, SEQUENTIAL, STYLE, VERMILION, hide_axes, styled

TILES_PER_ROW = 8  # of kernels and of what they see: 32 or 64 tiles fill a page well
MAPS_PER_BLOCK = 8  # in the feature progression
# Share of the values that a shared scale may cut off at its ends, so that one outlier does not
# make all else pale; the colour bar's points say that there are some.
CLIPPED_PERCENT = 0.5
CLIPPED_PERCENT_OF_WEIGHTS = 2  # a few first kernels grow many times as large as the rest
# An edge's direction as one of eight arrows, each for 45 degrees; the others light or dark.
ARROWS = "→↗↑↖←↙↓↘"
SIGNS = {("spot", 1): "●", ("spot", -1): "○", ("area", 1): "■", ("area", -1): "□"}
LEGEND = (
    "arrow: edge, from dark to light   ● light spot   ○ dark spot   ■ light area   □ dark area   "
    "number alone: the rest"
)
DIMMED = 0.3  # how light the surroundings of a patch are, of their own lightness
DECIMALS_BELOW = 0.05  # of a scale's end; percent need a decimal then
OUTLINE = 60  # grey level at which a garment is outlined in a saliency map
# Ten colours that colour-blind readers can tell apart (Petroff, https://arxiv.org/abs/2107.02270).
CLASS_COLOURS = matplotlib.color_sequences["petroff10"]
NAME_LENGTH = 26  # characters of a file's name that fit above a panel
GIF_DPI = 64
GIF_FRAME_MS = 90  # a hundred frames take some ten seconds
GIF_COLOURS, GIF_GREYS = 111, 17  # 128 together: few enough for a small file
GIF_LAST_MS = 2500  # the last one stays, to be looked at


def kernel_name(number: int, kind: KernelKind) -> str:
    """Return a kernel's number with the sign of its kind, see LEGEND."""
    if kind.kind == "edge":
        return f"{number} {ARROWS[round(kind.angle / 45) % 8]}"
    return f"{number} {SIGNS.get((kind.kind, kind.sign), '')}".strip()


@styled
def draw_kernels(
    trained: np.ndarray, untrained: np.ndarray, names: Sequence[str], title: str
) -> Figure:
    """Draw kernels before and after training, side by side in the same order and on one scale.

    Args:
        trained: (K, height, width) weights.
        untrained: the same kernels before the first step.
        names: (K,), what stands above each.
        title: of the figure.
    """
    columns, rows = _grid_shape(len(trained))
    figure = Figure(figsize=(2 * 0.78 * columns + 2.2, 0.95 * rows + 1.6))
    figure.suptitle(title)
    figure.supxlabel(LEGEND, fontsize=9, color=GREY)
    limit = np.percentile(np.abs([trained, untrained]), 100 - CLIPPED_PERCENT_OF_WEIGHTS) or 1
    # The right one has the colour bar beside it, about as wide as a tile and a half.
    parts = figure.subfigures(1, 2, wspace=0.04, width_ratios=(columns, columns + 1.4))
    for part, kernels, head in zip(
        parts,
        (untrained, trained),
        ("before training: small, and by chance", "after training"),
        strict=True,
    ):
        part.suptitle(head, fontsize=11)
        panels = part.subplots(rows, columns, squeeze=False)
        mesh = _draw_tiles(panels, kernels, names, DIVERGING, -limit, limit)
    part.colorbar(mesh, ax=panels, label="weight", aspect=30, shrink=0.9, extend="both")
    return figure


@styled
def draw_image_transform(
    image: np.ndarray, maps: np.ndarray, names: Sequence[str], signed: bool, title: str
) -> Figure:
    """Draw a picture large, and beside it what each kernel makes of it, on one shared scale.

    Args:
        image: uint8 (28, 28).
        maps: (K, height, width).
        names: (K,), each kernel's as in draw_kernels.
        signed: whether the maps are what the convolution returns; else batch norm and ReLU
            followed, and nothing is negative.
        title: of the figure.
    """
    columns, rows = _grid_shape(len(maps))
    height = 1.2 * rows + 1.1
    figure = Figure(figsize=(0.8 * height + 1.05 * columns + 1.3, height))
    figure.suptitle(title)
    left, right = figure.subfigures(1, 2, width_ratios=(0.8 * height, 1.05 * columns + 1.3))
    axes = left.subplots()
    axes.imshow(image, vmin=0, vmax=255)
    hide_axes(axes)
    axes.set_title("the picture")
    limit = np.percentile(np.abs(maps), 100 - CLIPPED_PERCENT) or 1
    panels = right.subplots(rows, columns, squeeze=False)
    right.supxlabel(LEGEND, fontsize=9, color=GREY)
    low, colours = (-limit, DIVERGING) if signed else (0, SEQUENTIAL)
    mesh = _draw_tiles(panels, maps, names, colours, low, limit)
    right.colorbar(
        mesh,
        ax=panels,
        label="response" if signed else "activation",
        aspect=30,
        shrink=0.9,
        extend="both" if signed else "max",
    )
    return figure


@styled
def draw_progression(image: np.ndarray, progression: Progression, title: str) -> Figure:
    """Draw a picture's way through a CNN: strongest maps, hidden layers, probabilities.

    Each row has a scale of its own, since the layers' activations differ in size. The strongest
    maps are those that vary most over the picture: one that is high everywhere shows nothing.

    Args:
        image: uint8 (28, 28).
        progression: what explain.follow returns for it.
        title: of the figure.
    """
    blocks = progression.activations
    figure = Figure(figsize=(1.25 * MAPS_PER_BLOCK + 1.5, 11.5))
    figure.suptitle(title)
    rows = figure.subfigures(
        len(blocks) + 3, 1, height_ratios=(1.5, *[1.5] * len(blocks), 1.8, 2.6)
    )
    axes = rows[0].subplots()
    _head(rows[0], f"input: one picture of {image.shape[0]} × {image.shape[1]} pixels")
    axes.imshow(image, vmin=0, vmax=255)
    hide_axes(axes)
    for number, (row, maps) in enumerate(zip(rows[1:], blocks, strict=False), start=1):
        strongest = np.argsort(-maps.std(axis=(1, 2)), kind="stable")[:MAPS_PER_BLOCK]
        _head(
            row,
            f"after block {number}: the {len(strongest)} strongest of {len(maps)} maps of "
            f"{maps.shape[1]} × {maps.shape[2]} pixels",
        )
        panels = row.subplots(1, MAPS_PER_BLOCK, squeeze=False)
        top = maps[strongest].max() or 1
        mesh = _draw_tiles(panels, maps[strongest], strongest, SEQUENTIAL, 0, top)
        row.colorbar(mesh, ax=panels, label="activation", aspect=10)
    _draw_hidden(rows[-2], progression.hidden)
    axes = rows[-1].subplots()
    _head(rows[-1], "output: the probability of each class")
    _draw_probabilities(axes, {"cnn": progression.probabilities}, upright=True)
    return figure


def _head(part: SubFigure, text: str) -> None:
    """Write what a row shows above it."""
    part.suptitle(text, fontsize=10)


def _draw_hidden(part: SubFigure, hidden: Sequence[np.ndarray]) -> None:
    """Draw the units of each hidden linear layer as one strip."""
    widths = " and ".join(f"{len(values)}" for values in hidden)
    _head(
        part, f"fully connected layers: {widths} units, one stripe each; no place is left in them"
    )
    top = max(values.max() for values in hidden) or 1
    panels = part.subplots(len(hidden), 1, squeeze=False)
    for axes, values in zip(panels.flat, hidden, strict=True):
        mesh = axes.imshow(values[None], cmap=SEQUENTIAL, vmin=0, vmax=top, aspect="auto")
        hide_axes(axes)
    part.colorbar(mesh, ax=panels, label="activation", aspect=10)


def _draw_probabilities(
    axes: Axes, probabilities: dict[str, np.ndarray], upright: bool = False
) -> None:
    """Draw the ten probabilities of each model as bars, and write those that matter.

    Args:
        axes: where.
        probabilities: (10,) for each key of MODEL_COLOURS.
        upright: whether the bars stand; else they lie, the first class on top.
    """
    thickness = 0.8 / len(probabilities)
    places = np.arange(len(CLASS_NAMES))
    for number, (name, values) in enumerate(probabilities.items()):
        shifted = places + (number - (len(probabilities) - 1) / 2) * thickness
        draw = axes.bar if upright else axes.barh
        bars = draw(shifted, values, thickness, color=MODEL_COLOURS[name], label=name.upper())
        texts = [f"{value:.0%}" if value >= 0.01 else "" for value in values]
        axes.bar_label(bars, texts, padding=2, fontsize=8 if upright else 7)
    number_axis, class_axis = (axes.yaxis, axes.xaxis) if upright else (axes.xaxis, axes.yaxis)
    class_axis.set_ticks(places, CLASS_NAMES, fontsize=9)
    class_axis.grid(False)
    number_axis.set_major_formatter(PercentFormatter(1, decimals=0))
    (axes.set_ylim if upright else axes.set_xlim)(0, 1.15)
    number_axis.set_ticks([0, 0.5, 1])
    if not upright:
        axes.invert_yaxis()


@styled
def draw_top_activations(
    units: Sequence[Unit], images: np.ndarray, labels: np.ndarray, title: str
) -> Figure:
    """Draw for each unit the images that excite it most, and in them the patch that does.

    Args:
        units: what explain.find_units returns, all with equally many images.
        images: uint8 (N, 28, 28), in which the units' images are.
        labels: (N,), the true classes.
        title: of the figure.
    """
    columns = len(units[0].images)
    figure = Figure(figsize=(1.12 * columns + 2.2, 1.38 * len(units) + 1.1))
    figure.suptitle(title)
    panels = figure.subplots(len(units), columns, squeeze=False)
    for row, unit in zip(panels, units, strict=True):
        for axes, index, activation, (top, left, size) in zip(
            row, unit.images, unit.activations, unit.patches, strict=True
        ):
            side = images.shape[1]
            shown = images[index] * DIMMED
            patch = np.s_[max(top, 0) : top + size, max(left, 0) : left + size]
            shown[patch] = images[index][patch]
            axes.imshow(shown, vmin=0, vmax=255)
            # The part of the patch that lies in the picture; the frame stands on its rim.
            low_x, low_y = max(left, 0), max(top, 0)
            width, height = min(left + size, side) - low_x, min(top + size, side) - low_y
            frame = Rectangle((low_x - 0.5, low_y - 0.5), width, height, fill=False)
            frame.set(edgecolor=VERMILION, linewidth=1.5)
            axes.add_patch(frame)
            axes.set_title(f"{CLASS_NAMES[labels[index]]}\n{activation:.1f}", fontsize=7.5, pad=2)
            hide_axes(axes)
        row[0].set_ylabel(
            f"unit {unit.number}\nselectivity {unit.selectivity:.2f}",
            rotation=0,
            ha="right",
            va="center",
            fontsize=9,
        )
    return figure


@dataclass(frozen=True)
class Explanation:
    """Which pixels decided for one picture and one model.

    Attributes:
        label: the class that the model takes the picture for.
        probability: that it gives it.
        occlusion, gradients: (28, 28), see explain.occlusion and explain.integrated_gradients.
    """

    label: int
    probability: float
    occlusion: np.ndarray
    gradients: np.ndarray


@styled
def draw_saliency(
    pictures: np.ndarray,
    heads: Sequence[str],
    explanations: Sequence[dict[str, Explanation]],
    title: str,
) -> Figure:
    """Draw which pixels decided, by two methods, the models side by side.

    Each method has one scale over all pictures and models: the shares of a probability that its
    maps show can be compared.

    Args:
        pictures: uint8 (N, 28, 28).
        heads: what stands beside each.
        explanations: of each picture, by model: keys of MODEL_COLOURS, the same for all.
        title: of the figure.
    """
    methods = {
        "occlusion": "Occlusion: how far does the probability of the\n"
        "class above the map fall when a square here is black?",
        "gradients": "Integrated gradients: what does this pixel add\n"
        "to the probability of the class above the map?",
    }
    names = list(explanations[0])
    columns = 1 + len(methods) * len(names)
    figure = Figure(figsize=(1.9 * columns + 1, 2.15 * len(pictures) + 2))
    figure.suptitle(title)
    panels = figure.subplots(len(pictures), columns, squeeze=False)
    for axes, picture, head in zip(panels[:, 0], pictures, heads, strict=True):
        axes.imshow(picture, vmin=0, vmax=255)
        axes.set_title(head, fontsize=9)
        hide_axes(axes)
    for start, (method, question) in zip(
        range(1, columns, len(names)), methods.items(), strict=True
    ):
        part = panels[:, start : start + len(names)]
        values = [getattr(each[name], method) for each in explanations for name in names]
        limit = np.percentile(np.abs(values), 100 - CLIPPED_PERCENT) or 1
        for row, picture, by_model in zip(part, pictures, explanations, strict=True):
            for axes, name in zip(row, names, strict=True):
                explanation = by_model[name]
                mesh = _draw_saliency_map(axes, picture, getattr(explanation, method), limit)
                axes.set_title(_verdict(name, explanation), fontsize=9, color=MODEL_COLOURS[name])
        bar = figure.colorbar(
            mesh,
            ax=part,
            location="top",
            extend="both",
            aspect=30,
            shrink=0.8,
            ticks=MaxNLocator(4, symmetric=True),  # more would run into each other
            format=PercentFormatter(1, decimals=0 if limit > DECIMALS_BELOW else 1),
        )
        bar.set_label(question)
    return figure


def _verdict(name: str, explanation: Explanation) -> str:
    return f"{name.upper()}: {CLASS_NAMES[explanation.label]}\n{explanation.probability:.0%}"


def _draw_saliency_map(
    axes: Axes, picture: np.ndarray, values: np.ndarray, limit: float
) -> AxesImage:
    """Draw signed values over the garment's outline."""
    mesh = axes.imshow(values, cmap=DIVERGING, vmin=-limit, vmax=limit)
    if picture.max() > OUTLINE > picture.min():
        axes.contour(picture, levels=[OUTLINE], colors=[GREY], linewidths=0.7)
    hide_axes(axes)
    return mesh


@styled
def draw_embedding(
    places: dict[str, np.ndarray],
    predictions: dict[str, np.ndarray],
    labels: np.ndarray,
    title: str,
) -> Figure:
    """Draw where each model puts the images: one colour a true class, mistakes ringed.

    Args:
        places: (N, 2) for each key of MODEL_COLOURS, see explain.embed.
        predictions: (N,) for each, the predicted classes.
        labels: (N,), the true ones.
        title: of the figure.
    """
    figure = Figure(figsize=(6.3 * len(places) + 0.4, 7.4))
    figure.suptitle(title)
    figure.supxlabel(
        "Each point is one image, in the colour of its true class; ringed in black: classified "
        "wrongly. Names stand in the middle of their class.\n"
        "Neighbours here are neighbours in the last hidden layer; distances between far groups "
        "mean nothing (t-SNE).",
        fontsize=9,
        color=GREY,
    )
    for axes, (name, points) in zip(
        figure.subplots(1, len(places), squeeze=False).flat, places.items(), strict=True
    ):
        wrong = predictions[name] != labels
        colours = np.array(CLASS_COLOURS)[labels]
        axes.scatter(*points[~wrong].T, s=3, c=colours[~wrong], linewidths=0, rasterized=True)
        axes.scatter(*points[wrong].T, s=9, c=colours[wrong], edgecolors="black", linewidths=0.6)
        for label in np.unique(labels):
            middle = np.median(points[labels == label], axis=0)
            halo = [withStroke(linewidth=3, foreground="white")]
            axes.text(
                *middle,
                CLASS_NAMES[label],
                ha="center",
                va="center",
                weight="bold",
                path_effects=halo,
            )
        axes.set_title(f"{name.upper()}: {wrong.mean():.1%} wrong", color=MODEL_COLOURS[name])
        hide_axes(axes)
        low, high = points.min(axis=0), points.max(axis=0)
        middle, reach = (low + high) / 2, 0.53 * (high - low).max()  # half of all, and a margin
        axes.set(
            xlim=(middle[0] - reach, middle[0] + reach),
            ylim=(middle[1] - reach, middle[1] + reach),
            aspect="equal",
        )
    return figure


def draw_recording(
    frames: Sequence[np.ndarray], names: Sequence[str], heads: Sequence[str]
) -> Iterator[Image.Image]:
    """Draw kernels at different times of the training, one image a time, all on one scale.

    Args:
        frames: (K, height, width) weights each.
        names: (K,), what stands above each kernel.
        heads: what stands above each frame.
    """
    columns, rows = _grid_shape(len(names))
    limit = np.percentile(np.abs(frames[-1]), 100 - CLIPPED_PERCENT_OF_WEIGHTS) or 1
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.85 * columns + 1.4, 1.0 * rows + 0.9), dpi=GIF_DPI)
        canvas = FigureCanvasAgg(figure)
        panels = figure.subplots(rows, columns, squeeze=False)
        mesh = _draw_tiles(panels, frames[-1], names, DIVERGING, -limit, limit)
        figure.colorbar(mesh, ax=panels, label="weight", aspect=30, shrink=0.9, extend="both")
        title = figure.suptitle(heads[-1])
        canvas.draw()
        figure.set_layout_engine("none")  # nothing moves from frame to frame
        for kernels, head in zip(frames, heads, strict=True):
            for axes, kernel in zip(panels.flat, kernels, strict=False):
                axes.images[0].set_data(kernel)
            title.set_text(head)
            canvas.draw()
            yield Image.fromarray(np.asarray(canvas.buffer_rgba()).copy()).convert("RGB")


def save_gif(images: Iterator[Image.Image], path: Path) -> None:
    """Write images of one size as a GIF that runs forever, whole or not at all.

    Raises:
        WorldFault: when the file cannot be written.
    """
    # One palette for all, of the weights' scale and the greys of letters: were it chosen by the
    # pixels, white would not be white, and colours would flicker. No dithering, which no reader
    # could tell from weights.
    scale = matplotlib.colormaps[DIVERGING](np.linspace(0, 1, GIF_COLOURS))[:, :3]
    greys = np.linspace((0, 0, 0), (1, 1, 1), GIF_GREYS)
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.uint8(255 * np.vstack([scale, greys])).tobytes())
    frames = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    durations = [GIF_FRAME_MS] * (len(frames) - 1) + [GIF_LAST_MS]
    buffer = io.BytesIO()
    frames[0].save(
        buffer, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0
    )
    write_file(path, buffer.getvalue())


def shorten(name: str) -> str:
    """Return a file's name without its folder, and no longer than fits above a panel."""
    name = name.replace("\\", "/").rsplit("/", 1)[-1]
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 8]}…{name[-7:]}"


@dataclass(frozen=True)
class PictureReport:
    """One picture and what the models say of it.

    Attributes:
        name: of its file.
        original: RGB, of any size.
        seen: uint8 (28, 28), what the networks get.
        probabilities: (10,) of each model, keys of MODEL_COLOURS.
        saliency: (28, 28) of each model, see explain.occlusion, for its likeliest class.
    """

    name: str
    original: Image.Image
    seen: np.ndarray
    probabilities: dict[str, np.ndarray]
    saliency: dict[str, np.ndarray]


@styled
def draw_reports(reports: Sequence[PictureReport], title: str) -> Figure:
    """Draw a row for each picture: original, what is seen, probabilities, which pixels decided.

    Args:
        reports: at least one, all of the same models.
        title: of the figure.
    """
    names = list(reports[0].probabilities)
    figure = Figure(figsize=(11.5 + 2 * (len(names) - 1), 2.75 * len(reports) + 1.5))
    figure.suptitle(title)
    panels = figure.subplots(
        len(reports), 3 + len(names), squeeze=False, width_ratios=(1, 1, 1.5, *[1] * len(names))
    )
    values = [report.saliency[name] for report in reports for name in names]
    limit = np.abs(values).max() or 1
    for row, report in zip(panels, reports, strict=True):
        row[0].imshow(report.original)
        row[0].set_title(shorten(report.name), fontsize=9)
        row[1].imshow(report.seen, vmin=0, vmax=255)
        row[1].set_title("what the networks see", fontsize=9)
        _draw_probabilities(row[2], report.probabilities)
        # Above the panel, where no bar reaches.
        row[2].legend(fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 0.98), ncols=len(names))
        for axes, name in zip(row[3:], names, strict=True):
            mesh = _draw_saliency_map(axes, report.seen, report.saliency[name], limit)
            guess = CLASS_NAMES[report.probabilities[name].argmax()]
            axes.set_title(f"{name.upper()}: why {guess}?", fontsize=9, color=MODEL_COLOURS[name])
        for axes in row[:2]:
            hide_axes(axes)
    bar = figure.colorbar(
        mesh, ax=panels[:, 3:], aspect=40, shrink=0.9, location="bottom", format=PercentFormatter(1)
    )
    bar.set_label("how far the probability falls\nwhen a square here is black")
    return figure


def _grid_shape(count: int) -> tuple[int, int]:
    """Return (columns, rows) of a grid for so many tiles."""
    columns = min(count, TILES_PER_ROW)
    return columns, -(-count // columns)


def _draw_tiles(
    panels: np.ndarray,
    tiles: np.ndarray,
    names: Sequence[object],
    colour_map: str,
    low: float,
    high: float,
) -> AxesImage:
    """Fill panels with named tiles on one scale; return the last one, for a colour bar."""
    for axes, tile, name in zip(panels.flat, tiles, names, strict=False):
        mesh = axes.imshow(tile, cmap=colour_map, vmin=low, vmax=high)
        axes.set_title(f"{name}", fontsize=8, pad=2)
    for axes in panels.flat:
        hide_axes(axes)
    return mesh
