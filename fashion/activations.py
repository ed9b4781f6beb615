"""What the layers of a network return for an image, drawn from the image to the prediction.

Layers are found by type, in the order in which they are called, so any network will do.
"""

from dataclasses import dataclass

from fashion import style
from fashion.checkpoint import Network
from fashion.data import CLASSES, SIZE, normalize
from fashion.evaluation import BATCH_SIZE
from fashion.style import GREY, add_colour_bar, colour_scale, draw_image, draw_tiles, label

import numpy as np
import torch
from matplotlib.figure import Figure
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
    others: list[str]  # names of the other layers

    @property
    def title(self) -> str:
        """The layers in words."""
        text = f"linear layer, {len(self.layer.weight)} units"
        if isinstance(self.layer, nn.Conv2d):
            size = " × ".join(map(str, self.layer.kernel_size))
            text = f"{size} convolution, {len(self.layer.weight)} kernels"
        return f"{text}; then {', '.join(self.others)}" if self.others else text


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
            blocks[-1].others.append(type(layer).__name__)

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


@style.styled()
def draw_maps(network: Network, image: Tensor, caption: str, number: int) -> Figure:
    """Draw the feature maps of a convolution, numbered from 1, in the order of kernel_grid."""
    blocks, _ = run_image(network, image)
    block = [block for block in blocks if isinstance(block.layer, nn.Conv2d)][number - 1]
    chosen = strongest(block.layer.weight)
    maps = block.response[0, chosen].numpy()
    height = 1.2 * -(-len(maps) // 8) + 1.1
    widths = (0.8 * height, 1.05 * min(len(maps), 8) + 1)
    title = f"Feature maps of convolution {number}, {label(network.name)} trained on "
    title += f"{network.dataset}\n{caption}; {len(maps)} of {len(block.response[0])} kernels"
    figure = style.make_figure(title, sum(widths), height)
    left, right = figure.subplots(1, 2, width_ratios=widths)
    draw_image(left, image, "input image")
    draw_tiles(right, maps, chosen, colour_scale(maps, CLIPPED))
    add_colour_bar(right, "response of the kernel", extend="both")
    return figure


@style.styled()
def draw_progression(network: Network, image: Tensor, caption: str) -> Figure:
    """Draw the way of an image: feature maps, hidden layers, and class probabilities."""
    (*hidden, _), probabilities = run_image(network, image)
    heights = [1.5, *(1.6 if block.output.ndim == 4 else 0.8 for block in hidden), 2]
    title = f"From image to prediction, {label(network.name)} trained on {network.dataset}\n"
    title += f"{caption}; prediction: {CLASSES[probabilities.argmax()]} {probabilities.max():.0%}"
    figure = style.make_figure(title, 1.25 * SHOWN + 1.2, sum(heights) + 1.2)
    figure.supxlabel("Colours: activations. Each row has its own scale.", fontsize=9, color=GREY)
    first, *rows, last = figure.subplots(len(heights), 1, height_ratios=heights)
    draw_image(first, image, f"input: {SIZE} × {SIZE} pixels")
    for axes, block in zip(rows, hidden, strict=True):
        values = block.output[0].numpy()
        scale = colour_scale(values, signed=bool((values < 0).any()))  # GELU can be negative
        if values.ndim == 3:
            # A map that is high everywhere says little, one that varies says more.
            chosen = np.argsort(-values.std((1, 2)), kind="stable")[:SHOWN]
            size = " × ".join(map(str, values.shape[1:]))
            shown = f"the {len(chosen)} of {len(values)} maps that vary most, {size} values each"
            draw_tiles(axes, values[chosen], chosen.tolist(), scale)
        else:
            shown = "one stripe per unit"
            axes.imshow(values[None], aspect="auto", **scale)
            style.hide_axes(axes)
        axes.set_title(f"{block.title}: {shown}", fontsize=10, pad=16 if values.ndim == 3 else 6)
        add_colour_bar(axes, "", aspect=10)
    last.set_title("output: class probabilities", fontsize=10)
    bars = last.bar(CLASSES, probabilities.tolist(), color=style.colour(network.name))
    last.bar_label(bars, [f"{p:.0%}" if p >= 0.01 else "" for p in probabilities], fontsize=8)
    last.set(ylim=(0, 1.15))
    last.set_yticks([0, 0.5, 1], ["0%", "50%", "100%"])
    last.grid(False, axis="x")
    return figure
