"""What the networks are built from: a base class, a convolutional block, and dropout."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fashion.data import IMAGE_SIZE
from fashion.recipe import Recipe

BYTE_VALUES = 256
KERNEL_SIZE = 3


class Network(nn.Module):
    """Base class of networks that map normalized images (N, 1, 28, 28) to logits (N, 10).

    Attributes:
        recipe: How to train the network; of the class, as is quick_recipe.
        quick_recipe: How to train it within a minute, to a lower accuracy.
        arguments: The arguments of the constructor, which rebuild the network.
    """

    recipe: ClassVar[Recipe]
    quick_recipe: ClassVar[Recipe]
    arguments: dict[str, Any]


class ConvBlock(nn.Module):
    """Convolution, max-pooling, batch norm and ReLU: (N, C, S, S) to (N, K, T, T).

    Pooling directly follows the convolution, so that batch norm and ReLU, which are limited by
    memory bandwidth, process a quarter of the values. T is S // 2 with padding, S // 2 - 1 without.

    Args:
        inputs: Number of input channels C.
        outputs: Number of kernels K.
        padding: Pixels to add on each side: 1 keeps the size S in the convolution, 0 reduces it to
            S - 2, without the places where a part of the kernel sees nothing.
    """

    def __init__(self, inputs: int, outputs: int, padding: int) -> None:
        super().__init__()
        # Batch norm subtracts the mean, so a bias would have no effect.
        self.conv = nn.Conv2d(inputs, outputs, KERNEL_SIZE, padding=padding, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.norm = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        """Return the feature maps after all four layers."""
        return self.relu(self.norm(self.pool(self.conv(maps))))


def conv_blocks(model: nn.Module) -> list[ConvBlock]:
    """Return the convolutional blocks of a model, from input to output."""
    return [module for module in model.modules() if isinstance(module, ConvBlock)]


class Dropout(nn.Dropout):
    """Dropout (Srivastava et al., JMLR 15, 2014) that makes eight decisions per random number.

    On a CPU, one generator draws all random numbers in sequence, which takes longer than the
    layer's matrix product. The eight bytes of a 64-bit number are independent draws from 0 to 255,
    so the probability is rounded to multiples of 1/256. Other devices use torch's dropout.

    Args:
        p: Probability of setting an activation to zero, in [0, 1).
    """

    def forward(self, activations: Tensor) -> Tensor:
        """In training, set some activations to zero and scale the others up."""
        dropped = min(round(self.p * BYTE_VALUES), BYTE_VALUES - 1)
        if activations.device.type != "cpu" or not self.training or not dropped:
            return F.dropout(activations, self.p, self.training)
        scale = 1 / (1 - dropped / BYTE_VALUES)
        keep = random_bytes(activations.shape) >= dropped
        return activations * keep.to(activations.dtype).mul_(scale)


def random_bytes(shape: torch.Size) -> Tensor:
    """Return uniformly distributed uint8 numbers from torch's default generator."""
    count = shape.numel()
    words = torch.empty(-(-count // 8), dtype=torch.int64)
    # The smallest number as lower bound without an upper bound draws all 64 bits.
    words.random_(torch.iinfo(torch.int64).min, None)
    return words.view(torch.uint8)[:count].view(shape)


def check_image_shape(images: Tensor) -> None:
    """Raise ValueError unless the images have shape (N, 1, 28, 28)."""
    if images.ndim != 4 or images.shape[1:] != (1, IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(
            f"expected images of shape (N, 1, {IMAGE_SIZE}, {IMAGE_SIZE}), got "
            f"{tuple(images.shape)}"
        )


def count_parameters(model: nn.Module) -> int:
    """Return the number of learned parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def summarize_layers(model: nn.Module) -> str:
    """Return a table of a model's layers: name, kind, output shape and parameters."""
    rows: list[tuple[str, str, str, str]] = [("layer", "kind", "output", "parameters")]

    def add_row(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(layer: nn.Module, _: Any, output: Tensor) -> None:
            shape = " × ".join(map(str, output.shape[1:]))
            rows.append((name, type(layer).__name__, shape, f"{count_parameters(layer):,}"))

        return hook

    leaves = [(name, layer) for name, layer in model.named_modules() if not list(layer.children())]
    hooks = [layer.register_forward_hook(add_row(name)) for name, layer in leaves]
    training = model.training
    with torch.inference_mode():
        model.eval()(torch.zeros(1, 1, IMAGE_SIZE, IMAGE_SIZE))
    model.train(training)
    for hook in hooks:
        hook.remove()

    rows.append(("", "", "total", f"{count_parameters(model):,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {shape:>{widths[2]}}  {count:>{widths[3]}}"
        for name, kind, shape, count in rows
    )
