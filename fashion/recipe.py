"""The settings of a training."""

from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of a training.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images per step.
        optimizer: Optimizer of the hidden layers' weights, "muon" or "adamw". All other parameters
            are always updated by AdamW (Loshchilov and Hutter, arXiv:1711.05101).
        learning_rate: Peak learning rate of that optimizer. Beside Muon, AdamW gets a share of it.
        weight_decay: Weight decay of AdamW.
        warmup: Share of the steps in which the learning rate rises to its peak, in [0, 1). It falls
            linearly to zero afterwards.
        label_smoothing: Share of each label that is spread over all classes, in [0, 1) (Szegedy et
            al., arXiv:1512.00567).
        shift: Largest shift of an image in pixels, horizontally and vertically. Images show all
            shifts, and their mirror images, in turn; see schedule_views in data.py.
        shifted: Share of the images that are shifted, in [0, 1].
        flip: Whether each image is mirrored in every other epoch.
        ema_steps: Window of the exponential moving average of the weights, in steps, limited to a
            tenth of the training. The averaged weights are evaluated and saved.
        freeze: Shares of the training, in [0, 1], after which the convolutional blocks, from the
            first on, keep their weights. Fewer gradients remain to be computed (Brock et al.,
            "FreezeOut", arXiv:1706.04983).
        model: Arguments of the network that differ from its defaults.
    """

    epochs: int
    batch_size: int
    optimizer: str
    learning_rate: float
    weight_decay: float
    warmup: float
    label_smoothing: float
    shift: int
    shifted: float
    flip: bool
    ema_steps: int
    freeze: list[float] = field(default_factory=list)
    model: dict[str, Any] = field(default_factory=dict)

    def change(self, **settings: Any) -> "Recipe":
        """Return this recipe with other settings; arguments of the network not given are kept."""
        model = {**self.model, **settings.pop("model", {})}
        return replace(self, model=model, **settings)
