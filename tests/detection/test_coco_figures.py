"""COCO's figures, against pycocotools itself."""

import contextlib
import io
import math

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from googlenet.detection.coco import results, truth_document
from googlenet.detection.dataset import Detections, Picture
from googlenet.detection.metrics import SUMMARY, score

CLASSES = ("cat", "dog", "nothing here", "bird")
NAMES = [name for name, *_ in SUMMARY]


def picture(number: int, boxes: torch.Tensor, labels: torch.Tensor, crowd: torch.Tensor, share: float = 1) -> Picture:
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1) * share
    pixels = torch.zeros(1, 300, 400, dtype=torch.uint8)
    return Picture(str(number), number, pixels, 300, 400, boxes, labels, crowd, areas)


def random_case(seed: int) -> tuple[list[Picture], list[Detections]]:
    """Objects of every size, crowds, pictures with nothing asked for or nothing found, duplicates, equal scores."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    pictures, found = [], []
    for number in range(12):
        count = 0 if number == 3 else int(12 * uniform(1))
        corner = uniform(count, 2) * torch.tensor([300.0, 200.0])
        boxes = torch.cat((corner, corner + 1 + uniform(count, 2) ** 2 * 100), dim=1)
        labels = torch.tensor([0, 1, 3])[torch.randint(3, (count,), generator=generator)]
        pictures.append(picture(number, boxes, labels, uniform(count) < 0.15, share=0.7))
        shifted = boxes + torch.randn(count, 4, generator=generator) * 2
        candidates = torch.cat((shifted, boxes, boxes[:2], corner.repeat(1, 2) + torch.tensor([0, 0, 30.0, 30.0])))
        guesses = torch.cat((labels, labels, labels[:2], torch.randint(4, (count,), generator=generator)))
        keep = uniform(len(candidates)) < (0 if number == 5 else 0.7)
        keep &= (candidates[:, 2:] > candidates[:, :2]).all(dim=1)
        scores = (uniform(int(keep.sum())) * 20).round() / 20
        found.append(Detections(candidates[keep], scores, guesses[keep]))
    return pictures, found


def by_pycocotools(pictures: list[Picture], found: list[Detections]) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = truth_document(pictures, CLASSES, ["x"] * len(pictures))
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results(pictures, found)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("seed", range(8))
def test_equal_to_pycocotools(seed: int) -> None:
    pictures, found = random_case(seed)
    pictures = [one._replace(number=number) for number, one in enumerate(pictures, start=1)]
    theirs = by_pycocotools(pictures, found)
    ours = score(pictures, found, CLASSES)
    for name, value in zip(NAMES, theirs.stats.tolist(), strict=True):
        assert ours.figures.get(name, -1) == pytest.approx(value, abs=1e-6), name
    precision = theirs.eval["precision"][:, :, :, 0, 2]
    np.testing.assert_allclose(np.nan_to_num(ours.precision, nan=-1), precision, atol=1e-6)
    for k, row in enumerate(ours.per_class):
        values = precision[:, :, k]
        expected = values[values > -1].mean() if (values > -1).any() else None
        assert row.ap == (None if expected is None else pytest.approx(expected, abs=1e-6))
        assert row.objects == sum(int(((one.labels == k) & ~one.crowd).sum()) for one in pictures)


def test_perfect_wrong_and_no_answers() -> None:
    boxes, labels = torch.tensor([[10.0, 10, 50, 60], [100, 100, 220, 260]]), torch.tensor([0, 1])
    one = picture(7, boxes, labels, torch.zeros(2, dtype=torch.bool))
    perfect = score([one], [Detections(boxes, torch.ones(2), labels)], CLASSES)
    assert (perfect.figures["ap"], perfect.figures["recall"]) == (1, 1)
    assert "ap_small" not in perfect.figures, "nothing small was asked for"
    assert [row.ap for row in perfect.per_class] == [1, 1, None, None]
    assert math.isnan(perfect.precision[0, 0, 2])
    swapped = score([one], [Detections(boxes, torch.ones(2), 1 - labels)], CLASSES)
    silent = score([one], [Detections.none()], CLASSES)
    assert swapped.figures["ap50"] == silent.figures["ap50"] == silent.figures["recall"] == 0


def test_empty_pictures_only() -> None:
    empty = picture(1, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))
    found = Detections(torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([0.9]), torch.tensor([0]))
    for answer in (found, Detections.none()):
        assert score([empty], [answer], CLASSES).figures == {}


def test_a_crowd_is_neither_asked_for_nor_a_false_alarm() -> None:
    crowd = torch.tensor([[0.0, 0, 200, 200], [300, 100, 340, 140]])
    one = picture(1, crowd, torch.tensor([0, 0]), torch.tensor([True, False]))
    inside = torch.tensor([[20.0, 20, 60, 60], [300, 100, 340, 140]])
    found = Detections(inside, torch.tensor([0.9, 0.8]), torch.tensor([0, 0]))
    assert score([one], [found], CLASSES).figures["ap"] == 1


def test_pictures_and_answers_must_pair() -> None:
    with pytest.raises(ValueError, match="0 pictures and the detections of 1"):
        score([], [Detections.none()], CLASSES)
