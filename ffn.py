"""The feedforward network: five fully connected layers of decreasing size, and its recipe."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from torch import Tensor, nn

from fashion.data import CLASS_COUNT, IMAGE_SIZE
from fashion.layers import Dropout, Network, check_image_shape
from fashion.recipe import Recipe

LAYER_COUNT = 5

# Chosen on held-out training images for a high accuracy in about two minutes on two CPU cores.
RECIPE = Recipe(
    epochs=45,
    # With batches of 1,024, Muon's own products take as long as the rest of a step. With larger
    # batches they matter less; 45 epochs of these do as well as 36 of 1,024.
    batch_size=2048,
    optimizer="muon",  # AdamW in 60 epochs of batches of 1,024 is 0.3 points behind
    learning_rate=0.03,  # 0.02, 0.04 and 0.06 differ from it by noise only
    weight_decay=0.01,  # AdamW's default; Muon's weights have none
    warmup=0.1,  # early gradients mostly show what all images have in common
    label_smoothing=0.05,  # some labels are wrong; smoothing also lowers overconfidence
    # A network without locality sees a shifted image as a different one. Shifting a share of the
    # images reduces overfitting; shifting all of them would make the task harder.
    shift=1,
    shifted=0.7,
    flip=True,  # mirrored clothes keep their class
    ema_steps=100,
)
# So few epochs do not overfit: no augmentation, no dropout. Small batches allow more steps.
QUICK_RECIPE = replace(
    RECIPE,
    epochs=4,
    batch_size=256,
    optimizer="adamw",  # Muon's products would take most of the time with batches this small
    learning_rate=2.5e-3,
    shifted=0.0,
    flip=False,
    model={"dropout": 0.0},
)


class FFN(Network):
    """Five fully connected layers; batch norm, ReLU and dropout after each but the last.

    The network receives an image as a vector of 784 numbers. It has to learn which pixels are
    neighbours.

    Args:
        widths: Outputs of the four hidden layers, strictly decreasing and larger than 10.
        dropout: Probability of setting a hidden activation to zero in training, in [0, 1).

    Raises:
        ValueError: If the widths or the dropout are invalid.
    """

    recipe, quick_recipe = RECIPE, QUICK_RECIPE

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
                # Batch norm subtracts the mean, so a bias would have no effect.
                nn.Linear(inputs, width, bias=False),
                nn.BatchNorm1d(width),
                nn.ReLU(),
                Dropout(dropout),
            ]
        layers.append(nn.Linear(widths[-1], CLASS_COUNT))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalized images (N, 1, 28, 28) to logits (N, 10).

        Raises:
            ValueError: If the images have another shape.
        """
        check_image_shape(images)
        return self.layers(images)
