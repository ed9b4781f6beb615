"""The weights of first and later layers, as pictures, before and after training."""

from collections.abc import Mapping

from fashion.activations import find_convolutions, find_layers, strongest
from fashion.checkpoint import Network
from fashion.data import SIZE
from fashion.recipe import Model
from fashion.style import GREY, add_colour_bar, colour_scale, draw_tiles, label, make_figure, styled

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

CLIPPED = 2  # percentage of the weights that a scale may clip: some kernels are far larger


def make_untrained(network: Network, models: Mapping[str, Model]) -> nn.Module:
    """Return the network as it was before its training, rebuilt from its seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(network.seed)
        return models[network.name].network(**network.metadata["recipe"]["model"]).eval()


def draw_kernels(network: Network, models: Mapping[str, Model], number: int) -> Figure:
    """Draw the kernels of a convolution, numbered from 1, before and after training."""
    pair = (make_untrained(network, models), network.model)
    before, after = (find_convolutions(model)[number - 1].weight.detach() for model in pair)
    chosen = strongest(after)
    largest = after.abs().sum((2, 3)).argmax(1)[chosen]
    slices = after.shape[1]
    title = f"Kernels of convolution {number}, {label(network.name)} trained on {network.dataset}\n"
    title += f"{len(chosen)} of {len(after)} kernels, ordered by norm after training"
    title += f"; shown: the largest of the {slices} slices of each" * (slices > 1)
    return draw_pair(before[chosen, largest], after[chosen, largest], chosen, title)


def draw_weights(network: Network, models: Mapping[str, Model]) -> Figure:
    """Draw the weights of a first layer that is linear, as an image for each unit."""
    pair = (make_untrained(network, models), network.model)
    before, after = (find_layers(model)[0].weight.detach().view(-1, SIZE, SIZE) for model in pair)
    chosen = strongest(after)
    title = f"Weights of linear layer 1, {label(network.name)} trained on {network.dataset}\n"
    title += f"{len(chosen)} of {len(after)} units, ordered by norm after training"
    return draw_pair(before[chosen], after[chosen], chosen, title)


@styled()
def draw_pair(before: Tensor, after: Tensor, numbers: list[int], title: str) -> Figure:
    """Draw weights (K, height, width), each side on a scale of its own."""
    columns, rows = min(len(after), 8), -(-len(after) // 8)
    figure = make_figure(title, 1.7 * columns + 2.4, 0.95 * rows + 1.2)
    sides = {"before training (random)": before, "after training": after}
    for axes, (name, weights) in zip(figure.subplots(1, 2), sides.items(), strict=True):
        draw_tiles(axes, weights.numpy(), numbers, colour_scale(weights.numpy(), CLIPPED))
        axes.set_title(f"{name}\n")
        add_colour_bar(axes, "weight", extend="both")
    ratio = float(after.square().mean().sqrt() / before.square().mean().sqrt())
    note = "Each side has its own colour scale. Root mean square of the weights shown: "
    figure.supxlabel(f"{note}{ratio:.1f} times as large after training.", fontsize=9, color=GREY)
    return figure
