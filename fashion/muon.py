"""The optimizer Muon, which updates a weight matrix equally in all directions.

torch.optim.Muon accepts two-dimensional parameters only and always multiplies in bfloat16. The
kernels of a convolution have four dimensions, and many processors only emulate bfloat16.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

# Coefficients and iterations of the polynomial (Jordan et al., "Muon: An optimizer for hidden
# layers in neural networks", 2024, https://kellerjordan.github.io/posts/muon). Its steep slope at
# zero makes small singular values grow fast; in exchange they end near 1, not exactly at it.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
# Five are usual; three take less time.
ITERATIONS = 3
EPSILON = 1e-7  # keeps a gradient of zeros from becoming NaN


class Muon(torch.optim.Optimizer):
    """Momentum with nearly orthogonal update matrices (Jordan et al., see COEFFICIENTS).

    A few directions dominate the gradient of a layer. With all singular values near 1, rare
    directions are learned as fast as frequent ones.

    Args:
        parameters: Weights of linear layers and convolutions, (outputs, inputs, ...).
        learning_rate: Step size, above 0.
        momentum: Nesterov momentum, in [0, 1).
        precision: Data type of the matrix products, torch.float32 or torch.bfloat16.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rate: float,
        momentum: float,
        precision: torch.dtype,
    ) -> None:
        super().__init__(parameters, {"lr": learning_rate, "momentum": momentum})
        self.precision, self.iterations = precision, ITERATIONS

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Perform one optimization step. Closures are not supported."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:  # a frozen layer
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(state["momentum"], group["momentum"])
                matrix = orthogonalize(update.flatten(1), self.precision, self.iterations)
                # Compensates for matrices with more outputs than inputs: every output moves
                # equally far.
                outputs, inputs = matrix.shape
                size = group["lr"] * max(1, outputs / inputs) ** 0.5
                weight.add_(matrix.view(weight.shape), alpha=-size)


def orthogonalize(matrix: Tensor, precision: torch.dtype, iterations: int = ITERATIONS) -> Tensor:
    """Return a matrix with the same singular vectors and all singular values near 1.

    The Newton-Schulz iteration needs matrix products only; a singular value decomposition would
    take far longer. After five iterations, singular values end between 0.7 and 1.2; after three,
    those that began below a hundredth of the matrix's norm end lower.

    Args:
        matrix: (outputs, inputs).
        precision: Data type of the products and of the result.
        iterations: Number of iterations.
    """
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).to(precision)
    # The Frobenius norm is at least the largest singular value, which must not exceed 1.
    x = x / (x.norm() + EPSILON)
    for _ in range(iterations):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
