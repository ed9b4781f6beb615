"""The optimizer Muon beside AdamW, and the learning-rate schedule."""

import math
from collections.abc import Iterable
from functools import partial

from fashion.recipe import Recipe
from fashion.script import UserError

import torch
from torch import Tensor, nn

# Coefficients of the polynomial, from Jordan et al., "Muon: An optimizer for hidden layers in
# neural networks", 2024 (https://kellerjordan.github.io/posts/muon). Five iterations are
# usual; three are as accurate here.
COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 3
MOMENTUM = 0.95
ADAMW_SHARE = 0.3  # AdamW's learning rate beside Muon, as a share of Muon's
SGD_MOMENTUM = 0.9


class Muon(torch.optim.Optimizer):
    """Momentum with nearly orthogonal updates, which learn rare directions as fast as others.

    torch.optim.Muon takes no convolutions, and multiplies in bfloat16, which many CPUs emulate.
    """

    def __init__(self, weights: Iterable[nn.Parameter], lr: float, dtype: torch.dtype) -> None:
        super().__init__(weights, {"lr": lr})
        self.dtype = dtype  # of the matrix products

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Update the weights from their gradients. Closures are not supported."""
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                momentum = state["momentum"]
                momentum.lerp_(weight.grad, 1 - MOMENTUM)
                update = weight.grad.lerp(momentum, MOMENTUM).flatten(1)  # Nesterov momentum
                update = orthogonalize(update.to(self.dtype))
                outputs, inputs = update.shape
                rate = group["lr"] * max(1, outputs / inputs) ** 0.5  # outputs change equally
                weight.sub_(update.view(weight.shape), alpha=rate)


def orthogonalize(x: Tensor) -> Tensor:
    """Return a matrix with the same singular vectors and singular values from 0.5 to 1.2.

    The method is that of Newton and Schulz; values below 1.3 % of the norm remain smaller.
    """
    a, b, c = COEFFICIENTS
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)  # the norm is at least the largest singular value
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if tall else x


def make_optimizers(
    model: nn.Module, recipe: Recipe, dtype: torch.dtype
) -> list[torch.optim.Optimizer]:
    """Return Muon for the weights of the hidden layers and AdamW for all else, or one for all."""
    lr, decay = recipe.learning_rate, recipe.weight_decay
    adamw = partial(torch.optim.AdamW, weight_decay=decay, fused=True)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    hidden = set(matrices[:-1])  # the last one belongs to the output layer
    if recipe.optimizer == "muon" and hidden:
        muon = Muon([p for p in matrices if p in hidden], lr, dtype)
        optimizers = [
            muon,
            adamw([p for p in model.parameters() if p not in hidden], ADAMW_SHARE * lr),
        ]
    elif recipe.optimizer in ("muon", "adamw"):
        optimizers = [adamw(model.parameters(), lr)]
    elif recipe.optimizer == "sgd":
        optimizers = [torch.optim.SGD(model.parameters(), lr, SGD_MOMENTUM, weight_decay=decay)]
    else:
        raise UserError(f"unknown optimizer {recipe.optimizer!r}: use muon, adamw or sgd")
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def schedule(step: int, steps: int, warmup: float) -> float:
    """Return the share of the peak learning rate: a linear rise, then a linear fall to zero."""
    rising = math.floor(
        warmup * steps
    )  # early gradients mostly show what all images have in common
    return (step + 1) / (rising + 1) if step < rising else (steps - step) / (steps - rising)
