"""Class activation maps: the contribution of each position of the last feature map to a class's logit.

"Learning Deep Features for Discriminative Localization" (Zhou et al., 2016). Pooling and the linear classifier are
both linear, so a logit is exactly a sum over the positions of the last feature map.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..evaluation.fonts import drawn_names, numbers_note
from ..evaluation.predictor import ClassifierHead
from ..models.network import Network
from . import plotting
from .context import AnalysisResult, ExplainContext, OutputImage

# The number of most probable classes that are drawn.
NUM_CLASSES = 3


class ClassMaps(NamedTuple):
    """`maps` (n, selected classes, h, w) in units of logits, and `logits` (n, all classes).

    The mean of a map plus the classifier's bias is the class's logit, up to rounding.
    """

    maps: Tensor
    logits: Tensor


def class_maps(model: Network, pixels: Tensor, classes: Sequence[int]) -> ClassMaps:
    """Compute the maps of `classes` for normalized `pixels` (n, channels, height, width).

    The network is in evaluation mode. With global average pooling, a map is the sum of the channels of the last
    feature map, weighted by the classifier; with spatial pyramid pooling, a position has the weights of every cell
    that contains it. ValueError for a network without classifier.
    """
    if not isinstance(model.classifier, nn.Linear) or not model.pooled:
        raise ValueError("class activation maps need a network that ends in pooling and a classifier")
    with torch.no_grad():
        features = model.forward_features(pixels)
        head = ClassifierHead(model.classifier.weight, model.spp_levels)
        return ClassMaps(maps_of_features(features, head, classes), model.forward_head(features))


def maps_of_features(features: Tensor, head: ClassifierHead, classes: Sequence[int]) -> Tensor:
    """Compute the maps of `ClassMaps` from the last feature map (n, channels, h, w) and the head that follows it."""
    height, width = features.shape[-2:]
    rows = head.weight[list(classes)]
    channels = features.shape[1]
    # The weight of each channel and position in each class's logit, (classes, channels, height, width).
    weights, start = rows.new_zeros(len(rows), channels, height, width), 0
    for level in head.spp_levels:
        stop = start + channels * level * level
        cells = rows[:, start:stop].reshape(-1, channels, level, level)
        vertical, horizontal = (pooling_matrix(length, level).to(rows) for length in (height, width))
        weights += torch.einsum("kcij,ih,jw->kchw", cells, vertical, horizontal)
        start = stop
    return torch.einsum("nchw,kchw->nkhw", features, weights * (height * width))


def pooling_matrix(length: int, num_cells: int) -> Tensor:
    """Return adaptive average pooling of `length` positions to `num_cells` cells as a matrix (num_cells, length)."""
    matrix = torch.zeros(num_cells, length)
    for cell in range(num_cells):
        start, stop = cell * length // num_cells, -(-(cell + 1) * length // num_cells)
        matrix[cell, start:stop] = 1 / (stop - start)
    return matrix


def run(context: ExplainContext) -> AnalysisResult:
    """Draw the class activation maps of each image."""
    result, size = AnalysisResult("Class activation maps", [], [], []), context.size
    for image in context.images:
        pixels = context.normalized(image)
        with torch.no_grad():
            logits = context.model(pixels)[0]
        classes = context.select_classes(logits, NUM_CLASSES)
        maps = class_maps(context.model, pixels, classes).maps[0].cpu()
        height, width = maps.shape[-2:]
        probabilities = context.probabilities(logits[None])[0].tolist()
        peaks = plotting.peak_positions(maps[None], size, size)[0].tolist()
        rows = [
            {
                "label": context.checkpoint.classes[index], "logit": logits[index].item(),
                "probability": probabilities[index], "map_mean": values.mean().item(), "peak": {"x": x, "y": y},
            }
            for index, values, (y, x) in zip(classes, maps, peaks, strict=True)
        ]  # fmt: skip
        result.document.append({"path": image.path, "map": [height, width], "classes": rows})
        position = "peak at x {x:.0f}, y {y:.0f} of ".format(**rows[0]["peak"]) + f"{size}x{size} pixels"
        if (height, width) == (1, 1):
            position = f"at {size} px the map has one position and shows no location: use a larger --size"
        label, probability = rows[0]["label"], rows[0]["probability"]
        result.lines.append(f"{image.path}: {label} {probability:.3f}, map {height}x{width}, {position}")
        names = context.checkpoint.classes
        drawn = drawn_names(names, classes)
        titles = [
            f"{drawn[index]}\nlogit {row['logit']:.2f}, p {row['probability']:.2f}"
            for index, row in zip(classes, rows, strict=True)
        ]
        png = plotting.draw_cam(context.displayed(image), titles, maps)
        caption = f"Class activation maps of {image.path}: contribution of each position to the class's logit."
        caption += numbers_note(names, classes)
        result.images.append(OutputImage(f"{image.name}-cam.png", png, caption))
    return result
