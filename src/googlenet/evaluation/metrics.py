"""Classification metrics of logits and labels. Rates are fractions in 0..1."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.ensemble import average_logits


class Predictions(NamedTuple):
    """The predicted `logits`, float (n, classes), and the true `labels`, on the CPU.

    The labels are classes int64 (n,), or bool (n, classes) for images with any number of labels.
    """

    logits: Tensor
    labels: Tensor


def check_logits(logits: Tensor, name: str) -> None:
    """Raise ValueError, which names the image or model, for outputs that are not finite."""
    if not logits.isfinite().all():
        reason = "the weights are corrupt or training diverged"
        raise ValueError(f"{name}: the network's output is not finite (NaN or infinite): {reason}")


def run_inference(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> Predictions:
    """Run `model` in evaluation mode on batches of (images, labels), and restore its mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    logits, labels = [], []
    with torch.inference_mode():
        for images, targets in batches:
            logits.append(model(images.to(device)).float())
            labels.append(targets)
    for module, mode in modes.items():
        module.training = mode
    # Copied once: every copy waits for the device.
    return Predictions(torch.cat(logits).cpu(), torch.cat(labels).cpu())


def average_predictions(predictions: Sequence[Predictions]) -> Predictions:
    """Average the probabilities of several predictions for the same images; a single one is returned unchanged."""
    if len(predictions) == 1:
        return predictions[0]
    labels = predictions[0].labels
    return Predictions(average_logits([item.logits for item in predictions], multilabel=labels.ndim == 2), labels)


def top_k_accuracy(predictions: Predictions, k: int) -> float:
    """Return the share of images whose true class is among the `k` largest logits; of ties, the first class wins."""
    logits, labels = predictions
    target = logits.gather(1, labels.unsqueeze(1))
    earlier = torch.arange(logits.shape[1]) < labels.unsqueeze(1)
    better = (logits > target) | ((logits == target) & earlier)
    return (better.sum(dim=1) < k).double().mean().item()


def is_correct(predictions: Predictions) -> Tensor:
    """Return whether the class with the largest logit is the true one: bool (n,)."""
    return predictions.logits.argmax(1) == predictions.labels


def mean_loss(predictions: Predictions) -> float:
    """Return the mean cross-entropy in nats."""
    return F.cross_entropy(predictions.logits.double(), predictions.labels).item()


def confusion_matrix(predictions: Predictions) -> Tensor:
    """Count images by true class (row) and predicted class (column): int64 (classes, classes)."""
    classes = predictions.logits.shape[1]
    pairs = predictions.labels * classes + predictions.logits.argmax(dim=1)
    return torch.bincount(pairs, minlength=classes * classes).view(classes, classes)


def classification_metrics(predictions: Predictions) -> dict[str, float]:
    """Return top-1 and top-5 accuracy, the loss, and the number of images."""
    return {
        "top1": top_k_accuracy(predictions, 1),
        "top5": top_k_accuracy(predictions, 5),
        "loss": mean_loss(predictions),
        "images": len(predictions.labels),
    }
