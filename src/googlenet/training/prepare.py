"""What `fit` looks at before the first step: whether recipe, data, network and run folder fit together."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data.dataset import Dataset
from ..data.loader import Augment
from ..data.policies import policy
from ..data.preprocess import Preprocess
from ..data.sources import absolute_source, load_dataset
from ..files import write_atomically
from ..models.catalogue import defaults, spec
from ..models.network import Network
from . import checkpoint, processes
from .checkpoint import Checkpoint, build_model
from .devices import pick_precision
from .environment import ENVIRONMENT, describe_environment
from .recipe import Recipe
from .start import build_start, start_preprocess, with_start
from .task import Classification, Ingredients, balanced

__all__ = [
    "augment_of",
    "build_model",
    "check_fit",
    "check_folder",
    "digest",
    "ingredients",
    "load",
    "make_folder",
    "preprocess_of",
    "resolved",
]


def resolved(recipe: Recipe, device: torch.device) -> Recipe:
    """`recipe` with every value that was left to the model, the device or the working directory filled in."""
    if recipe.model.name is not None:
        spec(recipe.model.name)  # refuses an unknown name
    recipe = with_start(recipe)
    assert recipe.model.name is not None
    model = recipe.model
    known = defaults(recipe.model.name)
    for choice in ("pools", "width"):
        if getattr(model, choice) is not None and choice not in known:
            raise ValueError(
                f"model.{choice} is a choice of the GoogLeNets, not of {model.name}; unset it: --model.{choice} null"
            )
    filled = {key: value for key, value in known.items() if getattr(model, key) is None}
    return replace(
        recipe,
        model=replace(model, **filled),
        data=replace(recipe.data, source=absolute_source(recipe.data.source, recipe.data.root)),
        size=replace(recipe.size, test=recipe.test_size),
        precision=pick_precision(recipe.precision, device),
    )


def check_folder(run: Path, recipe: Recipe, resume: bool, restartable: bool) -> bool:
    """Whether to go on with the run in the folder: where `resume` says so, or where `restartable` finds one there.

    Refuses a folder that is in use, or, to go on, one that holds no run or another recipe's.
    """
    if resume or (restartable and (run / checkpoint.RECIPE).is_file()):
        if checkpoint.load_recipe(run) != recipe:
            raise ValueError(f"{run}: was started with another recipe")
        return True
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise ValueError(f"{run}: exists already; name another folder, or continue it with --resume {run}")
    return False


def make_folder(run: Path, recipe: Recipe, command: str | None) -> None:
    """The run folder, with the recipe and the environment of its start; what is there already stays."""
    run.mkdir(parents=True, exist_ok=True)
    if not (run / checkpoint.RECIPE).exists():
        write_atomically(run / checkpoint.RECIPE, recipe.to_yaml())
    if not (run / ENVIRONMENT).exists():
        about = json.dumps(describe_environment(command, processes.count()), indent=2)
        write_atomically(run / ENVIRONMENT, about + "\n")


def load(recipe: Recipe) -> Dataset:
    """The recipe's pictures."""
    return load_dataset(
        recipe.data.source,
        root=recipe.data.root,
        validation=recipe.data.validation,
        size=recipe.stored_size,
        fit=recipe.data.fit,
        unreadable=recipe.data.unreadable,
        limit=recipe.data.limit,
        seed=recipe.split_seed,
        resident=recipe.data.resident,
        workers=recipe.data.workers,
    )


def ingredients(recipe: Recipe, data: Dataset, start: Checkpoint | None, state: dict[str, Any] | None) -> Ingredients:
    """What a run of classification is made of; see `tasks.Home`."""
    model = build_start(recipe, start, data.classes, data.channels)
    check_fit(recipe, model, data)
    preprocess = preprocess_of(recipe, data, start, state)
    even = recipe.loss.class_weights == "balanced"
    weights = balanced(data.train.labels, len(data.classes)) if even else None
    task = Classification(recipe.loss, weights, augment_of(recipe, data, preprocess))
    return Ingredients(task, model, preprocess, len(data.train.labels), digest(data))


def check_fit(recipe: Recipe, model: Network, data: Dataset) -> None:
    """Refuse sizes under the network's minimum, batches too small for its normalisation, and nothing to learn."""
    if not data.train:
        raise ValueError(f"{data.source} has no training pictures")
    smallest = min(*recipe.size.sizes, recipe.test_size)
    if smallest < model.min_size:
        hint = ", or model.pools padded" if recipe.model.pools == "ceil" else ""
        raise ValueError(
            f"size {smallest} is too small: {recipe.model.name} needs at least {model.min_size} pixels{hint}"
        )
    normalises = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    if recipe.early_stop and not data.validation:
        raise ValueError("early_stop needs a validation part: set data.validation, such as 0.2")
    if normalises and min(recipe.batch_size, len(data.train.labels)) < 2:
        raise ValueError(f"{recipe.model.name} normalises over the batch: it needs 2 pictures a step at least")


def preprocess_of(
    recipe: Recipe, data: Dataset, start: Checkpoint | None, state: dict[str, Any] | None
) -> Preprocess:
    """How pictures become a batch, in this run and whenever its network is used."""
    if recipe.data.normalise == "weights":
        if start is None:
            assert state is not None
            return Preprocess.from_dict(state["preprocess"])
        return start_preprocess(recipe, start, data.channels)
    plain = recipe.data.normalise == "none"
    mean = (0.0,) * data.channels if plain else data.mean
    std = (1.0,) * data.channels if plain else data.std
    return Preprocess(recipe.test_size, data.channels, mean, std, fit=recipe.data.fit)


def augment_of(recipe: Recipe, data: Dataset, preprocess: Preprocess) -> Augment:
    """The recipe's random changes; ValueError for a policy that timm does not know."""
    chosen = recipe.augment
    if chosen.timm:
        policy(chosen.timm, preprocess.size, preprocess.mean)
    return Augment(
        chosen.flip, chosen.shift, chosen.erase, chosen.crop, chosen.timm, chosen.random_erasing,
        chosen.mixup, chosen.cutmix, len(data.classes),
    )  # fmt: skip


def digest(data: Dataset) -> str:
    """Tells one set of training pictures from another, by names, labels and pixels' mean.

    ValueError where the processes of a run see different ones.
    """
    about = json.dumps([data.classes, list(data.train.names), data.train.labels.tolist(), data.mean, data.std])
    mine = hashlib.sha256(about.encode()).hexdigest()
    if len(set(processes.gather(mine))) > 1:
        raise ValueError(f"{data.source}: the processes of this run do not see the same pictures")
    return mine
