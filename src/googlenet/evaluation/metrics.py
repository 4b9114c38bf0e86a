"""Logits and labels -> figures. Rates are fractions in 0..1."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Outputs(NamedTuple):
    """What a network answered: `logits` float (n, classes) and the true `labels` int64 (n,), on the CPU."""

    logits: Tensor
    labels: Tensor


def collect(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> Outputs:
    """Run `model` in evaluation mode over batches of (pixels, labels), and put it back as it was."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    logits, labels = [], []
    with torch.inference_mode():
        for images, truth in batches:
            logits.append(model(images.to(device)).float().cpu())
            labels.append(truth.cpu())
    for module, mode in modes.items():
        module.training = mode
    return Outputs(torch.cat(logits), torch.cat(labels))


def top_k_accuracy(outputs: Outputs, k: int) -> float:
    """The share of pictures whose true class is among the `k` best; of equal ones the first in order is better."""
    truth = outputs.logits.gather(1, outputs.labels.unsqueeze(1))
    earlier = torch.arange(outputs.logits.shape[1]) < outputs.labels.unsqueeze(1)
    better = (outputs.logits > truth) | ((outputs.logits == truth) & earlier)
    return (better.sum(dim=1) < k).double().mean().item()


def mean_loss(outputs: Outputs) -> float:
    """Cross-entropy in nats, averaged over the pictures."""
    return F.cross_entropy(outputs.logits.double(), outputs.labels).item()


def confusion_matrix(outputs: Outputs) -> Tensor:
    """Counts (classes, classes): row the true class, column the predicted one."""
    classes = outputs.logits.shape[1]
    pairs = outputs.labels * classes + outputs.logits.argmax(dim=1)
    return torch.bincount(pairs, minlength=classes * classes).view(classes, classes)


def per_class_accuracy(outputs: Outputs) -> list[float | None]:
    """The share of each class's pictures that were answered right; None for a class without pictures."""
    counts = confusion_matrix(outputs)
    return [
        right / total if total else None
        for right, total in zip(counts.diagonal().tolist(), counts.sum(dim=1).tolist(), strict=True)
    ]


def scores(outputs: Outputs) -> dict[str, float]:
    """The figures that every evaluation reports."""
    return {
        "top1": top_k_accuracy(outputs, 1),
        "top5": top_k_accuracy(outputs, 5),
        "loss": mean_loss(outputs),
        "images": len(outputs.labels),
    }
