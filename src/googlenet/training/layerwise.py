"""SGD in which every layer moves by the same share of itself."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ..models import native


class LayerwiseSGD(torch.optim.SGD):
    """SGD with momentum on gradients scaled by `scale_to_weights`; its state is that of `torch.optim.SGD`.

    On a CPU each tensor is updated in one pass; elsewhere, and without a C compiler, the gradients are scaled in
    place and PyTorch's step is taken.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; see `torch.optim.Optimizer.step`."""
        if closure is not None:
            raise ValueError("a closure is for optimisers that ask for the loss again; this one does not")
        moved = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not all(native.updatable(weight) for weight, _ in moved):
            scale_to_weights(weight for weight, _ in moved)
            super().step()
            return
        for weight, group in moved:
            state = self.state[weight]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(weight)
            native.layerwise_sgd(
                weight, weight.grad, state["momentum_buffer"], rate=float(group["lr"]), decay=group["weight_decay"],
                friction=group["momentum"], nesterov=group["nesterov"],
            )  # fmt: skip


@torch.no_grad()
def scale_to_weights(parameters: Iterable[nn.Parameter]) -> None:
    """Scale each gradient, in place, to the norm of the weights that it changes.

    After "Large Batch Training of Convolutional Networks" (You et al., 2017), with the weights' norm taken as 1 at
    least, and as 1 for biases and normalisations. A network of 22 layers without shortcuts has gradients of very
    different sizes along its depth; so each layer moves by the same share of itself.
    """
    moved = [(p, p.grad) for p in parameters if p.grad is not None]
    # One tensor for the norms of all: on a GPU a kernel for each would take longer than the rest of the step.
    if matrices := [(weight, grad) for weight, grad in moved if weight.ndim > 1]:
        lengths = torch.stack(torch._foreach_norm([weight for weight, _ in matrices])).clamp_min(1.0)
        _scale([grad for _, grad in matrices], lengths)
    if rest := [grad for weight, grad in moved if weight.ndim <= 1]:
        _scale(rest, torch.ones((), device=rest[0].device))


def _scale(grads: list[Tensor], lengths: Tensor) -> None:
    """Give `grads`, in place, these norms: one for each, or one for all."""
    sizes = torch.stack(torch._foreach_norm(grads))
    torch._foreach_mul_(grads, list((lengths / (sizes + 1e-8)).unbind()))
