"""How a kernel is called."""

import ctypes

import torch
from torch import Tensor

from .build import kernels


def call(kernel: str, dtype: torch.dtype, *arguments: Tensor | int) -> None:
    """Call the kernel for maps of `dtype`.

    A matrix is handed over as its first element's address, whichever columns it is a view of.
    """
    library = kernels()
    assert library is not None
    getattr(library, f"{kernel}_{str(dtype).removeprefix('torch.')}")(
        *(ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else ctypes.c_long(a) for a in arguments)
    )
