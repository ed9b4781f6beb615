"""The layers of all networks side by side: shapes to scale, parameters, and computation."""

from collections.abc import Mapping
from textwrap import fill

from fashion.activations import Block, run, times
from fashion.data import SIZE
from fashion.style import GREY, colour, label, make_figure, styled

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn

NOTE = (
    "Boxes are to scale: as high as a map has rows, as wide as there are maps or units. Shapes: "
    "maps × rows × columns, or units. Each row is a convolution or linear layer with what follows "
    "it up to the next one. Bars of the same kind have the same scale. Multiply-accumulates are "
    "counted in convolutions and linear layers, for one image."
)
GAP = 30  # between two boxes, in maps


def costs(block: Block) -> tuple[int, int]:
    """Return the numbers of parameters and multiply-accumulates of a block, for one image."""
    parameters = sum(
        p.numel() for layer in (block.layer, *block.others) for p in layer.parameters()
    )
    return parameters, block.response.numel() * block.layer.weight[0].numel()


def shapes(block: Block) -> list[list[int]]:
    """Return the shapes of the first layer's output and of the block's, or one if they agree."""
    pair = [list(values.shape[1:]) for values in (block.response, block.output)]
    return pair[: 1 if pair[0] == pair[1] else 2]


@styled()
def draw(models: Mapping[str, nn.Module]) -> Figure:
    """Draw the networks by name, as a dry run with an empty image finds them."""
    networks = {}
    for name, model in models.items():
        networks[name] = run(model.eval(), torch.zeros(1, 1, SIZE, SIZE))[0]
    rows = 1 + max(map(len, networks.values()))
    figure = make_figure(
        "Architectures: layers, shapes and costs", 7.2 * len(networks), 0.85 * rows + 1.6
    )
    figure.supxlabel(fill(NOTE, 95 * len(networks)), fontsize=9, color=GREY)
    panels = figure.subplots(1, 3 * len(networks), width_ratios=[2.2, 1, 1] * len(networks))
    for number, (name, blocks) in enumerate(networks.items()):
        boxes, *bars = panels[3 * number : 3 * number + 3]
        draw_boxes(boxes, blocks)
        count = sum(p.numel() for p in models[name].parameters())
        values = list(zip(*map(costs, blocks), strict=True))
        boxes.set_title(label(name), color=colour(name), weight="bold")
        heads = (f"{count:,}\nparameters", f"{sum(values[1]):,}\nmultiply-accumulates")
        for axes, head, numbers in zip(bars, heads, values, strict=True):
            drawn = axes.barh(range(1, len(blocks) + 1), numbers, 0.5, color=colour(name))
            axes.bar_label(drawn, [f"{n:,}" for n in numbers], fontsize=8, padding=3)
            axes.set_title(head, fontsize=10)
            axes.set(yticks=[], xticks=[])
            axes.spines[:].set_visible(False)
    for part in range(3):  # the same scale for all networks
        right = max(axes.get_xlim()[1] for axes in panels[part::3])
        for axes in panels[part::3]:
            axes.set(xlim=(0, right * (1.6 if part else 1)), ylim=(rows - 0.4, -0.6))
    return figure


def draw_boxes(axes: Axes, blocks: list[Block]) -> None:
    """Draw the input and what each block computes, a row for each, named on the left."""
    right = 0
    for row, computed in enumerate([[[1, SIZE, SIZE]], *map(shapes, blocks)]):
        left = 0
        for count, *sides in computed:
            height = 0.62 * sides[0] / SIZE if sides else 0.62 / SIZE
            place = (left, row - height / 2)
            axes.add_patch(Rectangle(place, count, height, fc="#DDDDDD", ec=GREY, lw=1))
            left += count + GAP
        text = " → ".join(times(shape) for shape in computed)
        axes.text(0, row - 0.33, text, va="bottom", fontsize=8)
        right = max(right, left)
    steps = [[step.split(" (")[0] for step in block.steps] for block in blocks]
    names = ["image", *(fill(" → ".join(each), 34) for each in steps)]
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.tick_params(length=0)
    axes.set(xticks=[], xlim=(0, right))
    axes.grid(False)
    axes.spines[:].set_visible(False)
