"""Calls of the kernels in C."""

import ctypes

import torch
from torch import Tensor

from .build import load_kernels


def call(kernel: str, dtype: torch.dtype, *arguments: Tensor | int) -> None:
    """Call a kernel for maps of `dtype`.

    A tensor is passed as the address of its first element, so that it can be a view of some columns of a matrix.
    """
    library = load_kernels()
    assert library is not None
    getattr(library, f"{kernel}_{str(dtype).removeprefix('torch.')}")(
        *(ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else ctypes.c_long(a) for a in arguments)
    )
