"""Boxes by hand, and against torchvision's transforms."""

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from googlenet.detection import boxes as geometry

BOXES = torch.tensor([[10.0, 20, 30, 60], [-5, -5, 5, 5], [90, 40, 130, 80], [3, 4, 3, 9]])


def test_clip_and_shares() -> None:
    clipped = geometry.clip(BOXES, 70, 100)
    assert clipped.tolist() == [[10, 20, 30, 60], [0, 0, 5, 5], [90, 40, 100, 70], [3, 4, 3, 9]]
    others = torch.tensor([[0.0, 0, 20, 60], [0, 0, 1000, 1000]])
    assert geometry.overlaps(BOXES, others).tolist() == [[0.5, 1], [0.25, 0.25], [0, 1], [0, 0]]
    assert geometry.iou(BOXES[:1], others[:1]).item() == 400 / (800 + 1200 - 400)


def test_forms_and_mirrors_and_sizes_agree_with_torchvision() -> None:
    inside = BOXES[[0]]
    theirs = tv_tensors.BoundingBoxes(inside, format="XYXY", canvas_size=(70, 100))
    assert torch.equal(geometry.mirror(inside, 100), v2.functional.horizontal_flip(theirs).as_subclass(torch.Tensor))
    resized = v2.functional.resize(theirs, [140, 50]).as_subclass(torch.Tensor)
    torch.testing.assert_close(geometry.rescale(inside, (70, 100), (140, 50)), resized)
    torch.testing.assert_close(geometry.from_xywh(geometry.to_xywh(BOXES)), BOXES)
    as_xywh = v2.functional.convert_bounding_box_format(theirs, new_format="XYWH").as_subclass(torch.Tensor)
    torch.testing.assert_close(geometry.to_xywh(inside), as_xywh)


def test_boxes_of_a_class_that_overlap_vote() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 8], [50, 50, 60, 60], [7, 7, 7, 7]])
    scores, labels = torch.tensor([0.6, 0.2, 0.9, 0.5, 0.4]), torch.tensor([1, 1, 2, 1, 1])
    places = geometry.voted(torch.tensor([0, 3, 4]), boxes, scores, labels, 0.7)
    expected = torch.tensor([[0.0, 0, 10, (0.6 * 10 + 0.2 * 8) / 0.8], [50, 50, 60, 60], [7, 7, 7, 7]])
    # The box of another class has no vote; the one of no area has only its own.
    torch.testing.assert_close(places, expected)
    assert torch.equal(geometry.voted(torch.tensor([0]), boxes, scores, labels, 0.81), boxes[:1])
    nothing = torch.empty(0, 4)
    none = torch.empty(0, dtype=torch.int64)
    assert geometry.voted(none, nothing, torch.empty(0), none, 0.5).shape == (0, 4)
