"""Plan a training on a user's images: inspect them, measure the machine, and compare starting weights.

`planner` decides; this module collects the numbers that it decides by.
"""

import io
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from PIL import Image

from .. import kernels
from ..checkpoint.format import build_network
from ..config.parse import recipe_from_dict
from ..config.schema import Recipe, SizeConfig
from ..config.tasks import get_task_module
from ..data.dataset import Dataset, Split
from ..data.lazy import LazyImages
from ..data.loader import full_batch_spec
from ..data.preprocess import Preprocess
from ..data.sources import absolute_source
from ..devices import pick_device, pick_precision
from ..evaluation.confidence import wilson_interval
from . import distributed
from .fit import fit
from .optim import build_optimizer
from .planner import (
    CROP_SCALES,
    DataFacts,
    Network,
    Plan,
    batch_size_for,
    candidates,
    epochs_within,
    min_epochs,
    plan,
)
from .tasks.base import LossModule
from .tasks.classification import ClassificationTask, build_augment

# Fraction of the time in which networks are measured, and each of the two starts of `compare_starts` is trained.
MEASURE_SHARE, COMPARE_SHARE = 0.05, 0.1
# Training steps of a measurement: the first one allocates memory.
WARMUP_STEPS, TIMED_STEPS = 1, 2
SAMPLED_HEADERS = 100


def inspect_data(recipe: Recipe) -> DataFacts:
    """Load the recipe's images without keeping them in memory, and count them.

    Raises ValueError for unusable data, without training images or for another task than classification.
    """
    if recipe.task not in ("classification", "multilabel"):
        raise ValueError(f"auto_plan is for classification, not for task {recipe.task}")
    small = replace(recipe, size=SizeConfig(train=32), data=replace(recipe.data, in_memory=False))
    data: Dataset = get_task_module(recipe).load_data(small)
    if not data.train:
        raise ValueError(f"{data.source} has no training images")
    labels = data.train.labels
    counts = torch.bincount(labels, minlength=len(data.classes)) if labels.ndim == 1 else (labels > 0).sum(dim=0)
    return DataFacts(
        len(data.train), len(data.validation), len(data.test), len(data.classes), data.channels, int(counts.min()),
        int(counts.max()), median_side(data.train),
    )  # fmt: skip


def median_side(split: Split) -> int:
    """Return the median of the shorter sides of evenly spaced images, in pixels."""
    images = split.subsample(SAMPLED_HEADERS).images
    if not isinstance(images, LazyImages):
        return min(images.shape[-2:])
    sides = []
    for index in range(len(images)):
        with suppress(OSError, ValueError), Image.open(io.BytesIO(images.ranges.read(index))) as image:
            sides.append(min(image.size))
    return sorted(sides)[len(sides) // 2] if sides else min(images.shape[-2:])


def measure_step(recipe: Recipe, facts: DataFacts) -> float:
    """Return the seconds of a training step per image, with random pixels in memory.

    `recipe` has the network, the batch size and the augmentation.
    """
    device = pick_device(recipe.device)
    accelerator = distributed.init_distributed(device, pick_precision(recipe.precision, device), recipe.compile)
    size, channels, count = recipe.size.sizes[0], facts.channels, min(recipe.batch_size, facts.num_train)
    model = build_network(recipe, facts.num_classes, channels).to(device)
    if device.type == "cpu" and not recipe.compile:
        kernels.enable_cpu_kernels(model)
    generator = torch.Generator().manual_seed(recipe.seed)
    images = torch.randint(256, (count, channels, size, size), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.arange(count) % facts.num_classes, [""] * count).to(device)
    preprocess = Preprocess(size, channels, (0.5,) * channels, (0.25,) * channels)
    data = Dataset("", ("",) * facts.num_classes, split, split, split, preprocess.mean, preprocess.std)
    task = ClassificationTask(recipe.loss, None, build_augment(recipe, data, preprocess))
    loss_module, optimizer = accelerator.prepare(LossModule(task, model), build_optimizer(recipe.optimizer, model))
    model.train()
    seconds = []
    for step in range(WARMUP_STEPS + TIMED_STEPS):
        started = time.perf_counter()
        spec = full_batch_spec(count, count, step=step, size=size, seed=recipe.seed)
        optimizer.zero_grad(set_to_none=True)
        loss, _ = loss_module(task.batch(split, preprocess, spec))
        accelerator.backward(loss)
        optimizer.step()
        loss.item()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return min(seconds[WARMUP_STEPS:]) / count


def measure_networks(
    recipe: Recipe, facts: DataFacts, seconds: float, fixed: set[str], measure: Callable[[Recipe, DataFacts], float]
) -> dict[Network, float]:
    """Measure networks by increasing cost until one is too slow for `seconds` of training; see `planner`.

    Batch size and crops are those that many epochs would have.
    """
    started, speeds = time.perf_counter(), dict[Network, float]()
    draft = {"batch_size": batch_size_for(facts), "augment.min_crop_scale": CROP_SCALES[-1][1]}
    recipe = with_values(recipe, {key: value for key, value in draft.items() if key not in fixed})
    size = recipe.size.sizes[0] if "size.train" in fixed and recipe.size.sizes else None
    width_mult = recipe.model.width_mult if "model.width_mult" in fixed else None
    for network in candidates(facts, size, width_mult):
        values = {"size.train": network.size, "model.width_mult": network.width_mult}
        speeds[network] = measure(with_values(recipe, values), facts)
        if epochs_within(facts, speeds[network], seconds) < min_epochs(facts, network):
            break
        if time.perf_counter() - started > MEASURE_SHARE * seconds:
            break
    return speeds


def with_values(recipe: Recipe, values: Mapping[str, object]) -> Recipe:
    """Return a recipe with other values by key."""
    flags = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]
    return recipe_from_dict(yaml.safe_load(recipe.to_yaml()), flags)


