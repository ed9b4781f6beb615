"""The convolutional network: three convolutions, then three fully connected layers."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from data import CLASS_COUNT, IMAGE_SIZE
from layers import Dropout, check_image_shape

BLOCK_COUNT = 3
KERNEL_SIZE = 3


class CNN(nn.Module):
    """Three blocks of convolution, max-pooling, batch norm and ReLU, then three linear layers.

    The maps shrink from 28 to 14, 7 and 3 pixels while their number grows; the linear layers, with
    ReLU and dropout between them, read the class from what is left.

    Args:
        channels: feature maps of the three convolutions, each at least 1.
        widths: outputs of the two hidden linear layers, each at least 1.
        dropout: share of the hidden linear activations set to zero in training, in [0, 1).

    Raises:
        ValueError: when the channels, the widths or the dropout are not as above.
    """

    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 128),
        widths: Sequence[int] = (256, 128),
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        if len(channels) != BLOCK_COUNT or min(channels) < 1:
            raise ValueError(f"channels must be {BLOCK_COUNT} positive numbers, got {channels}")
        if len(widths) != 2 or min(widths) < 1:
            raise ValueError(f"widths must be 2 positive numbers, got {widths}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.arguments = {"channels": list(channels), "widths": list(widths), "dropout": dropout}

        self.blocks = nn.Sequential(
            *(_block(inputs, outputs) for inputs, outputs in pairwise([1, *channels]))
        )
        map_size = IMAGE_SIZE // 2**BLOCK_COUNT
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, width in pairwise([channels[-1] * map_size**2, *widths]):
            layers += [nn.Linear(inputs, width), nn.ReLU(), Dropout(dropout)]
        layers.append(nn.Linear(widths[-1], CLASS_COUNT))
        self.classifier = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (N, 1, 28, 28) to logits (N, 10).

        Raises:
            ValueError: when the images have another shape.
        """
        check_image_shape(images)
        return self.classifier(self.blocks(images))


def _block(inputs: int, outputs: int) -> nn.Sequential:
    """Map (N, inputs, size, size) to (N, outputs, size // 2, size // 2).

    Pooling comes straight after the convolution, so that batch norm and ReLU, which are bound by
    memory and not by arithmetic, touch a quarter of the values.
    """
    return nn.Sequential(
        OrderedDict(
            # Batch norm subtracts the mean, so a bias before it would do nothing.
            conv=nn.Conv2d(inputs, outputs, KERNEL_SIZE, padding=KERNEL_SIZE // 2, bias=False),
            pool=nn.MaxPool2d(2),
            norm=nn.BatchNorm2d(outputs),
            relu=nn.ReLU(),
        )
    )
