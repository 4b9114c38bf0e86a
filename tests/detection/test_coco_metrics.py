"""COCO metrics against pycocotools."""

import contextlib
import io
import math

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from googlenet.detection.data.coco import coco_annotations, coco_results
from googlenet.detection.data.dataset import Detections, Sample
from googlenet.detection.metrics import METRICS, coco_metrics

CLASSES = ("cat", "dog", "absent", "bird")


def make_sample(
    image_id: int, boxes: torch.Tensor, labels: torch.Tensor, crowd: torch.Tensor, area_fraction: float = 1
) -> Sample:
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1) * area_fraction
    pixels = torch.zeros(1, 300, 400, dtype=torch.uint8)
    return Sample(str(image_id), image_id, pixels, 300, 400, boxes, labels, crowd, areas)


def random_case(seed: int) -> tuple[list[Sample], list[Detections]]:
    """Objects of every size, crowds, images without objects or detections, duplicates, equal scores."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    samples, detections = [], []
    for image_id in range(12):
        count = 0 if image_id == 3 else int(12 * uniform(1))
        corner = uniform(count, 2) * torch.tensor([300.0, 200.0])
        boxes = torch.cat((corner, corner + 1 + uniform(count, 2) ** 2 * 100), dim=1)
        labels = torch.tensor([0, 1, 3])[torch.randint(3, (count,), generator=generator)]
        samples.append(make_sample(image_id, boxes, labels, uniform(count) < 0.15, area_fraction=0.7))
        shifted = boxes + torch.randn(count, 4, generator=generator) * 2
        candidates = torch.cat((shifted, boxes, boxes[:2], corner.repeat(1, 2) + torch.tensor([0, 0, 30.0, 30.0])))
        predicted = torch.cat((labels, labels, labels[:2], torch.randint(4, (count,), generator=generator)))
        keep = uniform(len(candidates)) < (0 if image_id == 5 else 0.7)
        keep &= (candidates[:, 2:] > candidates[:, :2]).all(dim=1)
        scores = (uniform(int(keep.sum())) * 20).round() / 20
        detections.append(Detections(candidates[keep], scores, predicted[keep]))
    return samples, detections


def evaluate_with_pycocotools(samples: list[Sample], detections: list[Detections]) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = coco_annotations(samples, CLASSES, ["x"] * len(samples))
        truth.createIndex()
        pairs = zip(samples, detections, strict=True)
        results = [row for sample, found in pairs for row in coco_results(sample.image_id, found)]
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("seed", range(8))
def test_equal_to_pycocotools(seed: int) -> None:
    samples, detections = random_case(seed)
    samples = [sample._replace(image_id=image_id) for image_id, sample in enumerate(samples, start=1)]
    expected = evaluate_with_pycocotools(samples, detections)
    metrics = coco_metrics(samples, detections, CLASSES)
    for name, value in zip(METRICS, expected.stats.tolist(), strict=True):
        assert metrics.summary.get(name, -1) == pytest.approx(value, abs=1e-6), name
    precision = expected.eval["precision"][:, :, :, 0, 2]
    np.testing.assert_allclose(np.nan_to_num(metrics.precision, nan=-1), precision, atol=1e-6)
    for k, row in enumerate(metrics.per_class):
        values = precision[:, :, k]
        ap = values[values > -1].mean() if (values > -1).any() else None
        assert row.ap == (None if ap is None else pytest.approx(ap, abs=1e-6))
        assert row.objects == sum(int(((sample.labels == k) & ~sample.crowd).sum()) for sample in samples)


def test_perfect_wrong_and_missing_detections() -> None:
    boxes, labels = torch.tensor([[10.0, 10, 50, 60], [100, 100, 220, 260]]), torch.tensor([0, 1])
    sample = make_sample(7, boxes, labels, torch.zeros(2, dtype=torch.bool))
    perfect = coco_metrics([sample], [Detections(boxes, torch.ones(2), labels)], CLASSES)
    assert (perfect.summary["ap"], perfect.summary["recall"]) == (1, 1)
    assert "ap_small" not in perfect.summary, "no small objects"
    assert [row.ap for row in perfect.per_class] == [1, 1, None, None]
    assert math.isnan(perfect.precision[0, 0, 2])
    swapped = coco_metrics([sample], [Detections(boxes, torch.ones(2), 1 - labels)], CLASSES)
    missing = coco_metrics([sample], [Detections.empty()], CLASSES)
    assert swapped.summary["ap50"] == missing.summary["ap50"] == missing.summary["recall"] == 0


def test_images_without_objects_have_no_metrics() -> None:
    sample = make_sample(1, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))
    false_positive = Detections(torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([0.9]), torch.tensor([0]))
    for detections in (false_positive, Detections.empty()):
        assert coco_metrics([sample], [detections], CLASSES).summary == {}


def test_detections_in_a_crowd_are_ignored() -> None:
    boxes = torch.tensor([[0.0, 0, 200, 200], [300, 100, 340, 140]])
    sample = make_sample(1, boxes, torch.tensor([0, 0]), torch.tensor([True, False]))
    detected = torch.tensor([[20.0, 20, 60, 60], [300, 100, 340, 140]])
    detections = Detections(detected, torch.tensor([0.9, 0.8]), torch.tensor([0, 0]))
    assert coco_metrics([sample], [detections], CLASSES).summary["ap"] == 1


def test_every_image_needs_detections() -> None:
    with pytest.raises(ValueError, match="0 images, but detections of 1"):
        coco_metrics([], [Detections.empty()], CLASSES)
