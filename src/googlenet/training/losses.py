"""Classification losses: cross-entropy, focal loss, binary cross-entropy, asymmetric loss.

"Focal Loss for Dense Object Detection" (Lin et al., 2017), "Asymmetric Loss For Multi-Label Classification" (Ridnik et
al., 2021).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.schema import LossConfig


def single_label_loss(logits: Tensor, labels: Tensor, config: LossConfig, class_weights: Tensor | None) -> Tensor:
    """Compute the mean loss of images with one label each.

    `labels` are classes int64 (n,) or probabilities (n, classes). `class_weights` (classes,) weight each image's loss.
    """
    logits, smoothing = in_float32(logits), config.label_smoothing
    if config.name == "focal":
        return focal_loss(logits, smooth_labels(labels, logits.shape[1], smoothing), config.gamma, class_weights)
    if class_weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    # PyTorch's weighted mean divides by the weights for class labels but not for class probabilities. This divides by
    # the number of images in both cases.
    return F.cross_entropy(logits, labels, class_weights, label_smoothing=smoothing, reduction="none").mean()


def focal_loss(logits: Tensor, targets: Tensor, gamma: float, class_weights: Tensor | None = None) -> Tensor:
    """Compute the cross-entropy with `targets` (n, classes), each term weighted by (1 - probability) ** gamma."""
    log_probabilities = logits.log_softmax(dim=1)
    losses = -targets * (1 - log_probabilities.exp()).clamp_min(1e-8) ** gamma * log_probabilities
    if class_weights is not None:
        losses = losses * class_weights
    return losses.sum(dim=1).mean()


def smooth_labels(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Return class probabilities (n, classes), of which the fraction `smoothing` is spread over all classes."""
    targets = labels if labels.ndim == 2 else F.one_hot(labels, num_classes)
    return targets.float() * (1 - smoothing) + smoothing / num_classes


def multilabel_loss(logits: Tensor, labels: Tensor, config: LossConfig, class_weights: Tensor | None) -> Tensor:
    """Compute the mean loss of all pairs of an image and a class, with `labels` bool (n, classes).

    `class_weights` (classes,) weight the terms of the images that have the label. With label smoothing s the targets
    are s / 2 and 1 - s / 2.
    """
    logits = in_float32(logits)
    targets = labels.to(logits.dtype) * (1 - config.label_smoothing) + config.label_smoothing / 2
    if config.name == "asymmetric":
        exponents, margin = (config.gamma_positive, config.gamma_negative), config.probability_margin
        return asymmetric_loss(logits, targets, exponents, margin, class_weights)
    if config.name == "focal":
        return asymmetric_loss(logits, targets, (config.gamma, config.gamma), 0.0, class_weights)
    return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=class_weights)


def asymmetric_loss(
    logits: Tensor, targets: Tensor, exponents: tuple[float, float], margin: float, class_weights: Tensor | None = None
) -> Tensor:
    """Compute the binary cross-entropy, weighted by the error to the power of `exponents` (positive, negative).

    The probability p of a negative is lowered by `margin` (but not below 0), so that easy ones have no loss. With equal
    exponents and without a margin this is the focal loss.
    """
    positive, negative = logits.sigmoid(), (1 - logits.sigmoid() + margin).clamp(max=1)
    log_negative = negative.log() if margin else F.logsigmoid(-logits)
    # The lower bound keeps the derivative of a power below 1 finite.
    positive_losses = (1 - positive).clamp_min(1e-8) ** exponents[0] * F.logsigmoid(logits)
    negative_losses = (1 - negative).clamp_min(1e-8) ** exponents[1] * log_negative
    if class_weights is not None:
        positive_losses = positive_losses * class_weights
    return -(targets * positive_losses + (1 - targets) * negative_losses).mean()


def balanced_class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Return class weights (classes,) in inverse proportion to the class counts, 1 on average over the images."""
    counts = torch.bincount(labels, minlength=num_classes).clamp_min(1)
    return len(labels) / (num_classes * counts.float())


def balanced_positive_weights(labels: Tensor) -> Tensor:
    """Return the number of images without each label per image with it, (classes,); `labels` are bool (n, classes)."""
    positives = labels.sum(dim=0)
    return (len(labels) - positives).clamp_min(1) / positives.clamp_min(1).float()


def balanced_sampling_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Return the weights float64 (n,) with which images are drawn so that all classes are equally frequent.

    `labels` are classes int64 (n,), or bool (n, classes): then an image has the weight of its rarest label, and an
    image without labels that of a class of all of them.
    """
    if labels.ndim == 1:
        counts = torch.bincount(labels, minlength=num_classes).double()
        return 1 / counts[labels]
    inverse = 1 / labels.sum(dim=0).clamp_min(1).double()
    unlabeled = 1 / (~labels.any(dim=1)).sum().clamp_min(1).double()
    return torch.where(labels.any(dim=1), (labels * inverse).amax(dim=1), unlabeled)


def in_float32(logits: Tensor) -> Tensor:
    """Return logits in float32 or float64: losses are summed so, also under autocast."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
