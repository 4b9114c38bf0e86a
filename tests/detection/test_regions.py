"""Regions: labels, the choice of a step's, and warping, against a picture cut by hand."""

import pytest
import torch
import torch.nn.functional as F

from googlenet.detection.boxes import iou
from googlenet.detection.regions import IGNORED, around, choose, full_batches, label, warp

pytestmark = pytest.mark.cpu

NOTHING = torch.zeros(0, 4)


def test_labels_by_overlap() -> None:
    objects = torch.tensor([[0.0, 0, 10, 10], [50, 50, 70, 70]])
    proposals = torch.tensor([[0.0, 0, 10, 5], [0, 0, 10, 4.9], [52, 50, 72, 70], [80, 80, 90, 90]])
    found = label(proposals, objects, torch.tensor([3, 1]), NOTHING, classes=7)
    assert found.labels.tolist() == [3, 1, 3, 7, 1, 7]
    assert found.overlap[2:].tolist() == pytest.approx([0.5, 0.49, 0.9 / 1.1, 0])
    assert found.truth[4].tolist() == [50, 50, 70, 70]


def test_crowds_and_empty_pictures() -> None:
    crowd = torch.tensor([[0.0, 0, 40, 40]])
    proposals = torch.tensor([[0.0, 0, 10, 10], [35, 35, 60, 60]])
    found = label(proposals, NOTHING, torch.zeros(0, dtype=torch.int64), crowd, classes=2)
    assert found.labels.tolist() == [IGNORED, 2]
    assert label(NOTHING, NOTHING, torch.zeros(0, dtype=torch.int64), crowd, 2).labels.shape == (0,)


def test_one_to_three_and_half_of_the_background_hard() -> None:
    dice = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 50 + [1] * 50 + [2] * 400 + [IGNORED] * 50)
    overlap = torch.cat((torch.full((100,), 0.7), torch.full((100,), 0.3), torch.zeros(350)))
    chosen = choose(labels, overlap, 2, 128, 0.25, 0.5, dice)
    assert len(chosen.unique()) == 128
    assert (labels[chosen] < 2).sum() == 32 and (labels[chosen] == IGNORED).sum() == 0
    background = chosen[labels[chosen] == 2]
    assert (overlap[background] == 0.3).sum() == 48
    assert not torch.equal(chosen, choose(labels, overlap, 2, 128, 0.25, 0.5, dice))


def test_others_take_the_place_of_what_is_short() -> None:
    dice = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 2 + [2] * 100)
    overlap = torch.cat((torch.ones(2), torch.full((90,), 0.3), torch.zeros(10)))
    chosen = choose(labels, overlap, 2, 64, 0.25, 0.1, dice)
    assert len(chosen) == 64 and (labels[chosen] < 2).sum() == 2 and (overlap[chosen] == 0).sum() == 10
    assert len(choose(labels[:2], overlap[:2], 2, 64, 0.25, 0.5, dice)) == 2
    assert len(choose(labels[2:12], overlap[2:12], 2, 64, 0.25, 0.5, dice)) == 10


def test_boxes_around_objects_are_of_every_overlap() -> None:
    objects = torch.tensor([[20.0, 20, 60, 50], [90, 90, 100, 100]])
    dice = torch.Generator().manual_seed(0)
    found = around(objects, 500, 100, 100, dice)
    assert found.min() >= 0 and found.max() <= 100
    met = iou(found, objects).amax(dim=1)
    assert 0.1 < (met >= 0.5).float().mean() < 0.5 and (met > 0.1).float().mean() > 0.8
    assert len(around(NOTHING, 5, 100, 100, dice)) == 0


def test_warp_is_the_cut_resized() -> None:
    picture = torch.randn(3, 60, 80, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[10.0, 20, 26, 36], [40, 4, 72, 36], [8, 8, 24, 24]])
    same, halved, _ = warp(picture, boxes, 16, 0)
    assert torch.allclose(same, picture[:, 20:36, 10:26], atol=1e-5)
    assert torch.allclose(halved, F.avg_pool2d(picture[:, 4:36, 40:72], 2), atol=1e-5)
    # With 2 pixels of context a region of 12 px fills the middle 12 of 16.
    (around,) = warp(picture, torch.tensor([[30.0, 30, 42, 42]]), 16, 2)
    assert torch.allclose(around, picture[:, 28:44, 28:44], atol=1e-5)


def test_outside_the_picture_is_the_mean() -> None:
    (corner,) = warp(torch.full((1, 40, 40), 5.0), torch.tensor([[30.0, 30, 50, 50]]), 20, 0)
    assert (corner[:, :10, :10] == 5).all()
    assert (corner[:, 12:, :] == 0).all() and (corner[:, :, 12:] == 0).all()


def test_full_batches() -> None:
    parts = [torch.arange(start, stop).view(-1, 1) for start, stop in ((0, 3), (3, 3), (3, 17), (17, 18))]
    batches = list(full_batches(parts, 5))
    assert [len(batch) for batch in batches] == [5, 5, 5, 3]
    assert torch.equal(torch.cat(batches).flatten(), torch.arange(18))
    assert list(full_batches([torch.zeros(0, 1)], 5)) == []
