"""What both networks are built with: a dropout that is quick on a CPU, and the check of a shape."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data import IMAGE_SIZE

BYTE_VALUES = 256


class Dropout(nn.Dropout):
    """Dropout (Srivastava et al., JMLR 15, 2014) that takes eight decisions from one random number.

    On a CPU one generator draws one number after the other, which takes longer than the layer's
    matrix product. The bytes of a 64-bit number are eight independent draws from 0 to 255; p is
    therefore rounded to 256ths there. On other devices it is torch's own dropout.

    Args:
        p: probability of setting an activation to zero, in [0, 1).
    """

    def forward(self, activations: Tensor) -> Tensor:
        """In training, set some activations to zero and scale the others up; else do nothing."""
        dropped = min(round(self.p * BYTE_VALUES), BYTE_VALUES - 1)
        if activations.device.type != "cpu" or not self.training or not dropped:
            return F.dropout(activations, self.p, self.training)
        scale = 1 / (1 - dropped / BYTE_VALUES)
        keep = random_bytes(activations.shape) >= dropped
        return activations * keep.to(activations.dtype).mul_(scale)


def random_bytes(shape: torch.Size) -> Tensor:
    """Return uint8 numbers from 0 to 255, all equally likely, from torch's default generator."""
    count = shape.numel()
    words = torch.empty(-(-count // 8), dtype=torch.int64)
    # From the smallest number on, without an end, is all 64 bits.
    words.random_(torch.iinfo(torch.int64).min, None)
    return words.view(torch.uint8)[:count].view(shape)


def check_image_shape(images: Tensor) -> None:
    """Raise ValueError unless the images are (N, 1, 28, 28)."""
    if images.ndim != 4 or images.shape[1:] != (1, IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(
            f"wanted images of shape (N, 1, {IMAGE_SIZE}, {IMAGE_SIZE}), got {tuple(images.shape)}"
        )
