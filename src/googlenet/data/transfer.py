"""From the processor's memory to a device."""

import torch
from torch import Tensor


def send(values: Tensor, device: torch.device) -> Tensor:
    """`values` on `device`. A CUDA device is not waited for: the copy takes its turn among the device's work."""
    return values.to(device, non_blocking=device.type == "cuda")
