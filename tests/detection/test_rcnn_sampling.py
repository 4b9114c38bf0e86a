"""R-CNN regions: labels, sampling, and crops against those by hand."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import box_iou

from googlenet.config.schema import RegionsConfig
from googlenet.detection.rcnn.network import crop_and_resize, rebatch
from googlenet.detection.rcnn.task import IGNORED, LabeledRegions, assign_labels, jitter_boxes, sample_regions

pytestmark = pytest.mark.cpu

NO_BOXES, NO_LABELS = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)


def sample(
    labels: torch.Tensor, iou: torch.Tensor, count: int, positive: float, hard: float, seed: int
) -> torch.Tensor:
    """Sample regions with these labels (2 is background) and IoUs."""
    boxes = torch.zeros(len(labels), 4)
    config = RegionsConfig(positive_fraction=positive, hard_negative_fraction=hard)
    generator = torch.Generator().manual_seed(seed)
    return sample_regions(LabeledRegions(boxes, labels, boxes, iou), 2, count, config, generator)


def test_labels_by_iou() -> None:
    objects = torch.tensor([[0.0, 0, 10, 10], [50, 50, 70, 70]])
    proposals = torch.tensor([[0.0, 0, 10, 5], [0, 0, 10, 4.9], [52, 50, 72, 70], [80, 80, 90, 90]])
    regions = assign_labels(proposals, objects, torch.tensor([3, 1]), NO_BOXES, background=7)
    assert regions.labels.tolist() == [3, 1, 3, 7, 1, 7]
    assert regions.iou[2:].tolist() == pytest.approx([0.5, 0.49, 0.9 / 1.1, 0])
    assert regions.gt_boxes[4].tolist() == [50, 50, 70, 70]


def test_crowds_and_empty_images() -> None:
    crowd = torch.tensor([[0.0, 0, 40, 40]])
    proposals = torch.tensor([[0.0, 0, 10, 10], [35, 35, 60, 60]])
    regions = assign_labels(proposals, NO_BOXES, NO_LABELS, crowd, background=2)
    assert regions.labels.tolist() == [IGNORED, 2]
    assert assign_labels(NO_BOXES, NO_BOXES, NO_LABELS, crowd, 2).labels.shape == (0,)


def test_fractions_of_positives_and_hard_negatives() -> None:
    labels = torch.tensor([0] * 50 + [1] * 50 + [2] * 400 + [IGNORED] * 50)
    iou = torch.cat((torch.full((100,), 0.7), torch.full((100,), 0.3), torch.zeros(350)))
    chosen = sample(labels, iou, 128, 0.25, 0.5, seed=0)
    assert len(chosen.unique()) == 128
    assert (labels[chosen] < 2).sum() == 32 and (labels[chosen] == IGNORED).sum() == 0
    background = chosen[labels[chosen] == 2]
    assert (iou[background] == 0.3).sum() == 48
    assert not torch.equal(chosen, sample(labels, iou, 128, 0.25, 0.5, seed=1))


def test_missing_regions_of_a_kind_are_replaced() -> None:
    labels = torch.tensor([0] * 2 + [2] * 100)
    iou = torch.cat((torch.ones(2), torch.full((90,), 0.3), torch.zeros(10)))
    chosen = sample(labels, iou, 64, 0.25, 0.1, seed=0)
    assert len(chosen) == 64 and (labels[chosen] < 2).sum() == 2 and (iou[chosen] == 0).sum() == 10
    assert len(sample(labels[:2], iou[:2], 64, 0.25, 0.5, seed=0)) == 2
    assert len(sample(labels[2:12], iou[2:12], 64, 0.25, 0.5, seed=0)) == 10


def test_jittered_boxes_have_various_ious() -> None:
    objects = torch.tensor([[20.0, 20, 60, 50], [90, 90, 100, 100]])
    generator = torch.Generator().manual_seed(0)
    boxes = jitter_boxes(objects, 500, 100, 100, generator)
    assert boxes.min() >= 0 and boxes.max() <= 100
    iou = box_iou(boxes, objects).amax(dim=1)
    assert 0.1 < (iou >= 0.5).float().mean() < 0.5 and (iou > 0.1).float().mean() > 0.8
    assert len(jitter_boxes(NO_BOXES, 5, 100, 100, generator)) == 0


def test_crop_and_resize_by_hand() -> None:
    image = torch.randn(3, 60, 80, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[10.0, 20, 26, 36], [40, 4, 72, 36], [8, 8, 24, 24]])
    unchanged, halved, _ = crop_and_resize(image, boxes, 16, 0)
    assert torch.allclose(unchanged, image[:, 20:36, 10:26], atol=1e-5)
    assert torch.allclose(halved, F.avg_pool2d(image[:, 4:36, 40:72], 2), atol=1e-5)
    # With 2 pixels of padding a region of 12 pixels fills the middle 12 of 16.
    (padded,) = crop_and_resize(image, torch.tensor([[30.0, 30, 42, 42]]), 16, 2)
    assert torch.allclose(padded, image[:, 28:44, 28:44], atol=1e-5)


def test_pixels_outside_the_image_are_the_mean() -> None:
    (corner,) = crop_and_resize(torch.full((1, 40, 40), 5.0), torch.tensor([[30.0, 30, 50, 50]]), 20, 0)
    assert (corner[:, :10, :10] == 5).all()
    assert (corner[:, 12:, :] == 0).all() and (corner[:, :, 12:] == 0).all()


def test_rebatch() -> None:
    chunks = [torch.arange(start, stop).view(-1, 1) for start, stop in ((0, 3), (3, 3), (3, 17), (17, 18))]
    batches = list(rebatch(chunks, 5))
    assert [len(batch) for batch in batches] == [5, 5, 5, 3]
    assert torch.equal(torch.cat(batches).flatten(), torch.arange(18))
    assert list(rebatch([torch.zeros(0, 1)], 5)) == []
