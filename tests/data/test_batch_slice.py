"""The slices of a step's batch together are the batch, whichever process computes them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from googlenet.data.augment import Augment
from googlenet.data.batch_slice import full_batch, split_step
from googlenet.data.dataset import Split
from googlenet.data.loader import BatchSpec, sample_range, steps_per_epoch, training_batch
from googlenet.data.preprocess import Preprocess


@given(count=st.integers(2, 200), num_microbatches=st.integers(1, 9), world_size=st.integers(1, 9))
def test_slices_cover_the_batch_evenly(count: int, num_microbatches: int, world_size: int) -> None:
    slices = [split_step(count, num_microbatches, rank, world_size) for rank in range(world_size)]
    assert len({len(items) for items in slices}) == 1, "every process takes part in every micro-batch"
    covered = []
    for microbatch in zip(*slices, strict=True):
        sizes = [part.num_images for part in microbatch]
        assert max(sizes) - min(sizes) <= 1
        assert sum(sizes) >= 2
        covered += [index for part in microbatch for index in range(part.start, part.stop)]
    assert covered == list(range(count))
    if count >= 2 * num_microbatches:
        assert len(slices[0]) == num_microbatches


def test_one_image_is_one_slice() -> None:
    assert split_step(1, 1, 0, 1) == [(0, 1, 1)]


@pytest.mark.parametrize(
    "augment",
    [
        Augment("random", 2, 3),
        Augment("alternating", min_crop_scale=0.4),
        Augment("random", auto_augment="rand-m7-mstd0.5", random_erasing=0.5),
        Augment(mixup=0.2, cutmix=1.0, num_classes=50),
    ],
    ids=["own", "crop", "timm", "mixup"],
)
def test_slices_of_a_batch_equal_the_full_batch(augment: Augment) -> None:
    images = torch.randint(0, 256, (50, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = Split(images, torch.arange(50), [""] * 50)
    preprocess = Preprocess(16, 3, (0.4,) * 3, (0.2,) * 3)
    for step in range(steps_per_epoch(50, 16) + 1):
        samples = sample_range(50, 16, step)
        per_rank = [split_step(samples.num_images, 2, rank, 3) for rank in range(3)]
        in_order = [part for microbatch in zip(*per_rank, strict=True) for part in microbatch]
        full, *batches = (
            training_batch(data, preprocess, augment, BatchSpec(step, 16, 5, samples, part))
            for part in (full_batch(samples.num_images), *in_order)
        )
        assert torch.equal(torch.cat([batch.images for batch in batches]), full.images)
        assert torch.equal(torch.cat([batch.labels for batch in batches]), full.labels)
