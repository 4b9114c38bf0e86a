"""A device without float64, as Apple's MPS, in place of the machine's own.

PyTorch's meta device stands for it: its tensors have no values. Copies to the CPU get values of a fixed generator, and
float64 raises the error of MPS.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from googlenet import devices

DEVICE = torch.device("meta")
aten = torch.ops.aten
COPIES = {getattr(aten.to, name) for name in aten.to.overloads()}


class WithoutFloat64(TorchDispatchMode):
    """Raise TypeError for float64 tensors on the device, and give values to copies from it."""

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.copies = torch.Generator().manual_seed(0), 0

    def values(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        self.copies += 1
        if not tensor.is_floating_point():
            return torch.ones(tensor.shape, dtype=dtype)
        return torch.rand(tensor.shape, generator=self.generator).to(dtype)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in COPIES:  # in inference mode these are not decomposed before
            with self:
                return func.decompose(*args, **kwargs)
        if func is aten._to_copy.default and args[0].device == DEVICE:
            if kwargs.get("dtype") == torch.float64 and kwargs.get("device", DEVICE) == DEVICE:
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support it")
            if kwargs.get("device", DEVICE) != DEVICE:
                return self.values(args[0], kwargs.get("dtype") or args[0].dtype)
        if func is aten.copy_.default and args[1].device == DEVICE and args[0].device != DEVICE:
            return args[0].copy_(self.values(args[1], args[0].dtype))
        if func is aten._local_scalar_dense.default and args[0].device == DEVICE:
            return self.values(args[0], args[0].dtype).item()
        result = func(*args, **kwargs)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.device == DEVICE and tensor.dtype == torch.float64:
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support it")
        return result


@contextmanager
def fake_device() -> Iterator[WithoutFloat64]:
    """Let `pick_device` select the device, in every module."""
    original = devices.pick_device

    def pick_device(name: str) -> torch.device:
        return DEVICE

    def modules() -> list[ModuleType]:
        found = [module for name, module in sys.modules.items() if name.startswith("googlenet.")]
        return [module for module in found if hasattr(module, "pick_device")]

    for module in modules():
        module.pick_device = pick_device  # type: ignore[attr-defined]
    try:
        with WithoutFloat64() as mode:
            yield mode
    finally:
        # Modules that were imported meanwhile have the replacement, too.
        for module in modules():
            if module.pick_device is pick_device:
                module.pick_device = original  # type: ignore[attr-defined]
