"""One tensor's update in one pass over memory."""

import ctypes

import torch
from torch import Tensor

from .build import kernels


def updatable(weight: Tensor) -> bool:
    """Whether `layerwise_sgd` can change this tensor: float32 on the CPU, without gaps in memory."""
    return (
        kernels() is not None
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and (weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last))
    )


def layerwise_sgd(
    weight: Tensor, grad: Tensor, momentum: Tensor, *, rate: float, decay: float, friction: float, nesterov: bool
) -> None:
    """SGD with momentum on a gradient scaled to the norm of its weights (see `training.layerwise`), in place."""
    # The kernel reads memory in order, so all three must lie in the weight's.
    grad, buffer = (
        t if t.stride() == weight.stride() else torch.empty_like(weight).copy_(t) for t in (grad, momentum)
    )
    library = kernels()
    assert library is not None
    library.layerwise_sgd(
        ctypes.c_long(weight.numel()), ctypes.c_long(weight.ndim > 1),
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (weight, grad, buffer)),
        ctypes.c_float(rate), ctypes.c_float(decay), ctypes.c_float(friction), ctypes.c_long(nesterov),
    )  # fmt: skip
    if buffer is not momentum:
        momentum.copy_(buffer)
