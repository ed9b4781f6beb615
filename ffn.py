"""The feedforward network: five fully connected layers of decreasing width."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from data import CLASS_COUNT, IMAGE_SIZE
from layers import Dropout, check_image_shape

LAYER_COUNT = 5


class FFN(nn.Module):
    """Five fully connected layers; batch norm, ReLU and dropout after each but the last.

    It sees a picture as a list of 784 numbers: that two pixels are neighbours is nothing it knows,
    it has to learn it.

    Args:
        widths: outputs of the four hidden layers, strictly decreasing and all above 10.
        dropout: share of the hidden activations set to zero in training, in [0, 1).

    Raises:
        ValueError: when the widths or the dropout are not as above.
    """

    def __init__(self, widths: Sequence[int] = (512, 256, 128, 64), dropout: float = 0.15) -> None:
        super().__init__()
        outputs = [*widths, CLASS_COUNT]
        if len(outputs) != LAYER_COUNT or any(a <= b for a, b in pairwise(outputs)):
            raise ValueError(
                f"widths must be {LAYER_COUNT - 1} strictly decreasing numbers above "
                f"{CLASS_COUNT}, got {tuple(widths)}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.arguments = {"widths": list(widths), "dropout": dropout}

        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, width in pairwise([IMAGE_SIZE**2, *widths]):
            layers += [
                # Batch norm subtracts the mean, so a bias before it would do nothing.
                nn.Linear(inputs, width, bias=False),
                nn.BatchNorm1d(width),
                nn.ReLU(),
                Dropout(dropout),
            ]
        layers.append(nn.Linear(widths[-1], CLASS_COUNT))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (N, 1, 28, 28) to logits (N, 10).

        Raises:
            ValueError: when the images have another shape.
        """
        check_image_shape(images)
        return self.layers(images)
