"""Where a run computes, and in what numbers."""

from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16", "float16"]


def pick_device(name: str) -> torch.device:
    """The device that `name` says; ``auto`` takes CUDA, then MPS, then the CPU. ValueError where it is absent."""
    have = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    present = [kind for kind, there in have.items() if there]
    if name == "auto":
        return torch.device(present[0])
    if name.partition(":")[0] not in present:
        raise ValueError(f"device {name!r} is not on this machine; it has {', '.join(present)}")
    return torch.device(name)


def pick_precision(name: Precision, device: torch.device) -> Precision:
    """The numbers that `name` says; ``auto`` takes bfloat16 where the device computes it natively, else float32.

    ValueError for float16 elsewhere than on CUDA: its small range needs a scaled loss, which only runs there.
    """
    if name == "auto":
        return "bfloat16" if _has_bfloat16(device) else "float32"
    if name == "float16" and device.type != "cuda":
        raise ValueError(
            f"precision float16 needs a CUDA device, and this is {device.type}; take bfloat16 or float32"
        )
    return name


def _has_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16 products, rather than a way around them."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        # PyTorch has no public name for these two yet; a version without them counts as a processor without them.
        queries = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        return any(query is not None and bool(query()) for query in queries)
    return False
