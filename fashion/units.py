"""The images that activate single kernels of a convolution (units) most."""

import copy
from dataclasses import dataclass

from fashion.activations import Survey, find_convolutions, run
from fashion.checkpoint import Network
from fashion.data import CLASSES, SIZE, Dataset
from fashion.style import GREY, VERMILION, draw_tiles, label, make_figure, styled

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

UNITS, IMAGES = 8, 9  # rows and columns of the figure
PER_CLASS = 2  # units that prefer the same class
DIMMED = 0.3  # brightness of an image outside the receptive field
NOTE = (
    "Framed: the receptive field, all pixels that the activation depends on. Above each image: "
    "true class and activation.\nLeft: the class with the highest mean activation, which may "
    "differ from those of the strongest images. Selectivity: 0 if a unit is\nequally active for "
    f"all classes, 1 if for one class only. At most {PER_CLASS} units per class are shown."
)


@dataclass(frozen=True)
class Unit:
    """A kernel, the class that activates it most, and the images that do, strongest first."""

    number: int
    selectivity: float
    label: int
    images: list[int]


def class_selectivity(peaks: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return each unit's selectivity (K,) and preferred class (K,), from peaks (N, K).

    The selectivity is (a - b) / (a + b), with the mean a of the preferred class and the mean b of
    all other classes (Morcos et al., arXiv:1803.06959), and 0 for a unit that is never active.
    """
    means = torch.stack([peaks[labels == label].mean(0) for label in range(len(CLASSES))])
    means = means.clamp(min=0)  # some activations, such as GELU, can be negative
    best, preferred = means.max(0)
    others = (means.sum(0) - best) / (len(CLASSES) - 1)
    return (best - others) / (best + others).clamp(min=1e-12), preferred


def choose_units(peaks: Tensor, labels: Tensor) -> list[Unit]:
    """Return the most class-selective units, at most PER_CLASS of a class."""
    selectivity, preferred = class_selectivity(peaks, labels)
    units: list[Unit] = []
    for number in selectivity.argsort(descending=True, stable=True).tolist():
        favourite = int(preferred[number])
        if [unit.label for unit in units].count(favourite) < PER_CLASS:
            images = peaks[:, number].argsort(descending=True, stable=True)[:IMAGES]
            units.append(Unit(number, float(selectivity[number]), favourite, images.tolist()))
    return units[:UNITS]


def receptive_fields(model: nn.Module, number: int) -> tuple[Tensor, Tensor]:
    """Return on which rows (height, 28) and columns (width, 28) of an image a convolution depends.

    The first dimension counts the rows or columns of the maps after its block.
    """
    # Nothing that depends on a pixel without a value has a value. The fast algorithms for float32
    # may spread it further; those for float64 compute each output on its own.
    lines = torch.zeros(2, SIZE, 1, SIZE, SIZE, dtype=torch.float64)
    for line in range(SIZE):
        lines[0, line, :, line], lines[1, line, :, :, line] = torch.nan, torch.nan
    blocks, _ = run(copy.deepcopy(model).double(), lines.flatten(0, 1))
    convolved = [block.output for block in blocks if isinstance(block.layer, nn.Conv2d)]
    rows, columns = convolved[number - 1].isnan().any(1).split(SIZE)
    return rows.any(2).T, columns.any(1).T


@styled()
def draw(network: Network, survey: Survey, number: int | None, dataset: Dataset) -> Figure:
    """Draw the test images that activate units of a convolution, by default the last, most."""
    number = number or len(find_convolutions(network.model))
    units = choose_units(survey.peaks, dataset.test_labels)
    rows, columns = receptive_fields(network.model, number)
    title = f"Units of convolution {number}, {label(network.name)}: the images of {dataset.title} "
    title += "that activate them most"
    figure = make_figure(title, 1.12 * IMAGES + 1.6, 1.4 * len(units) + 1)
    figure.supxlabel(NOTE, fontsize=9, color=GREY)
    tiles, names, frames = [], [], []
    for unit in units:
        for index in unit.images:
            row, column = divmod(int(survey.places[index, unit.number]), len(columns))
            field = rows[row][:, None] & columns[column]
            (top, left), (bottom, right) = field.nonzero()[[0, -1]].tolist()
            frames.append((left, top, right - left + 1, bottom - top + 1))
            image = dataset.test_images[index]
            tiles.append(torch.where(field, image, image * DIMMED))
            peak = float(survey.peaks[index, unit.number])
            names.append(f"{CLASSES[dataset.test_labels[index]]}\n{peak:.1f}")
    axes, scale, width = figure.subplots(), {"vmin": 0, "vmax": 255}, len(units[0].images)
    places = draw_tiles(axes, torch.stack(tiles).numpy(), names, scale, width)
    for (x, y), (left, top, *size) in zip(places, frames, strict=True):
        corner = (x + left - 0.5, y + top - 0.5)
        axes.add_patch(Rectangle(corner, *size, fill=False, ec=VERMILION, lw=1.5))
    for (_, y), unit in zip(places[::width], units, strict=True):
        text = f"unit {unit.number}\nselectivity {unit.selectivity:.2f}\n{CLASSES[unit.label]}"
        axes.text(-3, y + SIZE / 2, text, ha="right", va="center", fontsize=9)
    return figure
