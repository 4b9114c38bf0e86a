"""One of several processes that add images to `googlenet.FID`: each gets the value of one process with all images."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import googlenet as package

BATCH_SIZE, SIDE = 8, 32
generator = torch.Generator().manual_seed(0)
weight = torch.randn(12, 3, 5, 5, generator=generator)
# The third process has no generated images, and the last batch of real ones is smaller.
images = {
    "real": torch.randint(0, 256, (43, 3, 20, 24), dtype=torch.uint8, generator=generator),
    "fake": torch.randint(0, 200, (16, 3, 20, 24), dtype=torch.uint8, generator=generator),
}


def features(pixels: Tensor) -> Tensor:
    return torch.nn.functional.conv2d(pixels / 255, weight, stride=2).relu().mean((2, 3))


features.side = SIDE  # type: ignore[attr-defined]


def fid_of_batches(rank: int, world_size: int) -> package.FID:
    """Add every `world_size`-th batch."""
    metric = package.FID(features=features)
    for side, tensor in images.items():
        for batch in tensor.split(BATCH_SIZE)[rank::world_size]:
            metric.update(batch, real=side == "real")
    return metric


expected = fid_of_batches(0, 1).compute()
dist.init_process_group("gloo")
metric = fid_of_batches(dist.get_rank(), dist.get_world_size())
assert ("fake" in metric.moments) == (dist.get_rank() < 2)
# Sums in float64 in another order.
assert metric.compute() == pytest.approx(expected, rel=1e-9)
dist.destroy_process_group()
