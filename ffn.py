"""The feedforward network: five linear layers, and how it is trained."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from fashion.dropout import Dropout
from fashion.recipe import Recipe

from torch import Tensor, nn

# Chosen on held-out training images for accuracy in about a minute on two CPU cores.
RECIPE = Recipe(
    epochs=45,
    # With batches of 1,024, the matrix products of Muon take as long as the rest of a step.
    batch_size=2048,  # 45 epochs of these do as well as 36 of 1,024
    learning_rate=0.03,  # 0.02, 0.04 and 0.06 differ from it by noise only
    # To an FFN, a shifted image looks like a different one: shifting all of them is too hard.
    shift_share=0.7,
)
# So few epochs do not overfit: no augmentation, no dropout. Small batches allow more steps.
QUICK = replace(
    RECIPE,
    epochs=4,
    batch_size=256,
    optimizer="adamw",  # with batches this small, Muon's products would take most of the time
    learning_rate=2.5e-3,
    shift_share=0,
    flip=False,
    model={"dropout": 0},
)


class FFN(nn.Module):
    """Maps normalized images (N, 1, 28, 28) to logits (N, 10).

    An image is a vector of 784 numbers: the network has to learn which pixels are neighbours.
    """

    def __init__(self, widths: Sequence[int] = (512, 256, 128, 64), dropout: float = 0.15) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise([28 * 28, *widths]):
            linear = nn.Linear(inputs, outputs, bias=False)  # the norm has a bias
            layers += [linear, nn.BatchNorm1d(outputs), nn.ReLU(), Dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], 10))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        return self.layers(images)
