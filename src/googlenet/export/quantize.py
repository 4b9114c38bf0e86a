"""Post-training quantization to 8-bit integers, within an allowed loss of accuracy.

Ranges are measured on calibration images; weights have a scale per output channel. If the int8 file loses too much on
validation images, the layers that disturb the logits most stay in float32.
"""

import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.dataset import Split
from ..data.preprocess import Preprocess
from ..errors import FailedError
from ..evaluation.metrics import Predictions, top_k_accuracy
from ..evaluation.multilabel import choose_thresholds, multilabel_metrics
from ..evaluation.predictor import Predictor, round_to_uint8
from ..models.ensemble import Ensemble, get_networks
from ..models.network import Network

# Images that an int8 file is validated on (with fewer, a loss of 0.003 is within the noise), and those of them that
# measure how much a layer disturbs the logits.
VALIDATION_IMAGES, SENSITIVITY_IMAGES = 4000, 500
# The last convolutions of a detector, in whose outputs 8 bits are too coarse for scores and boxes.
PREDICTION_LAYERS = re.compile(r"\.(cls_logits|bbox_reg|bbox_ctrness)\b")
# The fraction of the allowed loss that the validation images may show.
DROP_BUDGET = 0.75


class CalibrationData(NamedTuple):
    """Training images uint8 (n, channels, size, size): for the ranges, and for validation with their `labels`."""

    calibration_images: Tensor
    validation_images: Tensor
    labels: Tensor


class Quantizer(NamedTuple):
    """`write` quantizes all but the given layers and returns file names, which `open` opens; no names: float32."""

    engine: str
    write: Callable[[Sequence[str]], list[str]]
    open: Callable[[Sequence[str]], Predictor]


class QuantizationResult(NamedTuple):
    """The int8 files, the layers that stay in float32, and the loss of top-1 accuracy on the validation images."""

    files: list[str]
    float_layers: list[str]
    validation_drop: float


