"""All metrics of a classifier as plain values for JSON, and as lines of text."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from .calibration import expected_calibration_error
from .class_metrics import METRICS, ClassMetrics, Estimates, class_metrics, one_vs_rest, overall_metrics
from .confidence import wilson_interval
from .metrics import Predictions, check_logits, classification_metrics, confusion_matrix, is_correct

NAME_WIDTH, COUNT_WIDTH, COLUMN_WIDTH = 20, 8, 12  # characters


def full_report(predictions: Predictions, classes: Sequence[str]) -> dict[str, Any]:
    """Return every metric of single-label predictions.

    These are `classification_metrics`, the 95 % ``interval`` of top-1, ``ece``, `overall_metrics` with ``intervals``,
    ``averages`` and ``per_class`` of `class_metrics`, and ``confusion``. Raises ValueError for logits that are not
    finite.
    """
    check_logits(predictions.logits, "evaluation")
    return {
        **classification_metrics(predictions),
        "interval": list(wilson_interval(is_correct(predictions))),
        "ece": expected_calibration_error(predictions),
        **estimates_document(overall_metrics(predictions)._asdict()),
        **class_metrics_document(class_metrics(one_vs_rest(predictions)), classes),
        "confusion": confusion_matrix(predictions).tolist(),
    }


def split_by_group(predictions: Predictions, groups: Sequence[str]) -> dict[str, Predictions]:
    """Return the predictions of the images of each group, by name; `groups` (n,) has the group of each image."""
    return {
        name: Predictions(*(values[torch.tensor([group == name for group in groups])] for values in predictions))
        for name in sorted(set(groups))
    }


def class_metrics_document(metrics: ClassMetrics, classes: Sequence[str]) -> dict[str, Any]:
    """Return ``averages`` by kind, and ``per_class`` with metrics, their ``intervals`` and the numbers of images."""
    per_class = {
        name: {"images": row.images, "predicted": row.predicted, **estimates_document(row.estimates)}
        for name, row in zip(classes, metrics.classes, strict=True)
    }
    averages = {kind: estimates_document(estimates) for kind, estimates in metrics.averages.items()}
    return {"averages": averages, "per_class": per_class}


def estimates_document(estimates: Estimates) -> dict[str, Any]:
    """Return the values by name, and ``intervals`` with the 95 % intervals; None if it is undefined."""
    intervals = {name: list(item.interval) if item.interval else None for name, item in estimates.items()}
    return {**{name: item.value for name, item in estimates.items()}, "intervals": intervals}


def format_overall(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the line of balanced accuracy and Matthews correlation."""
    titles = {"balanced_accuracy": "balanced accuracy", "matthews_correlation": "Matthews correlation"}
    yield "   ".join(
        f"{title} {format_value(document[key])} ({format_interval(document['intervals'][key])})"
        for key, title in titles.items()
    )


def format_class_metrics(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table of a document with ``averages`` and ``per_class``: values, and below them their intervals."""
    titles = "".join(f"{title:>{COLUMN_WIDTH}}" for title in METRICS.values())
    yield f"{'':{NAME_WIDTH}}{'images':>{COUNT_WIDTH}}{titles}"
    for name, row in [*document["averages"].items(), *document["per_class"].items()]:
        values = "".join(f"{format_value(row.get(key)):>{COLUMN_WIDTH}}" for key in METRICS)
        intervals = "".join(f"{format_interval(row['intervals'].get(key)):>{COLUMN_WIDTH}}" for key in METRICS)
        yield f"{name:<{NAME_WIDTH}}{row.get('images', ''):>{COUNT_WIDTH}}{values}"
        yield f"{'  95 %':<{NAME_WIDTH + COUNT_WIDTH}}{intervals}"


def format_groups(column: str, groups: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line for each group of images: its number of images, top-1 with its interval, and averages."""
    yield (
        f"{column:<{NAME_WIDTH}}{'images':>{COUNT_WIDTH}}{'top-1':>{COLUMN_WIDTH}}{'95 %':>{COLUMN_WIDTH}}"
        f"{'balanced':>{COLUMN_WIDTH}}{'macro F1':>{COLUMN_WIDTH}}{'AUROC':>{COLUMN_WIDTH}}{'AP':>{COLUMN_WIDTH}}"
    )
    for name, row in groups.items():
        macro = row["averages"]["macro"]
        values = [row["balanced_accuracy"], macro["f1"], macro["auroc"], macro["average_precision"]]
        cells = [format_value(row["top1"]), format_interval(row["interval"]), *map(format_value, values)]
        columns = "".join(f"{cell:>{COLUMN_WIDTH}}" for cell in cells)
        yield f"{name or '(empty)':<{NAME_WIDTH}}{row['images']:>{COUNT_WIDTH}}{columns}"


def format_value(value: float | None) -> str:
    """Return a metric with four digits, "-" if it is undefined."""
    return "-" if value is None else f"{value:.4f}"


def format_interval(interval: Sequence[float] | None) -> str:
    """Return an interval such as "0.87-0.93", "" if it is undefined."""
    return "" if interval is None else f"{interval[0]:.2f}-{interval[1]:.2f}"
