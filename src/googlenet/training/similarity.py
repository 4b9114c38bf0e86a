"""Decide which layers of trained weights are frozen (`model.freeze` auto): those whose features already fit the images.

A linear probe on each layer tells how well the frozen features separate the classes. If the weights were trained on
similar images, the probes exceed those of an untrained network, and deeper layers add to it up to some depth. If not,
nothing is frozen. The probes are measured on training and validation images, each by a probe fitted on all others,
because the validation images of a small folder are too few to tell layers apart.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from ..checkpoint.format import Checkpoint, build_network
from ..config.schema import Recipe
from ..data.dataset import Dataset, Split
from ..data.loader import evaluation_batches
from ..data.preprocess import Preprocess
from ..evaluation.linear_probes import PIXELS, leave_one_out_top1, pooled_features
from .finetune import init_from_checkpoint, run_preprocess
from .precise_bn import recompute_bn_stats

# Images that the probes are measured on, evenly spaced, and fewer are not enough to measure anything.
MAX_IMAGES, MIN_IMAGES = 400, 10
# Standard errors by which a layer must exceed the untrained one: the best of several layers exceeds one by chance.
SIMILARITY_ERRORS = 2


class LayerProbe(NamedTuple):
    """The accuracy of the probe on a layer of the trained and of the untrained network."""

    layer: str
    trained: float
    untrained: float


def choose_freeze(probes: Sequence[LayerProbe], num_images: int) -> str:
    """Return the layer up to which layers are frozen, or "none".

    It is the shallowest layer within a standard error of the best one: the layers after it do not improve the frozen
    features, so they are trained. Nothing is frozen unless this layer exceeds the untrained one by two standard errors.
    """
    best = max(probe.trained for probe in probes)
    # Of a fraction measured on that number of images; with Laplace's rule it is not 0 for a perfect one.
    share = (best * num_images + 1) / (num_images + 2)
    error = math.sqrt(share * (1 - share) / num_images)
    chosen = next(probe for probe in probes if probe.trained >= best - error)
    return chosen.layer if chosen.trained > chosen.untrained + SIMILARITY_ERRORS * error else "none"


def probe_layers(recipe: Recipe, data: Dataset, init: Checkpoint) -> list[LayerProbe]:
    """Measure the probes of all layers of the network of `init` and of an untrained one."""
    loose = replace(recipe, model=replace(recipe.model, freeze="none"))
    preprocess = run_preprocess(recipe, data, init, None)
    share = min(1.0, MAX_IMAGES / (len(data.train) + len(data.validation)))
    splits = [split.subsample(max(1, round(share * len(split)))) for split in (data.train, data.validation) if split]
    trained = init_from_checkpoint(loose, init, data.classes, data.channels)
    untrained = build_network(loose, len(data.classes), data.channels)
    device = data.train.labels.device
    results: list[dict[str, float]] = []
    for model in (trained.to(device).eval(), untrained.to(device).eval()):
        if model is untrained:
            recompute_bn_stats(model, (pixels for split in splits for pixels, _ in _batches(split, preprocess)))
        layers, labels = pooled_features(model, (batch for split in splits for batch in _batches(split, preprocess)))
        results.append({
            name: leave_one_out_top1(features, labels, len(data.classes)) for name, features in layers.items()
        })  # fmt: skip
    return [LayerProbe(name, results[0][name], results[1][name]) for name in results[0] if name != PIXELS]


def _batches(split: Split, preprocess: Preprocess) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in evaluation_batches(split, preprocess):
        yield batch.images, batch.labels


def resolve_freeze(recipe: Recipe, data: Any, init: Checkpoint | None) -> tuple[Recipe, list[str]]:
    """Replace `model.freeze` auto by a layer or none; returns the recipe and a note that says why.

    Without weights, or too few images to measure, nothing is frozen. Raises ValueError for other tasks.
    """
    if recipe.model.freeze != "auto":
        return recipe, []
    if recipe.task != "classification":
        raise ValueError("model.freeze: auto needs task: classification; name none, stem, trunk or a layer")
    freeze, reason = "none", "there are no weights to start from"
    num_images = min(len(data.train) + len(data.validation), MAX_IMAGES)
    if init is not None and num_images < MIN_IMAGES:
        reason = f"measuring the similarity needs {MIN_IMAGES} images"
    elif init is not None:
        probes = probe_layers(recipe, data, init)
        freeze = choose_freeze(probes, num_images)
        best = max(probes, key=lambda probe: probe.trained)
        chosen = next((probe for probe in probes if probe.layer == freeze), best)
        reason = (
            f"a linear probe on {chosen.layer} classifies {chosen.trained:.3f} of {num_images} images, untrained "
            f"{chosen.untrained:.3f}, on the best layer {best.trained:.3f}"
        )
    model = replace(recipe.model, freeze=freeze)
    return replace(recipe, model=model), [f"frozen up to: {freeze} ({reason})"]
