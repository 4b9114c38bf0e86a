"""Muon: SGD with orthogonalized momentum (Jordan et al., "Muon: An optimizer for hidden layers", 2024)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Coefficients of the quintic Newton-Schulz iteration of the paper: steep at zero, so that small singular values reach
# 0.7 to 1.2 in few iterations.
QUINTIC = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Orthogonalized momentum for weights of two or more dimensions, scaled to the norm of the weights.

    A convolution's weights (out, in, h, w) count as a matrix (out, in * h * w). The update has `lr` times the Frobenius
    norm of the weights (norms below 1 count as 1), the rule of `LayerwiseNormalizedSGD`. For biases and normalization
    the momentum is scaled to norm 1.
    """

    def __init__(self, groups: Any, lr: float, *, momentum: float = 0.9, nesterov: bool = True, iterations: int = 2):
        super().__init__(groups, {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": 0.0})
        self.iterations = iterations

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step; see `torch.optim.Optimizer.step`."""
        if closure is not None:
            raise ValueError("closures are not supported: this optimizer evaluates the loss once per step")
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._update(weights, group)

    def _update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        for weight in weights:
            if "momentum_buffer" not in self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        grads = [weight.grad for weight in weights if weight.grad is not None]
        buffers = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, grads)
        updates = torch._foreach_add(grads, buffers, alpha=group["momentum"]) if group["nesterov"] else buffers
        updates = [orthogonalize_weight(update, self.iterations) for update in updates]
        # All norms in one tensor: on a GPU, one kernel per norm would take longer than the rest of the step.
        targets = torch.stack(torch._foreach_norm(weights)).clamp_min(1.0)
        is_matrix = torch.tensor([weight.ndim > 1 for weight in weights], device=targets.device)
        targets = torch.where(is_matrix, targets, 1.0)
        factors = targets / (torch.stack(torch._foreach_norm(updates)) + 1e-8) * -group["lr"]
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_mul_(updates, list(factors.unbind()))
        torch._foreach_add_(weights, updates)


def orthogonalize_weight(update: Tensor, iterations: int) -> Tensor:
    """Return `update` (out, ...) orthogonalized as a matrix (out, rest), in its memory format; vectors are copied."""
    if update.ndim < 2:
        return update.clone()
    # The order of the columns does not matter, so weights that are channels-last are used in the order of memory.
    in_order = update.permute(0, 2, 3, 1) if update.is_contiguous(memory_format=torch.channels_last) else update
    result = orthogonalize(in_order.flatten(1), iterations).view_as(in_order)
    return result if in_order is update else result.permute(0, 3, 1, 2)


def orthogonalize(matrix: Tensor, iterations: int) -> Tensor:
    """Approximate the nearest matrix with equal singular values by quintic Newton-Schulz iteration.

    (rows, columns) -> the same shape and type. A zero matrix stays zero. The iterations are polynomials of the Gram
    matrix of the smaller side, so only the first and the last product have the larger side: fewer multiplications than
    iterating on the matrix. In bfloat16 the rounding of the Gram matrix would grow with each iteration. The singular
    values are divided by the fourth root of the sum of their fourth powers, which is nearer to the largest one than the
    Frobenius norm is, and saves an iteration.
    """
    a, b, c = QUINTIC
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    gram = x @ x.T
    x = x / (gram.norm().sqrt() + 1e-12)
    gram = gram / (gram.norm() + 1e-24)
    factor: Tensor | None = None
    for iteration in range(iterations):
        step = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        step.diagonal().add_(a)
        factor = step if factor is None else step @ factor
        if iteration < iterations - 1:
            gram = step @ (step @ gram)
    result: Tensor = x if factor is None else factor @ x
    return result.T if matrix.shape[0] > matrix.shape[1] else result
