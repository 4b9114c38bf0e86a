"""Calls of the kernels in C."""

import ctypes
import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .build import load_kernels

Argument = Tensor | int | float | ctypes.Array[ctypes.c_long]


def call(kernel: str, dtype: torch.dtype, *arguments: Argument) -> None:
    """Call a kernel for maps of `dtype`; see `call_function`."""
    call_function(f"{kernel}_{str(dtype)[6:]}", *arguments)


def call_function(name: str, *arguments: Argument) -> None:
    """Call a function in C, which takes numbers as long and double, and arrays of `pack`.

    A tensor is passed as the address of its first element, so that it can be a view of some columns of a matrix.
    """
    values = [argument.data_ptr() if isinstance(argument, Tensor) else argument for argument in arguments]
    library = load_kernels()
    assert library is not None
    _function(library, name, tuple(map(type, values)))(*values)


@functools.cache
def _function(library: ctypes.CDLL, name: str, types: tuple[type, ...]) -> Callable[..., None]:
    """Return a function of the library that takes arguments of these types."""
    # Not `library.name`, which is one object for all types of arguments.
    function = library[name]
    # On the systems that the kernels are compiled for, a pointer is passed like a long.
    known: dict[type, type] = {int: ctypes.c_long, float: ctypes.c_double}
    function.argtypes = [known.get(type_, ctypes.c_void_p) for type_ in types]
    function.restype = None
    return function


def pack(rows: Sequence[Sequence[Tensor | int]]) -> ctypes.Array[ctypes.c_long]:
    """Return an array of structures in C of which all members are pointers or long."""
    values = [value.data_ptr() if isinstance(value, Tensor) else value for row in rows for value in row]
    return (ctypes.c_long * len(values))(*values)
