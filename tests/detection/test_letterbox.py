"""Letterboxed images against PyTorch's own resizing, at extreme sizes, and in training batches."""

import pytest
import torch
import torch.nn.functional as F

from googlenet.data.batch_slice import BatchSlice, full_batch
from googlenet.data.loader import BatchSpec, sample_range
from googlenet.data.preprocess import Preprocess
from googlenet.detection.data.dataset import DetectionBatch, Sample, training_images
from googlenet.detection.letterbox import letterbox_image, padded_side, scaled_size

pytestmark = pytest.mark.cpu

UNNORMALIZED = Preprocess(160, 1, (0.0,), (1.0,))


@pytest.mark.parametrize("size", [(160, 160), (40, 400), (161, 97), (64, 50), (1, 1), (300, 20), (131, 190)])
@pytest.mark.parametrize("max_side", [160, 75])
def test_resizing_equals_pytorch(size: tuple[int, int], max_side: int) -> None:
    pixels = torch.randint(256, (1, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    padded, (height, width) = letterbox_image(pixels, UNNORMALIZED, max_side, min_side=1)
    assert (height, width) == scaled_size(*size, max_side)
    expected = F.interpolate(pixels[None].float(), (height, width), mode="bilinear", antialias=True)[0] / 255
    torch.testing.assert_close(padded[:, :height, :width], expected, atol=2e-5, rtol=0)
    assert padded.shape[1:] == (padded_side(max_side, 1),) * 2
    assert (padded[:, height:] == 0).all() and (padded[:, :, width:] == 0).all()


def test_padding_is_the_mean_pixel() -> None:
    preprocess = Preprocess(64, 1, (0.4,), (0.2,))
    padded, size = letterbox_image(torch.zeros(1, 32, 64, dtype=torch.uint8), preprocess, 64, min_side=75)
    assert padded.shape == (1, 96, 96) and size == (32, 64)
    torch.testing.assert_close(padded[:, :32, :64], torch.full((1, 32, 64), -2.0))
    assert (padded[:, 32:] == 0).all() and (padded[:, :, 64:] == 0).all()


def test_sizes_by_hand() -> None:
    assert scaled_size(40, 4000, 160) == (2, 160)
    assert scaled_size(4000, 1, 100) == (100, 1)
    assert (padded_side(160, 1), padded_side(161, 1), padded_side(64, 75)) == (160, 192, 96)


def make_samples(count: int) -> list[Sample]:
    samples = []
    for index in range(count):
        pixels = torch.full((1, 40, 60 + index), index, dtype=torch.uint8)
        boxes, label = torch.tensor([[10.0, 5, 30 + index, 25]]), torch.tensor([index % 3])
        samples.append(
            Sample(
                str(index), index, pixels, 40, 60 + index, boxes, label, torch.tensor([False]), torch.tensor([400.0])
            )
        )
    return samples


def test_batches_are_functions_of_seed_and_step() -> None:
    samples = make_samples(20)

    def make_batch(part: BatchSlice) -> DetectionBatch:
        spec = BatchSpec(step=1, size=96, seed=3, samples=sample_range(20, 8, 1), part=part)
        return training_images(samples, UNNORMALIZED, spec, flip=True, min_side=1)

    full, repeated = make_batch(full_batch(8)), make_batch(full_batch(8))
    assert torch.equal(full.images, repeated.images)
    part = make_batch(BatchSlice(3, 6, 8))
    assert torch.equal(part.images, full.images[3:6]), "augmentation does not depend on the slice"
    assert (part.sizes, part.num_images) == (full.sizes[3:6], 3)
    assert make_batch(BatchSlice(8, 8, 8)).num_images == 0
    left_edges = [target.boxes[0, 0].item() for target in full.targets]
    assert len({round(left) for left in left_edges}) > 1, "some images are flipped, others not"
    for (height, width), target in zip(full.sizes, full.targets, strict=True):
        assert width == 96 and (target.boxes[:, 2] <= width).all() and (target.boxes[:, 3] <= height).all()
