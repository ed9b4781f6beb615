"""The optimizer Muon: steps of equal size in every direction of a weight matrix.

torch has one, which takes two-dimensional parameters only and always multiplies in bfloat16; a
convolution's kernels have four dimensions, and many processors only emulate bfloat16.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

# Coefficients of the polynomial, and how often it is applied (Jordan et al., "Muon: An optimizer
# for hidden layers in neural networks", 2024, https://kellerjordan.github.io/posts/muon): steep at
# zero, so that small singular values grow fast, at the price of ending near 1 and not at it.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
EPSILON = 1e-7  # keeps a gradient of zeros from becoming NaN


class Muon(torch.optim.Optimizer):
    """Momentum whose step for a weight matrix is made (nearly) orthogonal.

    Gradients of a layer are dominated by a few directions; with all singular values near 1, the
    rare ones are learned as fast as the frequent ones. From Jordan et al., see COEFFICIENTS.

    Args:
        parameters: weights of linear layers and convolutions, (outputs, inputs, ...).
        learning_rate: size of a step, above 0.
        momentum: of Nesterov's kind, in [0, 1).
        precision: torch.float32 or torch.bfloat16, in which the products are computed.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rate: float,
        momentum: float,
        precision: torch.dtype,
    ) -> None:
        super().__init__(parameters, {"lr": learning_rate, "momentum": momentum})
        self.precision = precision

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Take one step. A closure, which other optimizers may call, is none of Muon's business."""
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(state["momentum"], group["momentum"])
                matrix = orthogonalize(update.flatten(1), self.precision)
                # A tall matrix has more outputs than inputs: with this each output moves as far.
                outputs, inputs = matrix.shape
                size = group["lr"] * max(1, outputs / inputs) ** 0.5
                weight.add_(matrix.view(weight.shape), alpha=-size)


def orthogonalize(matrix: Tensor, precision: torch.dtype) -> Tensor:
    """Return a matrix with the same singular vectors and all singular values near 1.

    Newton-Schulz iteration: products only, where a decomposition would take far longer. Singular
    values end between 0.7 and 1.2, those that are nearly zero below that.

    Args:
        matrix: (outputs, inputs).
        precision: in which to multiply, and of the result.
    """
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).to(precision)
    # The Frobenius norm is no smaller than the largest singular value, which must not exceed 1.
    x = x / (x.norm() + EPSILON)
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
