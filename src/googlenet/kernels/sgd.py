"""The optimizer step of one tensor in one pass over memory."""

import ctypes
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .build import load_kernels


def is_supported_param(weight: Tensor) -> bool:
    """Return whether `layerwise_sgd` can update this tensor: float32 on the CPU, dense in memory."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and (weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last))
        and load_kernels() is not None
    )


def layerwise_sgd(weight: Tensor, grad: Tensor, momentum_buffer: Tensor, options: Mapping[str, Any]) -> None:
    """Update `weight` and `momentum_buffer` in place by SGD, with `grad` scaled to the norm of the weights.

    `options` contains lr, weight_decay, momentum and nesterov, as an optimizer's parameter group does. See
    `training.optim.normalized_sgd`.
    """
    # The kernel reads memory in order, so all tensors need the strides of the weight.
    grad, buffer = (
        t if t.stride() == weight.stride() else torch.empty_like(weight).copy_(t) for t in (grad, momentum_buffer)
    )
    library = load_kernels()
    assert library is not None
    library.layerwise_sgd(
        ctypes.c_long(weight.numel()),
        ctypes.c_long(weight.ndim > 1),
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (weight, grad, buffer)),
        *(ctypes.c_float(options[key]) for key in ("lr", "weight_decay", "momentum")),
        ctypes.c_long(options["nesterov"]),
    )
    if buffer is not momentum_buffer:
        momentum_buffer.copy_(buffer)
