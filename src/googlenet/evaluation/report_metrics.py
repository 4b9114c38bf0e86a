"""All metrics of a classifier as plain values for JSON."""

from collections.abc import Sequence
from typing import Any

from .calibration import expected_calibration_error
from .confidence import wilson_interval
from .metrics import Predictions, check_logits, classification_metrics, confusion_matrix, is_correct, per_class_accuracy


def full_report(predictions: Predictions, classes: Sequence[str]) -> dict[str, Any]:
    """Return `classification_metrics`, the 95 % ``interval`` of top-1, ``ece``, ``per_class`` and ``confusion``.

    Raises ValueError for logits that are not finite.
    """
    check_logits(predictions.logits, "evaluation")
    return {
        **classification_metrics(predictions),
        "interval": list(wilson_interval(is_correct(predictions))),
        "ece": expected_calibration_error(predictions),
        "per_class": dict(zip(classes, per_class_accuracy(predictions), strict=True)),
        "confusion": confusion_matrix(predictions).tolist(),
    }
