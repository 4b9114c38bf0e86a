"""Box operations against results by hand and torchvision's transforms."""

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from googlenet.detection.boxes import batched_nms, box_voting, hflip_boxes, intersection_over_area, rescale

BOXES = torch.tensor([[10.0, 20, 30, 60], [-5, -5, 5, 5], [90, 40, 130, 80], [3, 4, 3, 9]])


def test_intersection_over_area() -> None:
    others = torch.tensor([[0.0, 0, 20, 60], [0, 0, 1000, 1000]])
    assert intersection_over_area(BOXES, others).tolist() == [[0.5, 1], [0.25, 0.25], [0, 1], [0, 0]]


def test_flip_and_rescale_agree_with_torchvision() -> None:
    boxes = BOXES[[0]]
    reference = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(70, 100))
    flipped = v2.functional.horizontal_flip(reference).as_subclass(torch.Tensor)
    assert torch.equal(hflip_boxes(boxes, 100), flipped)
    resized = v2.functional.resize(reference, [140, 50]).as_subclass(torch.Tensor)
    torch.testing.assert_close(rescale(boxes, (70, 100), (140, 50)), resized)


def test_nms_suppresses_within_a_class_only() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9]])
    kept = batched_nms(boxes, torch.tensor([0.5, 0.9, 0.7]), torch.tensor([0, 0, 1]), 0.5)
    assert kept.tolist() == [1, 2]
    empty = torch.zeros(0)
    assert batched_nms(torch.zeros(0, 4), empty, empty.long(), 0.5).shape == (0,)


def test_box_voting_averages_overlapping_boxes_of_a_class() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 8], [50, 50, 60, 60], [7, 7, 7, 7]])
    scores, labels = torch.tensor([0.6, 0.2, 0.9, 0.5, 0.4]), torch.tensor([1, 1, 2, 1, 1])
    averaged = box_voting(torch.tensor([0, 3, 4]), boxes, scores, labels, 0.7)
    # The box of another class has no vote; the empty box has only its own.
    expected = torch.tensor([[0.0, 0, 10, (0.6 * 10 + 0.2 * 8) / 0.8], [50, 50, 60, 60], [7, 7, 7, 7]])
    torch.testing.assert_close(averaged, expected)
    assert torch.equal(box_voting(torch.tensor([0]), boxes, scores, labels, 0.81), boxes[:1])
    empty = torch.empty(0)
    assert box_voting(empty.long(), torch.empty(0, 4), empty, empty.long(), 0.5).shape == (0, 4)
