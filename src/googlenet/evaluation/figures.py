"""All that is said of a network's answers, as plain values: rates are fractions in 0..1."""

from collections.abc import Sequence
from typing import Any

from .calibration import expected_calibration_error
from .metrics import Outputs, confusion_matrix, per_class_accuracy, scores
from .significance import bootstrap_interval, right


def figures(outputs: Outputs, classes: Sequence[str]) -> dict[str, Any]:
    """`scores`, and how far they can be trusted.

    ``interval`` is the 95 % one of top-1, ``ece`` the expected calibration error; ``per_class`` has the share of each
    class that was answered right, None where it has no pictures; ``confusion`` counts by true class (rows) and answer
    (columns), in the order of `classes`.
    """
    return {
        **scores(outputs),
        "interval": list(bootstrap_interval(right(outputs))),
        "ece": expected_calibration_error(outputs),
        "per_class": dict(zip(classes, per_class_accuracy(outputs), strict=True)),
        "confusion": confusion_matrix(outputs).tolist(),
    }
