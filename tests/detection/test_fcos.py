"""The FCOS head: assignment of objects to locations, losses, and selection of detections."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from googlenet.config.schema import DetectionConfig
from googlenet.detection.data.dataset import DetectionBatch, Target
from googlenet.detection.fpn import FeatureLevel, locations
from googlenet.detection.heads.fcos import FCOSHead, assign, postprocess

pytestmark = pytest.mark.cpu

CONFIG = DetectionConfig(neck_channels=32, head_convs=1)


def make_target(boxes: list[list[float]], labels: list[int] | None = None, crowd: list[bool] | None = None) -> Target:
    return Target(
        torch.tensor(boxes).view(-1, 4),
        torch.tensor(labels or [0] * len(boxes), dtype=torch.int64),
        torch.tensor(crowd or [False] * len(boxes), dtype=torch.bool),
    )


def make_levels(height: int, width: int, channels: int = 32) -> list[FeatureLevel]:
    return [FeatureLevel(torch.zeros(1, channels, height // stride, width // stride), stride) for stride in (8, 16, 32)]


def all_locations(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the locations of all levels, and their strides."""
    points = [locations(level, height, width) for level in make_levels(height, width)]
    strides = [torch.full((len(level),), float(stride)) for level, stride in zip(points, (8, 16, 32), strict=True)]
    return torch.cat(points), torch.cat(strides)


def test_assignment_by_hand() -> None:
    points, strides = all_locations(128, 128)
    boxes = [[16.0, 16, 48, 48], [0, 0, 120, 120], [70, 70, 86, 86], [64.2, 64.2, 64.8, 64.8]]
    assignment = assign(points, strides, make_target(boxes), regress_range=4.0)
    for (x, y), stride, gt_index in zip(points.tolist(), strides.tolist(), assignment.gt_index.tolist(), strict=True):
        candidates = []
        for index, (x1, y1, x2, y2) in enumerate(boxes):
            distances = (x - x1, y - y1, x2 - x, y2 - y)
            near_center = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2)) < 1.5 * stride
            low, high = (0 if stride == 8 else 2 * stride), (math.inf if stride == 32 else 4 * stride)
            if min(distances) > 0 and near_center and low <= max(distances) <= high:
                candidates.append(((x2 - x1) * (y2 - y1), index))
        assert gt_index == (min(candidates)[1] if candidates else -1)
    assert {0, 1, 2} <= set(assignment.gt_index.tolist())
    assert assignment.valid.all()


def test_objects_of_all_but_tiny_sizes_have_a_location() -> None:
    points, strides = all_locations(160, 160)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        side = 12 + 130 * torch.rand(1, generator=generator).item()
        x, y = ((160 - side) * torch.rand(2, generator=generator)).tolist()
        assignment = assign(points, strides, make_target([[x, y, x + side, y + side]]), regress_range=4.0)
        assert (assignment.gt_index == 0).any(), f"a box of {side:.0f} pixels"


def test_background_in_a_crowd_is_not_valid() -> None:
    points, strides = all_locations(64, 64)
    target = make_target([[0.0, 0, 64, 64], [8, 8, 40, 40]], crowd=[True, False])
    assignment = assign(points, strides, target, 4.0)
    assert set(assignment.gt_index.tolist()) == {-1, 1}
    assert (assignment.valid == (assignment.gt_index == 1)).all()


def test_loss_without_objects_is_the_focal_loss() -> None:
    torch.manual_seed(0)
    head = FCOSHead(CONFIG, num_classes=5, strides=(8, 16, 32))
    levels = make_levels(64, 64)
    result = head.losses(levels, DetectionBatch(torch.zeros(1, 1, 64, 64), ((64, 64),), (make_target([]),)))
    logits = head(levels, 64, 64).logits
    expected = sigmoid_focal_loss(logits, torch.zeros_like(logits), 0.25, 2.0, reduction="sum")
    torch.testing.assert_close(result.loss, expected)
    assert result.correct == 1
    result.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


def test_perfect_output_has_a_small_loss() -> None:
    """With outputs equal to the targets only the centerness loss remains, whose targets are not 0 or 1."""
    head = FCOSHead(DetectionConfig(neck_channels=32, head_convs=0), num_classes=2, strides=(8, 16, 32))
    levels = make_levels(64, 64)
    target = make_target([[8.0, 8, 40, 40], [30, 20, 60, 62]], [0, 1])
    batch = DetectionBatch(torch.zeros(1, 1, 64, 64), ((64, 64),), (target,))
    output = head(levels, 64, 64)
    gt_index = assign(output.locations, output.strides, target, 4.0).gt_index
    positive = gt_index >= 0
    boxes, logits = output.boxes.clone(), torch.full_like(output.logits, -12.0)
    boxes[0, positive] = target.boxes[gt_index[positive]]
    logits[0, positive.nonzero().flatten(), target.labels[gt_index[positive]]] = 12.0
    head.forward = lambda *_: output._replace(boxes=boxes, logits=logits)  # type: ignore[method-assign, assignment]
    perfect = head.losses(levels, batch)
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits
    half = torch.full((int(positive.sum()),), 0.5)
    assert perfect.correct == 1
    assert perfect.loss < cross_entropy(output.centerness[0, positive], half) + 0.1
    wrong = output._replace(boxes=boxes, logits=logits.flip(2))
    head.forward = lambda *_: wrong  # type: ignore[method-assign, assignment]
    assert head.losses(levels, batch).loss > 5 * perfect.loss
    assert head.losses(levels, batch).correct == 0


def test_postprocess_keeps_the_best_box_of_each_class() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60], [5, 5, 5, 9]])
    scores = torch.tensor([[0.9, 0.0], [0.8, 0.7], [0.04, 0.6], [0.99, 0.0]])
    detections = postprocess(boxes, scores, DetectionConfig(max_detections=10))
    assert detections.scores.tolist() == pytest.approx([0.9, 0.7, 0.6])
    assert detections.labels.tolist() == [0, 1, 1]
    assert len(postprocess(boxes, scores, DetectionConfig(max_detections=1)).boxes) == 1
    assert len(postprocess(boxes, scores * 0, DetectionConfig(max_detections=1)).boxes) == 0