def plan_training(
    recipe: Recipe, fixed: set[str], spent: Callable[[], float], measure: Callable[..., float] = measure_step
) -> tuple[Recipe, Plan, DataFacts]:
    """Plan a recipe with `auto_plan` and a time budget; values of the keys `fixed` are those of the user.

    `spent()` are the seconds of the budget that are over. The planned recipe has the rest as its budget. Raises
    ValueError if the recipe does not say how long to train, and if the data takes all of the time.
    """
    if recipe.budget_minutes is None:
        raise ValueError("auto_plan needs budget_minutes: the time of the training (--minutes 10)")
    if recipe.size.sizes and "size.train" not in fixed:
        raise ValueError("auto_plan chooses size.train: leave it at null in the recipe, or set it by a flag")
    seconds = 60 * recipe.budget_minutes
    recipe = replace(
        recipe, auto_plan=False, data=replace(recipe.data, source=absolute_source(recipe.data.source, recipe.data.root))
    )
    facts = inspect_data(recipe)
    speeds = measure_networks(recipe, facts, seconds - spent(), fixed, measure)
    rest = seconds - spent()
    if rest <= 0:
        raise ValueError(
            f"budget_minutes: reading the images took {spent():.0f} s of {seconds:.0f} s; give more minutes"
        )
    chosen = plan(facts, speeds, rest)
    values = {key: value for key, value in chosen.values.items() if key not in fixed}
    return with_values(recipe, {**values, "budget_minutes": round(rest / 60, 4)}), chosen, facts


class Start(NamedTuple):
    """A start of training in `compare_starts`: the validation accuracy after `seconds`."""

    name: str
    top1: float
    seconds: float


def compare_starts(recipe: Recipe, weights: str, fixed: set[str], num_validation: int) -> tuple[Recipe, list[str]]:
    """Train from the weights and from scratch for a short time; return the recipe of the better start, and a report.

    The returned recipe has the rest of the budget. The accuracies are those of `num_validation` images. Raises
    ValueError without validation images, and for unusable weights.
    """
    assert recipe.budget_minutes is not None
    if not num_validation:
        raise ValueError("--weights compares on validation images: set data.val_split, such as 0.2")
    begun, starts = time.perf_counter(), list[Start]()
    recipes = {"weights": weights_recipe(recipe, weights, fixed), "scratch": recipe}
    with tempfile.TemporaryDirectory(prefix="googlenet-compare-") as folder:
        for name, candidate in recipes.items():
            short = replace(candidate, budget_minutes=COMPARE_SHARE * recipe.budget_minutes, tracker="none")
            values: list[float] = []
            result = fit(short, Path(folder) / name, progress=False, trial=partial(_keep, values))
            starts.append(Start(name, values[-1], result.seconds))
    better = max(starts, key=lambda start: start.top1)  # of equal ones the weights
    rest = 60 * recipe.budget_minutes - (time.perf_counter() - begun)
    lines = [f"start from {start.name}: {_describe(start, num_validation)}" for start in starts]
    lines.append(f"better start: {better.name}")
    return replace(recipes[better.name], budget_minutes=round(max(rest, 1.0) / 60, 4)), lines


def _keep(values: list[float], _: float, value: float) -> None:
    values.append(value)


def weights_recipe(recipe: Recipe, weights: str, fixed: set[str]) -> Recipe:
    """Return the recipe that starts from weights, with their network, size and normalization, except `fixed` keys."""
    values: dict[str, object] = {
        "model.init_from": weights, "model.name": None, "model.pool_mode": None, "model.width_mult": None,
        "model.freeze": "auto", "data.normalize": "pretrained", "size.train": None,
    }  # fmt: skip
    return with_values(recipe, {key: value for key, value in values.items() if key not in fixed})


def _describe(start: Start, num_validation: int) -> str:
    correct = torch.arange(num_validation) < round(start.top1 * num_validation)
    low, high = wilson_interval(correct)
    return f"validation {start.top1:.4f} (95 % interval {low:.3f} to {high:.3f}) after {start.seconds:.0f} s"
