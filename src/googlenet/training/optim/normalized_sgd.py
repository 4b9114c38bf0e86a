"""SGD with layer-wise normalized gradients."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ... import kernels


class LayerwiseNormalizedSGD(torch.optim.SGD):
    """SGD with momentum on gradients scaled to the norm of their weights; its state is that of `torch.optim.SGD`.

    LARS-like (You et al., "Large Batch Training of Convolutional Networks", 2017), but not LARS: there is no trust
    coefficient, norms below 1 count as 1, biases and normalization are scaled to norm 1, and weight decay is not part
    of the ratio. The native kernels update each tensor in one pass; without them gradients are scaled in place and
    PyTorch's step follows.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step; see `torch.optim.Optimizer.step`."""
        if closure is not None:
            raise ValueError("closures are not supported: this optimizer evaluates the loss once per step")
        updated = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not all(kernels.is_supported_param(weight) for weight, _ in updated):
            scale_to_weight_norm(weight for weight, _ in updated)
            super().step()
            return
        for weight, group in updated:
            state = self.state[weight]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(weight)
            kernels.layerwise_sgd(weight, weight.grad, state["momentum_buffer"], group)


@torch.no_grad()
def scale_to_weight_norm(parameters: Iterable[nn.Parameter]) -> None:
    """Scale each gradient in place to the norm of its weights: every layer changes by the same relative amount.

    Without residual connections the gradient norms of 22 layers differ widely. Norms below 1 count as 1; biases and
    normalization are scaled to norm 1.
    """
    updated = [(p, p.grad) for p in parameters if p.grad is not None]
    # All norms in one tensor: on a GPU, one kernel per norm would take longer than the rest of the step.
    if matrices := [(weight, grad) for weight, grad in updated if weight.ndim > 1]:
        norms = torch.stack(torch._foreach_norm([weight for weight, _ in matrices])).clamp_min(1.0)
        _scale([grad for _, grad in matrices], norms)
    if rest := [grad for weight, grad in updated if weight.ndim <= 1]:
        _scale(rest, torch.ones((), device=rest[0].device))


def _scale(grads: list[Tensor], norms: Tensor) -> None:
    """Scale `grads` in place to the given norms: one for each, or one for all."""
    current = torch.stack(torch._foreach_norm(grads))
    torch._foreach_mul_(grads, list((norms / (current + 1e-8)).unbind()))
