"""What the layers of a network return for an image, drawn from the image to the prediction.

Layers are found by type, in the order in which they are called, so any network will do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

from fashion import style
from fashion.checkpoint import Network
from fashion.data import CLASSES, SIZE, normalize
from fashion.evaluation import BATCH_SIZE
from fashion.style import GREY, VERMILION, colour_scale, draw_image, draw_tiles, label

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

KERNELS = 64  # more tiles would be too small to read
SHOWN = 8  # feature maps of each convolution in the progression
CLIPPED = 0.5  # percentage of the values that a scale may clip, lest outliers make the rest pale
IGNORED = nn.Flatten | nn.Identity | nn.Dropout | nn.Dropout2d  # change no value in evaluation


@dataclass
class Block:
    """A convolution or linear layer and the layers up to the next one, called with a batch."""

    layer: nn.Conv2d | nn.Linear
    inputs: Tensor
    response: Tensor  # of the layer itself
    output: Tensor  # of the whole block
    others: list[nn.Module]  # the other layers

    @property
    def steps(self) -> list[str]:
        """The layers in words."""
        return [describe(layer) for layer in (self.layer, *self.others)]


def describe(layer: nn.Module) -> str:
    """Return what a layer does, in words."""
    match layer:
        case nn.Conv2d():
            stride = f", stride {times(layer.stride)}" if max(layer.stride) > 1 else ""
            return f"{times(layer.kernel_size)} convolution{stride}, {len(layer.weight)} kernels"
        case nn.Linear():
            return f"linear layer, {len(layer.weight)} units"
        case nn.MaxPool2d() | nn.AvgPool2d():
            kind = "largest" if isinstance(layer, nn.MaxPool2d) else "mean"
            stride = f", stride {times(layer.stride)}" if layer.stride != layer.kernel_size else ""
            return f"{kind} of {times(layer.kernel_size)}{stride}"
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            return "batch normalization"
        case nn.ReLU():
            return "ReLU (negative values become 0)"
    return type(layer).__name__


def times(size: int | Sequence[int]) -> str:
    """Return a size in words, such as 3 × 3; one number stands for height and width."""
    return " × ".join(map(str, (size, size) if isinstance(size, int) else size))


@torch.inference_mode()
def run(model: nn.Module, inputs: Tensor) -> tuple[list[Block], Tensor]:
    """Return the blocks of a network in the order of their calls, and its logits (N, 10)."""
    blocks: list[Block] = []

    def store(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            # A copy, since activations with inplace=True overwrite the response.
            blocks.append(Block(layer, inputs[0], output.clone(), output, []))
        elif any(layer.children()) or isinstance(layer, IGNORED) or not blocks:
            return
        elif output.ndim == blocks[-1].output.ndim:  # else it processes flattened maps
            blocks[-1].output = output
            blocks[-1].others.append(layer)

    with register_module_forward_hook(store):
        return blocks, model(inputs)


def run_image(network: Network, image: Tensor) -> tuple[list[Block], Tensor]:
    """Return the blocks for an image, uint8 (28, 28), and calibrated probabilities (10,)."""
    blocks, logits = run(network.model, normalize(image[None], network.mean, network.std))
    return blocks, (logits[0] / network.temperature).softmax(0)


def find_layers(model: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    """Return convolutions and linear layers in the order of their calls."""
    return [block.layer for block in run(model, torch.zeros(1, 1, SIZE, SIZE))[0]]


def find_convolutions(model: nn.Module) -> list[nn.Conv2d]:
    """Return the convolutions in the order of their calls."""
    return [layer for layer in find_layers(model) if isinstance(layer, nn.Conv2d)]


@dataclass(frozen=True)
class Survey:
    """What a network returns for many images, from one pass."""

    probabilities: Tensor  # (N, 10), calibrated
    features: Tensor  # (N, width), the input of the last layer
    peaks: Tensor  # (N, K), highest activation of each kernel of one convolution
    places: Tensor  # (N, K), where in the flattened map it is


def survey(network: Network, images: Tensor, number: int | None = None) -> Survey:
    """Return the survey of images uint8 (N, 28, 28), with the peaks of a convolution.

    Convolutions are numbered from 1; by default, it is the last. Without any, K is 0.
    """
    parts = []
    for batch in images.split(BATCH_SIZE):
        blocks, logits = run(network.model, normalize(batch, network.mean, network.std))
        maps = [logits.new_empty(len(batch), 0, 1)]
        maps += [block.output.flatten(2) for block in blocks if isinstance(block.layer, nn.Conv2d)]
        choice = min(number or len(maps), len(maps) - 1)
        probabilities = (logits / network.temperature).softmax(1)
        parts.append([probabilities, blocks[-1].inputs.flatten(1), *maps[choice].max(2)])
    return Survey(*map(torch.cat, zip(*parts, strict=True)))


def strongest(weights: Tensor) -> list[int]:
    """Return the numbers of the kernels with the largest norms, in descending order."""
    norms = weights.detach().flatten(1).norm(dim=1)
    return norms.argsort(descending=True, stable=True)[:KERNELS].tolist()


def find_patch(block: Block, kernel: int) -> tuple[Tensor, list[int], tuple[int, int]]:
    """Return what a kernel of the first convolution sees where it responds most.

    That is the patch, its first and last row and column in the image, and the place in the map.
    Patches that reach beyond the image are left out.
    """
    layer, (height, width) = block.layer, block.inputs.shape[2:]
    assert isinstance(layer, nn.Conv2d)
    # Kernels with a single 1 return the pixels one by one, and their numbers; the border has 0.
    single = torch.eye(layer.weight[0].numel()).view(-1, 1, *layer.kernel_size)
    look: Any = (single, None, layer.stride, layer.padding, layer.dilation)
    numbers = torch.arange(1.0, height * width + 1).view(1, 1, height, width)
    pixels, places = (F.conv2d(x, *look)[0].flatten(1) for x in (block.inputs, numbers))
    responses = block.response[0, kernel]
    best = int(responses.flatten().masked_fill(places.amin(0) < 0.5, -torch.inf).argmax())
    corners = [divmod(round(float(p)) - 1, width) for p in places[[0, -1], best]]
    place = divmod(best, responses.shape[1])
    return pixels[:, best].view(layer.kernel_size), [*corners[0], *corners[1]], place


@style.styled()
def draw_maps(network: Network, image: Tensor, caption: str, number: int) -> Figure:
    """Draw the feature maps of a convolution, numbered from 1, in the order of kernel_grid."""
    blocks, _ = run_image(network, image)
    block = [block for block in blocks if isinstance(block.layer, nn.Conv2d)][number - 1]
    chosen = strongest(block.layer.weight)
    maps = block.response[0, chosen].numpy()
    height = 1.65 * -(-len(maps) // 8) + 1.3
    widths = (2.2, 1.45 * min(len(maps), 8) + 1)
    title = f"Feature maps of convolution {number}, {label(network.name)} trained on "
    title += f"{network.dataset}\n{caption}; {len(maps)} of {len(block.response[0])} kernels"
    figure = style.make_figure(title, sum(widths), height)
    left, right = figure.subplots(1, 2, width_ratios=widths)
    draw_image(left, image, "input image")
    draw_tiles(right, maps, chosen, colour_scale(maps, CLIPPED))
    style.add_colour_bar(right, "response of the kernel", extend="both")
    note = "The order is that of the kernels in kernel_grid.png."
    if block is blocks[0]:
        black = -network.mean / network.std
        note += f" Black is {black:.2f} after normalization: where the weights of a kernel do not "
        note += "add up to 0, it responds to the black background, too."
    if block.layer.padding not in ("valid", (0, 0)):
        note += " The frame at the border: the convolution continues its input with zeros"
        note += ", which are grey after normalization." if block is blocks[0] else "."
    figure.supxlabel(fill(note, 150), fontsize=9, color=GREY)
    return figure


@style.styled()
def draw_progression(network: Network, image: Tensor, caption: str) -> Figure:
    """Draw feature maps, hidden layers and class probabilities of an image, from top to bottom."""
    blocks, probabilities = run_image(network, image)
    *hidden, output = blocks
    heights = [2, *(1.9 if block.output.ndim == 4 else 0.95 for block in hidden), 2.2]
    title = f"From image to prediction, {label(network.name)} trained on {network.dataset}\n"
    title += f"{caption}; prediction: {CLASSES[probabilities.argmax()]} {probabilities.max():.0%}"
    figure = style.make_figure(title, 1.25 * SHOWN + 1.2, sum(heights) + 1.4)
    grid = figure.add_gridspec(len(heights), 4, height_ratios=heights)
    note = "Colours: activations. Each row has its own scale."
    if isinstance(blocks[0].layer, nn.Conv2d) and blocks[0].inputs.shape[1] == 1:
        first, *example = (figure.add_subplot(grid[0, column]) for column in range(4))
        draw_example([first, *example], blocks[0], most_varied(blocks[0].output[0])[0])
        note += " The numbers at the top are rounded after the computation."
    else:
        first = figure.add_subplot(grid[0, :])
    draw_image(first, image, f"input: {SIZE} × {SIZE} pixels")
    *rows, last = (figure.add_subplot(grid[row, :]) for row in range(1, len(heights)))
    for axes, block in zip(rows, hidden, strict=True):
        values = block.output[0].numpy()
        scale = colour_scale(values, signed=bool((values < 0).any()))  # GELU can be negative
        if values.ndim == 3:
            chosen = most_varied(block.output[0])
            size = f"{len(values)} maps of {times(values.shape[1:])} values"
            shown = f"{size}; the {len(chosen)} that vary most:"
            draw_tiles(axes, values[chosen], chosen, scale)
        else:
            shown = f"{len(values)} values, one stripe each:"
            axes.imshow(values[None], aspect="auto", **scale)
            style.hide_axes(axes)
        text = f"↓  {' → '.join(block.steps)}\n{shown}"
        axes.set_title(text, fontsize=10, pad=16 if values.ndim == 3 else 6)
        style.add_colour_bar(axes, "", aspect=10)
    text = f"↓  {' → '.join([*output.steps, 'softmax, calibrated'])}\nclass probabilities:"
    last.set_title(text, fontsize=10)
    bars = last.bar(CLASSES, probabilities.tolist(), color=style.colour(network.name))
    last.bar_label(bars, [f"{p:.0%}" if p >= 0.01 else "" for p in probabilities], fontsize=8)
    last.set(ylim=(0, 1.15))
    last.set_yticks([0, 0.5, 1], ["0%", "50%", "100%"])
    last.grid(False, axis="x")
    figure.supxlabel(note, fontsize=9, color=GREY)
    return figure


def most_varied(maps: Tensor) -> list[int]:
    """Return the numbers of the maps that vary most; one that is high everywhere says little."""
    return np.argsort(-maps.numpy().std((1, 2)), kind="stable")[:SHOWN].tolist()


def draw_example(panels: Sequence[Axes], block: Block, kernel: int) -> None:
    """Frame a patch in the panel of the image, and draw it, the kernel, and the map they yield."""
    found, ends, place = find_patch(block, kernel)
    weights = block.layer.weight[kernel, 0].detach().numpy()
    patch, response = found.numpy(), block.response[0, kernel].numpy()
    pixels = {"vmin": float(block.inputs.min()), "vmax": float(block.inputs.max())}
    bias = "" if block.layer.bias is None else f" and the bias {block.layer.bias[kernel]:z.2f}"
    value = f"= {response[place]:z.2f}, one value of map {kernel}"
    drawn = (
        (patch, pixels, f"the {patch.size} framed pixels,\nnormalized"),
        (weights, colour_scale(weights), f"× the {weights.size} weights\nof kernel {kernel}"),
        (response, colour_scale(response), f"sum of the products{bias}\n{value}"),
    )
    for axes, (values, scale, title) in zip(panels[1:], drawn, strict=True):
        axes.imshow(values, **scale)
        axes.set_title(title, fontsize=9)
        style.hide_axes(axes)
        if values is not response and values.size <= 25:  # more would be too small to read
            for (row, column), value in np.ndenumerate(values):
                text = axes.text(column, row, f"{value:z.2f}", ha="center", va="center", fontsize=8)
                text.set_bbox({"fc": "white", "alpha": 0.75, "lw": 0, "pad": 1})
    for axes, (top, left, bottom, right) in ((panels[0], ends), (panels[3], place * 2)):
        box = (left - 0.5, top - 0.5), right - left + 1, bottom - top + 1
        axes.add_patch(Rectangle(*box, fill=False, ec=VERMILION, lw=1.5))
