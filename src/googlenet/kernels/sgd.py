"""The optimizer step in one pass over memory."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .build import load_kernels
from .ffi import call_function, pack


def is_supported_param(weight: Tensor) -> bool:
    """Return whether `layerwise_sgd` can update this tensor: float32 on the CPU, dense in memory."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and (weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last))
        and load_kernels() is not None
    )


def layerwise_sgd(
    weights: Sequence[Tensor], grads: Sequence[Tensor], momentum_buffers: Sequence[Tensor], options: Mapping[str, Any]
) -> None:
    """Update `weights` and `momentum_buffers` in place by SGD, with each gradient scaled to the norm of its weights.

    `options` contains lr, weight_decay, momentum and nesterov, as an optimizer's parameter group does. See
    `training.optim.normalized_sgd`.
    """
    # The kernel reads memory in order, so all tensors need the strides of the weight.
    ordered = [
        [other if other.stride() == weight.stride() else torch.empty_like(weight).copy_(other) for other in others]
        for weight, *others in zip(weights, grads, momentum_buffers, strict=True)
    ]
    rows = [
        (weight.numel(), int(weight.ndim > 1), weight, grad, buffer)
        for weight, (grad, buffer) in zip(weights, ordered, strict=True)
    ]
    numbers = (float(options[key]) for key in ("lr", "weight_decay", "momentum"))
    call_function("layerwise_sgd", len(rows), pack(rows), *numbers, int(options["nesterov"]))
    for buffer, (_, updated) in zip(momentum_buffers, ordered, strict=True):
        if buffer is not updated:
            buffer.copy_(updated)
