"""The common look of all figures, which are made without pyplot: no window opens.

Figures start from matplotlib's own defaults, so that a user's settings do not change them.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fashion.files import write

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

# The palette of Okabe and Ito (https://jfly.uni-koeln.de/color), made for colour-blind readers.
VERMILION, BLUE, GREEN = "#D55E00", "#0072B2", "#009E73"
PALETTE = (VERMILION, BLUE, GREEN, "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("s", "o", "^", "D", "v", "P", "X")
GREY = "#6E6E6E"
DIVERGING, SEQUENTIAL = "RdBu_r", "Blues"  # for signed and for non-negative values
# Ten colours for colour-blind readers (Petroff, https://arxiv.org/abs/2107.02270).
CLASS_COLOURS = matplotlib.color_sequences["petroff10"]
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

_numbers = {"ffn": 0, "cnn": 1}  # other networks get the next ones, in the order of their use


def label(name: str) -> str:
    """Return the name of a network in titles and legends."""
    return name.upper()


def colour(name: str) -> str:
    """Return the colour of a network, the same in all figures."""
    return PALETTE[_numbers.setdefault(name, len(_numbers)) % len(PALETTE)]


def marker(name: str) -> str:
    """Return the marker of a network, the same in all figures."""
    return MARKERS[_numbers.setdefault(name, len(_numbers)) % len(MARKERS)]


@contextmanager
def styled() -> Iterator[None]:
    """Apply the look while a figure is made or saved, as a decorator or in a with statement."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def make_figure(title: str, width: float, height: float) -> Figure:
    """Return an empty figure with a title, its size in inches."""
    figure = Figure(figsize=(width, height))
    figure.suptitle(title)
    return figure


@styled()
def save_figure(figure: Figure, path: Path, source: str = "") -> Path:
    """Write a figure as PNG, with the networks that it is from, and return its path."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Source": source} if source else None)
    write(path, buffer.getvalue())
    return path


def hide_axes(*panels: Axes) -> None:
    """Reduce the axes of panels to a thin frame; hide empty panels."""
    for axes in panels:
        axes.grid(False)
        axes.set(xticks=[], yticks=[], frame_on=axes.has_data())
        axes.spines[:].set(visible=True, color="#BBBBBB", linewidth=0.8)


def draw_image(axes: Axes, image: Any, title: str = "") -> None:
    """Draw a greyscale or RGB image with its title."""
    axes.imshow(np.asarray(image), vmin=0, vmax=255)  # matplotlib's copy of a tensor warns
    axes.set_title(title, fontsize=9)
    hide_axes(axes)


def colour_scale(values: Any, clipped: float = 0, signed: bool = True) -> dict[str, Any]:
    """Return colours and limits for values, of which the scale may clip this percentage."""
    limit = np.percentile(np.abs(values), 100 - clipped) or 1
    low, colours = (-limit, DIVERGING) if signed else (0, SEQUENTIAL)
    return {"cmap": colours, "vmin": low, "vmax": limit}


def draw_tiles(
    axes: Axes, tiles: Any, names: Sequence[object], scale: dict[str, Any], columns: int = 8
) -> list[tuple[float, float]]:
    """Draw a grid of named tiles (K, height, width) and return the place of each first pixel.

    They share one panel: to lay out a panel for each would take seconds.
    """
    height, width = tiles.shape[1:]
    places = []
    for number, (tile, name) in enumerate(zip(tiles, names, strict=True)):
        row, column = divmod(number, columns)
        # Two lines of a name take a third of the height of a tile.
        x, y = column * width * 1.12, row * height * (1.26 + 0.12 * f"{name}".count("\n"))
        left, top = x - 0.5, y - 0.5  # pixels extend by 0.5 around their coordinates
        axes.imshow(tile, extent=(left, left + width, top + height, top), **scale)
        place = (left + width / 2, top)
        axes.annotate(f"{name}", place, (0, 2), "data", "offset points", ha="center", fontsize=8)
        axes.add_patch(Rectangle((left, top), width, height, fill=False, ec="#BBBBBB", lw=0.8))
        places.append((x, y))
    axes.set(xlim=(-0.6, max(x for x, _ in places) + width), ylim=(y + height, -0.6))
    axes.set_axis_off()
    return places


def add_colour_bar(axes: Axes, label: str, **keywords: Any) -> None:
    """Add the colour bar of a panel beside it, without moving it."""
    look = {"aspect": 30, "shrink": 0.9, "panchor": False} | keywords
    axes.figure.colorbar(axes.images[0], ax=axes, label=label, **look)


def shorten(text: str, length: int = 26) -> str:
    """Return a text of at most this length, with an ellipsis in its middle."""
    half = (length - 1) // 2
    return text if len(text) <= length else f"{text[:half]}…{text[-half:]}"
