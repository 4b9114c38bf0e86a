"""Decide which layers of trained weights are frozen (`model.freeze` auto): those whose features already fit the images.

A linear probe on each layer, fitted on training images and measured on validation images, tells how well the frozen
features separate the classes. If the weights were trained on similar images, the probes exceed those of an untrained
network, and deeper layers add to it up to some depth. If not, nothing is frozen.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checkpoint.format import Checkpoint, build_network
from ..config.schema import Recipe
from ..data.dataset import Dataset, Split
from ..data.loader import evaluation_batches
from ..data.preprocess import Preprocess
from ..evaluation.linear_probes import MIN_IMAGES, PIXELS, fit_probes, pooled_features
from .finetune import init_from_checkpoint, run_preprocess
from .precise_bn import recompute_bn_stats

# Images that the probes are fitted and measured on, evenly spaced.
MAX_TRAIN, MAX_VALIDATION = 1000, 500


class LayerProbe(NamedTuple):
    """The validation accuracy of the probe on a layer of the trained and of the untrained network."""

    layer: str
    trained: float
    untrained: float


def choose_freeze(probes: Sequence[LayerProbe], num_validation: int) -> str:
    """Return the layer up to which layers are frozen, or "none".

    It is the shallowest layer within a standard error of the best one: the layers after it do not improve the frozen
    features, so they are trained. Nothing is frozen unless this layer exceeds the untrained one by a standard error.
    """
    best = max(probe.trained for probe in probes)
    # Of a fraction measured on so many images; with Laplace's rule it is not 0 for a perfect one.
    share = (best * num_validation + 1) / (num_validation + 2)
    error = math.sqrt(share * (1 - share) / num_validation)
    chosen = next(probe for probe in probes if probe.trained >= best - error)
    return chosen.layer if chosen.trained > chosen.untrained + error else "none"


def probe_layers(recipe: Recipe, data: Dataset, init: Checkpoint) -> list[LayerProbe]:
    """Measure the probes of all layers of the network of `init` and of an untrained one, without the pixels' own."""
    loose = replace(recipe, model=replace(recipe.model, freeze="none"))
    preprocess = run_preprocess(recipe, data, init, None)
    train, validation = data.train.subsample(MAX_TRAIN), data.validation.subsample(MAX_VALIDATION)
    trained = init_from_checkpoint(loose, init, data.classes, data.channels)
    untrained = build_network(loose, len(data.classes), data.channels)
    device = data.train.labels.device
    results = []
    for model in (trained.to(device).eval(), untrained.to(device).eval()):
        if model is untrained:
            recompute_bn_stats(model, (pixels for pixels, _ in _batches(train, preprocess)))
        features = [pooled_features(model, _batches(split, preprocess)) for split in (train, validation)]
        # The last fifth selects the penalty: in the order of the classes it would be of a few classes only.
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(recipe.seed))
        shuffled = features[0]._replace(
            layers={name: values[order] for name, values in features[0].layers.items()},
            labels=features[0].labels[order],
        )
        results.append(fit_probes(shuffled, features[1], len(data.classes)))
    pairs = zip(*results, strict=True)
    return [LayerProbe(one.layer, one.top1, other.top1) for one, other in pairs if one.layer != PIXELS]


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
    if init is not None and (len(data.train) < MIN_IMAGES or not data.validation):
        reason = f"measuring the similarity needs {MIN_IMAGES} training images, and validation images"
    elif init is not None:
        probes = probe_layers(recipe, data, init)
        freeze = choose_freeze(probes, min(len(data.validation), MAX_VALIDATION))
        best = max(probes, key=lambda probe: probe.trained)
        chosen = next((probe for probe in probes if probe.layer == freeze), best)
        reason = (
            f"a linear probe on {chosen.layer} classifies {chosen.trained:.3f} of the validation images, untrained "
            f"{chosen.untrained:.3f}, on the best layer {best.trained:.3f}"
        )
    model = replace(recipe.model, freeze=freeze)
    return replace(recipe, model=model), [f"frozen up to: {freeze} ({reason})"]
