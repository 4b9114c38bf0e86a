"""COCO detection metrics: average precision and recall over classes, IoU thresholds and object sizes.

They are computed by faster-coco-eval, which gives the results of pycocotools faster. Rates are fractions 0..1.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import FailedError
from .batches import chunks_by_bytes
from .data.coco import coco_annotations, coco_results
from .data.dataset import Detections, Sample
from .predict import ObjectDetector

# COCO's summary in its order. Small objects have less than 32x32 pixels, large ones more than 96x96; recall_1 and
# recall_10 count the best 1 and 10 detections of each class and image, the others the best 100.
METRICS = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "recall_1", "recall_10", "recall", "recall_small", "recall_medium", "recall_large",
)  # fmt: skip
IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))


class ClassMetrics(NamedTuple):
    """The metrics of a class with `objects` objects in the split; None without objects."""

    label: str
    objects: int
    ap: float | None
    ap50: float | None
    recall: float | None


class CocoMetrics(NamedTuple):
    """COCO metrics of the detections on a split.

    `summary` has the values of `METRICS` that objects belong to, and `precision` (IoU thresholds, recalls, classes) the
    best precision at each recall 0, 0.01, ..., 1; NaN for classes without objects.
    """

    summary: dict[str, float]
    per_class: tuple[ClassMetrics, ...]
    precision: NDArray[np.float64]


class EvaluatedSplit(NamedTuple):
    """The detections on each image of a split, and their metrics."""

    detections: list[Detections]
    metrics: CocoMetrics


def evaluate_split(predictor: ObjectDetector, samples: Sequence[Sample]) -> EvaluatedSplit:
    """Detect the objects on all samples and compute the metrics."""
    detections = detect_samples(predictor, samples)
    return EvaluatedSplit(detections, coco_metrics(samples, detections, predictor.classes))


def detect_samples(predictor: ObjectDetector, samples: Sequence[Sample]) -> list[Detections]:
    """Detect the objects on all samples."""
    detections: list[Detections] = []
    channels = predictor.preprocess.channels
    for chunk in chunks_by_bytes(samples, lambda sample: sample.height * sample.width * channels):
        detections += predictor.predict([sample.read(channels) for sample in chunk])
    return detections


def coco_metrics(samples: Sequence[Sample], detections: Sequence[Detections], classes: Sequence[str]) -> CocoMetrics:
    """Compute the metrics of the detections on each sample; FailedError if faster-coco-eval is not installed."""
    if len(samples) != len(detections):
        raise ValueError(f"{len(samples)} images, but detections of {len(detections)}")
    evaluation = _evaluate(samples, detections, classes)
    # The arrays end in axes for the object size (0: all) and the number of detections (-1: 100).
    precision, recall = (np.asarray(evaluation.eval[name])[..., 0, -1] for name in ("precision", "recall"))
    stats = evaluation.stats[: len(METRICS)].tolist()
    summary = {name: value for name, value in zip(METRICS, stats, strict=True) if value > -1}
    counts = Counter(label for sample in samples for label in sample.labels[~sample.crowd].tolist())
    per_class = tuple(
        ClassMetrics(label, counts[k], _mean(precision[:, :, k]), _mean(precision[0, :, k]), _mean(recall[:, k]))
        for k, label in enumerate(classes)
    )
    return CocoMetrics(summary, per_class, np.where(precision > -1, precision, np.nan))


def _mean(values: NDArray[np.float64]) -> float | None:
    """Return the mean without COCO's placeholder -1; None if nothing remains."""
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else None


def _evaluate(samples: Sequence[Sample], detections: Sequence[Detections], classes: Sequence[str]) -> Any:
    """Return `stats`, and `eval` with arrays precision (IoU, recall, class, ...) and recall (IoU, class, ...)."""
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        raise FailedError("COCO metrics need faster-coco-eval: pip install 'googlenet[detect]'") from None

    # The ids of images from several annotation files may collide.
    samples = [sample._replace(image_id=image_id) for image_id, sample in enumerate(samples, start=1)]
    ground_truth = COCO(coco_annotations(samples, classes, [""] * len(samples)))
    results = [row for image_id, result in enumerate(detections, start=1) for row in coco_results(image_id, result)]
    predicted = ground_truth.loadRes(results)
    evaluation = COCOeval_faster(ground_truth, predicted, iouType="bbox", print_function=lambda *_: None)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation
