"""SGD with layer-wise normalized gradients."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from ... import kernels


class LayerwiseNormalizedSGD(torch.optim.SGD):
    """SGD with momentum on gradients scaled to the norm of their weights; its state is that of `torch.optim.SGD`.

    LARS-like (You et al., "Large Batch Training of Convolutional Networks", 2017), but not LARS: there is no trust
    coefficient, norms below 1 count as 1, biases and normalization are scaled to norm 1, and weight decay is not part
    of the ratio. The native kernels update all tensors in one pass; without them gradients are scaled in place and
    PyTorch's SGD follows.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step; see `torch.optim.Optimizer.step`."""
        if closure is not None:
            raise ValueError("closures are not supported: this optimizer evaluates the loss once per step")
        groups = [(g, [p for p in g["params"] if p.grad is not None]) for g in self.param_groups]
        updated = [weight for _, weights in groups for weight in weights]
        native = all(kernels.is_supported_param(weight) for weight in updated)
        if not native:
            scale_to_weight_norm(updated)
        for group, weights in groups:
            for weight in weights:
                if self.state[weight].get("momentum_buffer") is None:
                    self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
            buffers = [self.state[weight]["momentum_buffer"] for weight in weights]
            grads = [weight.grad for weight in weights]
            if native:
                kernels.layerwise_sgd(weights, grads, buffers, group)
            else:  # as a function: the step of the superclass would call the optimizer's hooks a second time
                options = {key: group[key] for key in ("weight_decay", "momentum", "lr", "nesterov")}
                sgd(weights, grads, buffers, **options, dampening=0.0, maximize=False)


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
