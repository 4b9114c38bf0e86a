"""Checkpoints: a trained network with everything that using it needs, in one safetensors file.

Files are written atomically and read without executing code.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from ..config.parse import read_recipe, recipe_from_dict
from ..config.schema import Recipe
from ..config.tasks import get_task_module
from ..data.preprocess import Preprocess
from ..files import raise_for_placeholder, write_atomically
from ..models.ensemble import Ensemble
from ..models.factory import create_model
from ..models.network import Network
from ..models.state_dict import check_state_dict, shapes_of

WEIGHTS_FILE, RECIPE_FILE = "model.safetensors", "recipe.yaml"
# The manifest of an exported folder; see `export.manifest`.
MANIFEST_FILE = "model.json"

_WRONG_TASK = {
    "detection": "detects objects and does not classify images; use googlenet detect, or evaluate",
    "classification": "classifies images and does not detect objects; train a detector with task: detection",
    "multilabel": "labels images and does not detect objects; train a detector with task: detection",
}


@dataclass(frozen=True)
class Checkpoint:
    """A trained network, or an ensemble, with its preprocessing, classes, recipe and metrics.

    `model` is in evaluation mode: a `Network` or an `Ensemble`, or, for task detection, a `detection.detector.Detector`
    or a `detection.rcnn.network.RCNN`. `metrics` are those of the end of training, {"test": {"top1": ...}, ...}.
    `thresholds`, one per class for task multilabel, are the probabilities from which an image has a label.
    """

    model: Any
    preprocess: Preprocess
    classes: tuple[str, ...]
    recipe: Recipe
    metrics: dict[str, Any]
    thresholds: tuple[float, ...] = ()

    @property
    def network(self) -> Network:
        """Return the single classification network; ValueError for an ensemble or a detector."""
        if isinstance(self.model, Ensemble):
            raise ValueError("this is an ensemble: name one of its members, such as RUN/member-1")
        if self.recipe.task == "detection":
            raise ValueError(f"this network {_WRONG_TASK['detection']}")
        network: Network = self.model
        return network


def build_network(recipe: Recipe, num_classes: int, in_channels: int) -> Network:
    """Build the recipe's classification network with initial weights from the recipe's seed."""
    options = {key: value for key, value in asdict(recipe.model).items() if value is not None}
    name, aux, _, _ = (options.pop(key, None) for key in ("name", "aux", "init_from", "freeze"))
    return create_model(name or "googlenet", num_classes, in_channels, aux, **{"seed": recipe.seed, **options})


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` to a .safetensors file."""
    metadata = {
        "preprocess": checkpoint.preprocess.to_dict(), "classes": checkpoint.classes,
        "recipe": asdict(checkpoint.recipe), "metrics": checkpoint.metrics, "thresholds": checkpoint.thresholds,
    }  # fmt: skip
    model = checkpoint.model if checkpoint.recipe.task == "detection" else checkpoint.network
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    write_atomically(path, save(tensors, {"format": "pt", "googlenet": json.dumps(metadata, allow_nan=False)}))


def read_checkpoint(path: Path, task: str | None = None) -> Checkpoint:
    """Read a .safetensors file written by `write_checkpoint`, on the CPU.

    Raises ValueError for any other file, for weights that do not fit the network, and for another `task` than given.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file; name a run folder or a .safetensors file")
    raise_for_placeholder(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: damaged, or not a safetensors file ({error})") from None
    if "googlenet" not in metadata:
        raise ValueError(f"{path}: a safetensors file of another program: it does not say which network it holds")
    try:
        values = json.loads(metadata["googlenet"])
        preprocess, recipe = Preprocess.from_dict(values["preprocess"]), recipe_from_dict(values["recipe"])
        classes, metrics = tuple(values["classes"]), dict(values["metrics"])
        thresholds = tuple(map(float, values.get("thresholds", ())))  # not in files of earlier versions
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: unreadable metadata ({error}); was it written by another version?") from None
    check_task(recipe, task, str(path))
    model = get_task_module(recipe).build_model(recipe, len(classes), preprocess.channels)
    load_strictly(model, tensors, str(path))
    return Checkpoint(model.eval(), preprocess, classes, recipe, metrics, thresholds)


def check_task(recipe: Recipe, task: str | None, name: str) -> None:
    """Raise ValueError if `recipe` is for another task than `task` (None: any).

    Networks for several labels are classifiers too: `single_label_only` refuses them where they are not supported.
    """
    actual = "classification" if recipe.task == "multilabel" and task != "multilabel" else recipe.task
    if task not in (None, actual):
        raise ValueError(f"{name}: {_WRONG_TASK[recipe.task]}")


def single_label_only(recipe: Recipe, name: str, what: str) -> None:
    """Raise ValueError if a network assigns several labels to an image; `what` needs one, such as "--crops"."""
    if recipe.task == "multilabel":
        raise ValueError(f"{name}: assigns any number of labels to an image (task: multilabel); {what} needs one label")


def read_run(run: Path, task: str | None = None) -> Checkpoint:
    """Read the checkpoint of a run folder; ValueError if the run has no weights yet."""
    if not (run / WEIGHTS_FILE).exists() and (run / RECIPE_FILE).exists():
        raise ValueError(f"{run}: a run without weights yet; continue it with googlenet train --resume {run}")
    return read_checkpoint(run / WEIGHTS_FILE, task)


def read_run_recipe(run: Path) -> Recipe:
    """Read the recipe of a run folder; ValueError if it is not one."""
    path = run / RECIPE_FILE
    if not path.is_file():
        raise ValueError(f"{run}: not a run: it has no {RECIPE_FILE}")
    return read_recipe(str(path))


def load_strictly(model: nn.Module, tensors: dict[str, torch.Tensor], origin: str) -> None:
    """Copy `tensors` into `model`; ValueError that lists differing keys and shapes unless all fit."""
    check_state_dict(shapes_of(model), tensors, origin)
    model.load_state_dict(tensors)
