"""Random numbers of single images: functions of seed, epoch and index, so that every process draws the same ones."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
# Each kind of augmentation draws its own numbers.
VIEW, VERTICAL_FLIP, ROTATION, COLOR = range(4)


def image_seeds(indices: Tensor, epoch: int, seed: int, stream: int) -> NDArray[np.uint64]:
    """Return a seed for each image of int64 `indices` (n,) in an epoch: uint64 (n,).

    The seeds are a hash with the mixing function of SplitMix64 (Steele, Lea & Flood, "Fast Splittable Pseudorandom
    Number Generators", 2014).
    """
    state = np.zeros(1, np.uint64)
    for value in (seed, epoch, stream):
        state = _mix(state * np.uint64(GOLDEN) + np.uint64(value + 1))
    return _mix(state + (indices.cpu().numpy().astype(np.uint64) + np.uint64(1)) * np.uint64(GOLDEN))


def image_uniform(indices: Tensor, epoch: int, seed: int, stream: int, count: int = 1) -> Tensor:
    """Return `count` uniform numbers in [0, 1) for each image: float32 (n, count)."""
    steps = np.arange(count, dtype=np.uint64) * np.uint64(GOLDEN)
    bits = _mix(image_seeds(indices, epoch, seed, stream)[:, None] + steps)
    return torch.from_numpy((bits >> np.uint64(40)).astype(np.float32) / 2.0**24)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
