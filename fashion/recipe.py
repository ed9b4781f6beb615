"""The settings of a training."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained. The file of each network says why its values were chosen."""

    epochs: int
    batch_size: int
    optimizer: str = "muon"  # of the hidden weights: muon, adamw or sgd; AdamW trains the others
    learning_rate: float  # its peak
    weight_decay: float = 0.01  # of AdamW and SGD
    warmup: float = 0.1  # share of the steps in which the learning rate rises; then it falls to 0
    label_smoothing: float = 0  # share of each label that is spread over all classes
    max_shift: int = 1  # of an image in each direction, in pixels
    shift_share: float = 1.0  # of the images that are shifted; the others stay in the centre
    flip: bool = True  # mirror every other view: mirrored clothes keep their class
    model: dict[str, Any] = field(
        default_factory=dict
    )  # arguments of the network that differ from its defaults


class Model(NamedTuple):
    """A row in the table of networks."""

    network: type[nn.Module]
    recipe: Recipe
    quick: Recipe  # for a training of about a minute
