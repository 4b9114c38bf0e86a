"""COCO's figures of detection: average precision and recall over classes, overlaps and sizes.

Computed by faster-coco-eval, which gives what pycocotools gives, sooner. Rates are fractions 0..1.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import FailedError
from .coco import results, truth_document
from .dataset import Detections, Picture

# The rows of COCO's summary that are reported: name, whether precision (else recall), overlap (None: the mean over
# 0.5, 0.55, ..., 0.95), size of the objects, and the most detections of a picture.
SUMMARY: tuple[tuple[str, bool, float | None, str, int], ...] = (
    ("ap", True, None, "all", 100),
    ("ap50", True, 0.5, "all", 100),
    ("ap75", True, 0.75, "all", 100),
    ("ap_small", True, None, "small", 100),
    ("ap_medium", True, None, "medium", 100),
    ("ap_large", True, None, "large", 100),
    ("recall_1", False, None, "all", 1),
    ("recall_10", False, None, "all", 10),
    ("recall", False, None, "all", 100),
    ("recall_small", False, None, "small", 100),
    ("recall_medium", False, None, "medium", 100),
    ("recall_large", False, None, "large", 100),
)

# Small objects are under 32x32 square pixels, large ones above 96x96 (COCO).
SIZES = ("all", "small", "medium", "large")
OVERLAPS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
MOST = (1, 10, 100)


class ClassFigures(NamedTuple):
    """The figures of one class; `objects` are asked for. None where there are none."""

    label: str
    objects: int
    ap: float | None
    ap50: float | None
    recall: float | None


class Scores(NamedTuple):
    """What detections are worth.

    `figures` are those of `SUMMARY` by name, without those that have no objects to be measured on. `per_class` has a
    row per class. `precision` (overlaps, recalls, classes) is the best precision that is reached at each recall 0,
    0.01, ..., 1 and overlap of `OVERLAPS`, NaN for classes without objects.
    """

    figures: dict[str, float]
    per_class: tuple[ClassFigures, ...]
    precision: NDArray[np.float64]


class Answers(NamedTuple):
    """What was found on each picture of a split, and what it is worth."""

    found: list[Detections]
    scores: Scores


def score(pictures: Sequence[Picture], found: Sequence[Detections], classes: Sequence[str]) -> Scores:
    """COCO's figures of the detections `found` on each of `pictures`.

    Of a picture the 100 best detections of each class count. FailedError where faster-coco-eval is missing.
    """
    if len(pictures) != len(found):
        raise ValueError(f"{len(pictures)} pictures and the detections of {len(found)}")
    evaluated = _evaluate(pictures, found, classes)
    precision, recall = evaluated["precision"], evaluated["recall"]
    figures = {}
    for name, precise, overlap, size, most in SUMMARY:
        a, m = SIZES.index(size), MOST.index(most)
        overlaps = slice(None) if overlap is None else slice(OVERLAPS.index(overlap), OVERLAPS.index(overlap) + 1)
        value = _mean(precision[overlaps, :, :, a, m] if precise else recall[overlaps, :, a, m])
        if value is not None:
            figures[name] = value
    counts = torch.zeros(len(classes), dtype=torch.int64)
    for picture in pictures:
        counts += torch.bincount(picture.labels[picture.objects], minlength=len(classes))
    per_class = tuple(
        ClassFigures(
            label,
            int(counts[k]),
            _mean(precision[:, :, k, 0, -1]),
            _mean(precision[0, :, k, 0, -1]),
            _mean(recall[:, k, 0, -1]),
        )
        for k, label in enumerate(classes)
    )
    curves = precision[:, :, :, 0, -1]
    return Scores(figures, per_class, np.where(curves > -1, curves, np.nan))


def _mean(values: NDArray[np.float64]) -> float | None:
    """COCO's mean: over what is there; None where nothing is."""
    there = values[values > -1]
    return float(there.mean()) if there.size else None


def _evaluate(
    pictures: Sequence[Picture], found: Sequence[Detections], classes: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """The arrays of COCO's evaluation: precision (overlap, recall, class, size, most), recall (without the
    recalls)."""
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        raise FailedError("the figures of detection need faster-coco-eval: pip install 'googlenet[detect]'") from None

    # Their numbers may repeat where pictures come from several files.
    numbered = [picture._replace(number=number) for number, picture in enumerate(pictures, start=1)]
    truth = COCO(truth_document(numbered, classes, [""] * len(numbered)))
    answers: list[dict[str, Any]] = results(numbered, found)
    evaluation = COCOeval_faster(truth, truth.loadRes(answers), iouType="bbox", print_function=lambda *_: None)
    evaluation.evaluate()
    evaluation.accumulate()
    return {name: np.asarray(evaluation.eval[name]) for name in ("precision", "recall")}
