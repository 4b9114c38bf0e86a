"""Metrics of images with any number of labels, and the thresholds that decide which labels an image has."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .class_metrics import OneVsRest, class_metrics, weighted_metrics
from .metrics import Predictions, check_logits
from .report_metrics import class_metrics_document, format_class_metrics

DEFAULT_THRESHOLD = 0.5


def label_outcomes(predictions: Predictions, thresholds: Sequence[float]) -> OneVsRest:
    """Return the probability of each label, the true labels, and those with at least their threshold."""
    scores = predictions.logits.double().sigmoid()
    return OneVsRest(scores, predictions.labels.bool(), scores >= torch.tensor(thresholds, dtype=torch.float64))


def multilabel_metrics(predictions: Predictions, thresholds: Sequence[float]) -> dict[str, float]:
    """Return mean average precision (``map``), AUROC, macro and micro F1, the loss and the number of images.

    As in `class_metrics` a class without images counts as 0, except in AUROC, which is omitted if no class has it. The
    loss is the mean binary cross-entropy in nats.
    """
    outcomes = label_outcomes(predictions, thresholds)
    values = weighted_metrics(outcomes, torch.ones_like(outcomes.scores))
    flat = OneVsRest(*(value.reshape(-1, 1) for value in outcomes))
    micro = weighted_metrics(flat, torch.ones_like(flat.scores))["f1"]
    means = {
        "map": values["average_precision"].nan_to_num(0.0).mean(),
        "auroc": values["auroc"].nanmean(),
        "f1": values["f1"].mean(),
        "micro_f1": micro.squeeze(),
    }
    return {
        **{name: value.item() for name, value in means.items() if not value.isnan()},
        "loss": label_loss(predictions).mean().item(),
        "images": len(predictions.labels),
    }


def label_loss(predictions: Predictions) -> Tensor:
    """Return the mean binary cross-entropy of each image in nats, float64 (n,)."""
    logits, targets = predictions.logits.double(), predictions.labels.double()
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1)


def choose_thresholds(predictions: Predictions | None, num_classes: int) -> tuple[float, ...]:
    """Return the probability for each class from which predicting the label gives the best F1 on `predictions`.

    It lies in the middle between two probabilities of images; of equally good ones the nearest to 0.5 is chosen. A
    class without images, or without others, has 0.5, as has every class without predictions.
    """
    if predictions is None:
        return (DEFAULT_THRESHOLD,) * num_classes
    scores = predictions.logits.double().sigmoid()
    return tuple(_best_threshold(*column) for column in zip(scores.T, predictions.labels.bool().T, strict=True))


def _best_threshold(scores: Tensor, targets: Tensor) -> float:
    """Choose the threshold of one class from scores (n,) and targets bool (n,)."""
    positives = int(targets.sum())
    if positives in (0, len(targets)):
        return DEFAULT_THRESHOLD
    descending, order = scores.sort(descending=True)
    hits = targets[order].double().cumsum(0)
    f1 = 2 * hits / (torch.arange(1, len(scores) + 1) + positives)
    following = torch.cat((descending[1:], torch.zeros(1, dtype=torch.float64)))
    middles = (descending + following) / 2
    # Images of equal scores are predicted together.
    is_candidate = descending > following
    best = f1[is_candidate].max()
    candidates = middles[is_candidate & (f1 >= best - 1e-12)]
    return float(candidates[(candidates - DEFAULT_THRESHOLD).abs().argmin()])


def multilabel_report(predictions: Predictions, classes: Sequence[str], thresholds: Sequence[float]) -> dict[str, Any]:
    """Return every metric: `multilabel_metrics`, ``averages`` and ``per_class`` with intervals and thresholds.

    Raises ValueError for logits that are not finite.
    """
    check_logits(predictions.logits, "evaluation")
    metrics = class_metrics(label_outcomes(predictions, thresholds), multilabel=True)
    document = class_metrics_document(metrics, classes)
    for row, threshold in zip(document["per_class"].values(), thresholds, strict=True):
        row["threshold"] = threshold
    return {**multilabel_metrics(predictions, thresholds), **document}


def format_multilabel(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a `multilabel_report`."""
    titles = {"map": "mAP", "auroc": "AUROC", "f1": "macro F1", "micro_f1": "micro F1", "loss": "loss"}
    yield "   ".join(f"{title} {document[key]:.4f}" for key, title in titles.items() if key in document)
    thresholds = {name: row["threshold"] for name, row in document["per_class"].items()}
    yield "thresholds: " + ", ".join(f"{name} {value:.3f}" for name, value in thresholds.items())
    yield from format_class_metrics(document)
