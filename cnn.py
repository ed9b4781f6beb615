"""The convolutional network: three convolutions, three linear layers, and how it is trained."""

from collections.abc import Sequence
from dataclasses import replace

from fashion.recipe import Recipe

import torch
from torch import Tensor, nn

# Chosen on held-out training images for accuracy in a few minutes on two CPU cores.
RECIPE = Recipe(
    epochs=18,  # an image is shown once in each of its 18 views, see data.Views
    batch_size=512,  # as accurate as 256, with half as many of Muon's products
    learning_rate=0.015,  # 0.01 and 0.02 are as good
    label_smoothing=0.05,  # some labels are wrong
)
# Two epochs do not overfit: no augmentation, no dropout. Small batches allow more steps.
QUICK = replace(
    RECIPE,
    epochs=2,
    batch_size=256,
    learning_rate=0.03,
    shift_share=0,
    flip=False,
    model={"dropout": 0},
)


class CNN(nn.Module):
    """Maps normalized images (N, 1, 28, 28) to logits (N, 10).

    The maps shrink from 28 to 14, 12, 6 and 3 pixels. With a border, the second convolution would
    compute a quarter more, and the third pooling would drop a row: 14, 7 and 3 pixels.
    """

    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 128),
        padding: Sequence[int] = (1, 0, 1),
        widths: Sequence[int] = (256, 128),
        dropout: float = 0.15,
    ) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*map(conv_block, [1, *channels], channels, padding))
        with torch.no_grad():  # a trial tells how many values the blocks return
            inputs = self.blocks.eval()(torch.zeros(1, 1, 28, 28)).numel()
        self.blocks.train()
        layers: list[nn.Module] = [nn.Flatten()]
        for outputs in widths:
            layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout)]
            inputs = outputs
        self.classifier = nn.Sequential(*layers, nn.Linear(inputs, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        return self.classifier(self.blocks(images))


def conv_block(inputs: int, outputs: int, padding: int) -> nn.Sequential:
    """Return a block. Pooling comes first: norm and ReLU then process a quarter of the values."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=padding, bias=False)  # the norm has a bias
    return nn.Sequential(conv, nn.MaxPool2d(2), nn.BatchNorm2d(outputs), nn.ReLU())
