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
    """Return the numbers of parameters and, for one image, of multiply-accumulates of a block."""
    layers = nn.ModuleList([block.layer, *block.others])
    parameters = sum(p.numel() for p in layers.parameters())
    return parameters, block.response.numel() * block.layer.weight[0].numel()


@styled()
def draw(models: Mapping[str, nn.Module]) -> Figure:
    """Draw the networks by name, as a dry run with an empty image finds them."""
    image = torch.zeros(1, 1, SIZE, SIZE)
    networks = {name: run(model.eval(), image)[0] for name, model in models.items()}
    rows, title = 1 + max(map(len, networks.values())), "Architectures: layers, shapes and costs"
    figure = make_figure(title, 7.4 * len(networks), 0.85 * rows + 1.6)
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
            axes.set_title(head, fontsize=9)
            axes.set(yticks=[])
    for part in range(3):  # the same scale for all networks
        right = max(axes.get_xlim()[1] for axes in panels[part::3]) * (1.6 if part else 1)
        for axes in panels[part::3]:
            axes.set(xlim=(0, right), ylim=(rows - 0.4, -0.6), xticks=[])
            axes.spines[:].set_visible(False)
            axes.grid(False)
    return figure


def draw_boxes(axes: Axes, blocks: list[Block]) -> None:
    """Draw the input and what each block computes, a row for each, named on the left."""
    names, right = ["input"], 0
    names += [fill(" → ".join(s.split(" (")[0] for s in block.steps), 34) for block in blocks]
    results = [(blocks[0].inputs,), *((block.response, block.output) for block in blocks)]
    for row, values in enumerate(results):
        left, computed = 0, list(dict.fromkeys(tuple(v.shape[1:]) for v in values))
        for count, *sides in computed:
            height = 0.62 * (sides[0] if sides else 1) / SIZE
            place = (left, row - height / 2)
            axes.add_patch(Rectangle(place, count, height, fc="#DDDDDD", ec=GREY, lw=1))
            left += count + GAP
        axes.text(0, row - 0.33, " → ".join(map(times, computed)), va="bottom", fontsize=8)
        right = max(right, left)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.tick_params(length=0)
    axes.set_xlim(0, right)
