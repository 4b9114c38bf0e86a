"""Muon: SGD with orthogonalized momentum (Jordan et al., "Muon: An optimizer for hidden layers", 2024)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Coefficients of the quintic Newton-Schulz iteration of the paper: steep at zero, so that singular values between 0.01
# and 1 reach 0.7 to 1.2 in five iterations.
QUINTIC = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Orthogonalized momentum for weights of two or more dimensions, scaled to the norm of the weights.

    A convolution's weights (out, in, h, w) count as a matrix (out, in * h * w). The update has `lr` times the Frobenius
    norm of the weights (norms below 1 count as 1), the rule of `LayerwiseNormalizedSGD`, so that learning rates are
    comparable. For biases and normalization the momentum is scaled to norm 1.
    """

    def __init__(self, groups: Any, lr: float, *, momentum: float = 0.9, nesterov: bool = True, iterations: int = 3):
        super().__init__(groups, {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": 0.0})
        self.iterations = iterations

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step; see `torch.optim.Optimizer.step`."""
        if closure is not None:
            raise ValueError("closures are not supported: this optimizer evaluates the loss once per step")
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                buffer, grad = state["momentum_buffer"], weight.grad
                buffer.mul_(group["momentum"]).add_(grad)
                update = grad.add(buffer, alpha=group["momentum"]) if group["nesterov"] else buffer
                norm: Tensor | float = 1.0
                if weight.ndim > 1:
                    update = orthogonalize(update.flatten(1), self.iterations).view(update.shape)
                    norm = weight.norm().clamp_min(1.0)
                if group["weight_decay"]:
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_(update * (group["lr"] * norm / (update.norm() + 1e-8)))


def orthogonalize(matrix: Tensor, iterations: int) -> Tensor:
    """Approximate the nearest matrix with equal singular values by quintic Newton-Schulz iteration in bfloat16.

    (rows, columns) -> float32 of the same shape. A zero matrix stays zero.
    """
    a, b, c = QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x: Tensor = matrix.T if tall else matrix
    x = (x / (x.norm() + 1e-8)).bfloat16()
    for _ in range(iterations):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return (x.T if tall else x).to(matrix.dtype)
