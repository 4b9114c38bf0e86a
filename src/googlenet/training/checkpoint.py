"""Weights and training state on disk: written whole or not at all, and read without running anyone's code."""

import io
import json
import os
import pickle
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from ..data.preprocess import Preprocess
from ..files import write_atomically
from ..models.catalogue import create
from ..models.ensemble import Ensemble
from ..models.network import Network
from ..models.weights import raise_unless_fits, shapes_of
from .recipe import Recipe
from .recipe_file import read_recipe, recipe_from_dict

# What `fit` saves, and asks for when it goes on.
STATE_KEYS = frozenset(("step", "seconds", "pictures", "native", "model", "optimiser", "average", "scaler", "random"))
ANEW = "remove it to start the run anew"

WRONG_TASK = {
    "detection": "finds objects, it does not classify pictures; use googlenet detect, or evaluate",
    "classification": "classifies pictures, it does not find objects; train one that does with task: detection",
}

WEIGHTS, STATE, RECIPE = "model.safetensors", "state.pt", "recipe.yaml"


@dataclass(frozen=True)
class Checkpoint:
    """A trained network, or several that answer as one, with all that is needed to use it.

    `model` is in evaluation mode, a `Network` or an `Ensemble`, which answer alike, or, where ``recipe.task`` is
    detection, a `detection.detector.Detector` or a `detection.rcnn.RegionNetwork`; `network` is for what only a
    single network has: its stages, its weights' names. `preprocess` makes its input from pictures. `classes` names
    its outputs in order. `metrics` are the figures measured at the end of training, {"test": {"top1": ...}, ...}.
    """

    model: Any
    preprocess: Preprocess
    classes: tuple[str, ...]
    recipe: Recipe
    metrics: dict[str, Any]

    @property
    def network(self) -> Network:
        """The single network; ValueError where there are several."""
        if isinstance(self.model, Ensemble):
            raise ValueError("this is an ensemble: name one of its members, such as RUN/member-1")
        if self.recipe.task == "detection":
            raise ValueError("this network finds objects, it does not classify pictures")
        network: Network = self.model
        return network


def build_model(recipe: Recipe, num_classes: int, in_channels: int) -> Network:
    """The recipe's network, its weights drawn from the recipe's seed."""
    variant = {key: value for key, value in asdict(recipe.model).items() if value is not None}
    name, aux = variant.pop("name", "googlenet"), variant.pop("aux")
    for start in ("weights", "freeze"):
        variant.pop(start, None)
    return create(name, num_classes, in_channels, aux, **{"seed": recipe.seed, **variant})


def save_weights(path: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` to a .safetensors file that `load` reads back to an equal one."""
    about = {
        "preprocess": checkpoint.preprocess.to_dict(),
        "classes": checkpoint.classes,
        "recipe": asdict(checkpoint.recipe),
        "metrics": checkpoint.metrics,
    }
    tensors = {key: value.detach().cpu().contiguous() for key, value in _tensors_of(checkpoint).items()}
    write_atomically(path, save(tensors, {"format": "pt", "googlenet": json.dumps(about, allow_nan=False)}))


def _tensors_of(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    model = checkpoint.network if checkpoint.recipe.task == "classification" else checkpoint.model
    tensors: dict[str, torch.Tensor] = model.state_dict()
    return tensors


def load(path: str | os.PathLike[str], *, task: str | None = None) -> Checkpoint:
    """Read a run folder, an ensemble's, or a .safetensors file of ours, to a `Checkpoint` on the CPU.

    Or the published weights of another library, by their name there: "torchvision:googlenet",
    "timm:inception_v3.tf_in1k"; see `foreign`. They are fetched by that library and kept.

    Raises ValueError, naming the file and what to do, for anything else: a missing or damaged file, a pickle
    (never opened: it could run code), weights that do not fit the network they name; and, where `task` is named, a
    network that was trained for another one.
    """
    from . import ensemble, foreign  # which make checkpoints, and so import this file
    from .tasks import home

    place = Path(path)
    if foreign.is_published(str(path)) and not place.exists():
        return foreign.load_published(str(path))
    if ensemble.is_ensemble(place):
        return ensemble.load_ensemble(place)
    if place.is_dir():
        if not (place / WEIGHTS).exists() and (place / RECIPE).exists():
            raise ValueError(f"{place}: a run without weights yet; continue it with googlenet train --resume {place}")
        place = place / WEIGHTS
    if not place.exists():
        raise ValueError(f"{place}: no such file; name a run folder or a .safetensors file")
    try:
        with safe_open(place, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{place}: damaged, or not a safetensors file ({error})") from None
    if "googlenet" not in metadata:
        raise ValueError(f"{place}: safetensors of another program: it does not say which network it holds")
    try:
        about = json.loads(metadata["googlenet"])
        preprocess = Preprocess.from_dict(about["preprocess"])
        classes = tuple(about["classes"])
        recipe = recipe_from_dict(about["recipe"])
        metrics = dict(about["metrics"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{place}: its description cannot be read ({error}); was it written by a newer version?"
        ) from None
    if task not in (None, recipe.task):
        raise ValueError(f"{path}: {WRONG_TASK[recipe.task]}")
    model = home(recipe).build_model(recipe, len(classes), preprocess.channels)
    load_strictly(model, tensors, str(place))
    return Checkpoint(model.eval(), preprocess, classes, recipe, metrics)


def load_strictly(model: nn.Module, tensors: dict[str, torch.Tensor], origin: str) -> None:
    """Copy `tensors` into `model`; ValueError that lists differing keys and shapes unless all fit."""
    raise_unless_fits(shapes_of(model), tensors, origin)
    model.load_state_dict(tensors)


def save_state(run: Path, state: dict[str, Any]) -> None:
    """Write everything that `fit` needs to go on from this step."""
    # Through memory: torch.save straight to a full disk reports an internal error instead of the cause.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(run / STATE, buffer.getvalue())


def load_state(run: Path) -> dict[str, Any] | None:
    """The last saved state of a run; None before the first. ValueError for a damaged file."""
    path = run / STATE
    if not path.exists():
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
        code = isinstance(error, pickle.UnpicklingError)
        reason = "it holds more than tensors and numbers" if code else str(error).splitlines()[0]
        raise ValueError(f"{path}: damaged, or not a state of ours ({reason}); {ANEW}") from None
    if not isinstance(state, dict) or not state.keys() >= STATE_KEYS:
        raise ValueError(f"{path}: not a state of ours; {ANEW}")
    return state


def load_recipe(run: Path) -> Recipe:
    """The recipe that a run was started with."""
    path = run / RECIPE
    if not path.is_file():
        raise ValueError(f"{run}: not a run: it has no {RECIPE}")
    return read_recipe(str(path))