def select_calibration_data(train: Split, preprocess: Preprocess, num_images: int) -> CalibrationData:
    """Select `num_images` calibration images and up to `VALIDATION_IMAGES` others, evenly spaced in `train`."""
    if len(train.labels) < 2:
        raise ValueError("int8 needs training images to measure ranges on; name them with --data")
    num_images = min(num_images, len(train.labels) - 1)
    selected = train.subsample(num_images + VALIDATION_IMAGES)
    # Calibration images are evenly spaced too, so that both sets contain all classes of an ordered folder.
    indices = torch.arange(len(selected.labels))
    is_calibration = torch.isin(indices, indices[:num_images] * len(indices) // num_images)
    (pixels,) = selected.pixels([indices])
    parts = (preprocess.resize(preprocess.center_crop(part), preprocess.size) for part in torch.split(pixels, 100))
    images = torch.cat([round_to_uint8(part) for part in parts])
    return CalibrationData(images[is_calibration], images[~is_calibration], selected.labels[~is_calibration])


def quantize(
    quantizer: Quantizer, data: CalibrationData, layers: Sequence[str], max_accuracy_drop: float
) -> QuantizationResult:
    """Write int8 files that lose at most `DROP_BUDGET` of `max_accuracy_drop` on the validation images.

    One layer of `layers` after the other stays in float32, in the order of their effect on the logits. FailedError if
    half of them do not suffice.
    """
    reference = _predict(quantizer.open([]), data)
    float_layers, by_error = list[str](), list[str]()
    while True:
        files = quantizer.write(float_layers)
        predictions = _predict(quantizer.open(files), data)
        drop = _accuracy(reference) - _accuracy(predictions)
        if drop <= DROP_BUDGET * max_accuracy_drop:
            return QuantizationResult(files, float_layers, drop)
        if 2 * len(float_layers) >= len(layers):
            kept = f"{len(float_layers)} of {len(layers)} layers in float32"
            raise FailedError(
                f"int8 for {quantizer.engine} loses {drop:.4f} of {_metric(reference)} on training images with {kept}; "
                "nothing was written; omit --int8, or allow a larger --max-accuracy-drop"
            )
        by_error = by_error or _rank_layers(quantizer, data, layers, reference, drop)
        float_layers = [*float_layers, by_error[len(float_layers)]]


def _accuracy(predictions: Predictions) -> float:
    """Return top-1, or the mean average precision of images with any number of labels."""
    if predictions.labels.ndim == 1:
        return top_k_accuracy(predictions, 1)
    return multilabel_metrics(predictions, choose_thresholds(None, predictions.logits.shape[1])).get("map", 0.0)


def _metric(predictions: Predictions) -> str:
    return "top-1" if predictions.labels.ndim == 1 else "mAP"


def _rank_layers(
    quantizer: Quantizer, data: CalibrationData, layers: Sequence[str], reference: Predictions, drop: float
) -> list[str]:
    """Order the layers by the error of the logits that remains if that layer alone stays in float32."""
    print(
        f"{quantizer.engine}: int8 loses {drop:.4f} of {_metric(reference)}; measuring the effect of each layer",
        file=sys.stderr,
    )
    images, labels = data.validation_images[:SENSITIVITY_IMAGES], data.labels[:SENSITIVITY_IMAGES]
    subset = data._replace(validation_images=images, labels=labels)
    errors = {}
    for layer in layers:
        predictions = _predict(quantizer.open(quantizer.write([layer])), subset)
        errors[layer] = (predictions.logits - reference.logits[: len(labels)]).square().mean().item()
    return sorted(layers, key=errors.__getitem__)


def _predict(predictor: Predictor, data: CalibrationData) -> Predictions:
    logits = [predictor.predict(part) for part in torch.split(data.validation_images, 50)]
    return Predictions(torch.cat(logits), data.labels)


def quantizable_layers(model: Network | Ensemble) -> list[str]:
    """Return the layers that can stay in float32, with the names of `layer_of`."""
    if isinstance(model, Ensemble):
        members = [quantizable_layers(network) for network in get_networks(model)]
        return [f"networks.{i}.{name}" for i, names in enumerate(members) for name in names]
    trunk = (name for name, layer in model.trunk.named_children() if next(layer.parameters(), None) is not None)
    return [*trunk, "classifier"]


def quantizable_nodes(inputs: Mapping[str, Collection[str]], convolutions: Collection[str]) -> set[str]:
    """Return the nodes of a detector between its first convolution, included, and its last ones, excluded.

    `inputs` has the predecessors of each node, in topological order. What precedes (resizing) and follows (boxes and
    non-maximum suppression) stays in float32.
    """
    last = {name for name in inputs if PREDICTION_LAYERS.search(name)}
    # Nor does the activation before them round its output.
    last |= {source for name in last for source in inputs[name] if source not in convolutions}
    after, before = set[str](), set(last)
    for name, sources in inputs.items():
        if name in convolutions or any(source in after for source in sources):
            after.add(name)
    for name in reversed(list(inputs)):
        if name in before:
            before |= set(inputs[name])
    return (after & before) - last


def layer_of(node: str) -> str:
    """Return the trunk's layer, or the classifier, that a node of a file belongs to: "trunk.conv1" -> "conv1".

    For an ensemble with the member's index: "networks.0.trunk.conv1" -> "networks.0.conv1".
    """
    match = re.match(r"(networks\.\d+\.)?(?:trunk\.)?([^./]*)", node)
    assert match
    return (match[1] or "") + match[2]


def node_pattern(layer: str) -> str:
    """Return the regular expression that matches the names of a layer's nodes, the inverse of `layer_of`."""
    member, name = re.fullmatch(r"(networks\.\d+\.)?(.*)", layer).groups("")  # type: ignore[union-attr]
    path = name if name == "classifier" else f"trunk.{name}"
    return rf"^{re.escape(member + path)}(\..*|/.*)?$"
