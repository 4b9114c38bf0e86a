"""Detection as a task: what `training.loop.fit` learns for a recipe with ``task: detection``."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..data.loader import fixed_turn, steps_per_epoch
from ..data.preprocess import Preprocess
from ..data.rows import whole
from ..training import processes
from ..training.checkpoint import Checkpoint, load_strictly
from ..training.checkpoint import build_model as build_network
from ..training.recipe import Augmentation, Loss, Recipe
from ..training.start import AUXILIARY, freeze, match_channels, start_preprocess
from ..training.task import About, Ingredients, Part, StepResult
from .batch import DetectionBatch, training_pictures
from .dataset import DetectionDataset, Detections, Picture
from .detector import Detector
from .metrics import Answers, score
from .predict import detect
from .sources import load_detection

BACKBONE = "backbone."


class Finding(NamedTuple):
    """Boxes with labels: the head's loss, with the auxiliary heads' added at `options.aux_weight` each.

    Pictures are tested at each of `sizes` (their longer sides in pixels), and trained on canvases of `least` pixels
    at least.
    """

    options: Loss
    classes: tuple[str, ...]
    sizes: tuple[int, ...]
    least: int = 1

    @property
    def best(self) -> str:
        """COCO's average precision decides."""
        return "ap"

    @property
    def named(self) -> dict[str, str]:
        """Average precision: COCO's, and at an overlap of 0.5."""
        return {"ap": "AP", "ap50": "AP50"}

    def batch(self, train: Sequence[Picture], preprocess: Preprocess, recipe: Recipe, part: Part) -> DetectionBatch:
        """Pictures at the step's size, with their boxes."""
        return training_pictures(
            train, preprocess,
            flip=recipe.augment.flip == "random", step=part.step, size=part.size, seed=recipe.seed,
            turn=part.turn, rows=part.rows, least=self.least,
        )  # fmt: skip

    def loss(self, model: Detector, batch: DetectionBatch) -> StepResult:
        """The training loss of a batch."""
        return StepResult(*model.losses(batch, self.options.aux_weight))

    def score(self, model: Any, split: Sequence[Picture], preprocess: Preprocess) -> Answers:
        """What the network finds on every picture of `split`, measured."""
        found: list[Detections] = []
        for start in range(0, len(split), 500):
            pixels = [picture.read(preprocess.channels) for picture in split[start : start + 500]]
            found += detect(model, preprocess, pixels, self.sizes)
        return Answers(found, score(split, found, self.classes))

    def figures(self, answers: Answers) -> dict[str, float]:
        """COCO's figures, without those that have no objects to be measured on."""
        return {**answers.scores.figures, "images": len(answers.found)}

    def plain(self, train: Sequence[Picture], preprocess: Preprocess, recipe: Recipe) -> Iterator[Tensor]:
        """Pixels of training pictures at the test size, in the order of the first epoch."""
        once = steps_per_epoch(len(train), recipe.batch_size)
        for step in range(min(recipe.reestimate_norm or once, once)):
            turn = fixed_turn(len(train), recipe.batch_size, step)
            yield training_pictures(
                train, preprocess, flip=False, step=step, size=preprocess.size, seed=recipe.seed,
                turn=turn, rows=whole(turn.stop - turn.start), least=self.least,
            ).images  # fmt: skip

    def report(self, about: About, split: Sequence[Picture], answers: Answers | None) -> str:
        """Figures, curves, precision and recall, misses and false alarms."""
        from .report import render_detection_report

        return render_detection_report(about, split, answers)


def load(recipe: Recipe) -> DetectionDataset:
    """The recipe's pictures; ValueError for what detection does not know."""
    data = recipe.data
    if data.fit != "crop" or data.resident is not None or data.workers is not None:
        raise ValueError("data.fit, data.resident and data.workers are for classification: leave them out")
    return load_detection(
        data.source,
        root=data.root,
        validation=data.validation,
        unreadable=data.unreadable,
        limit=data.limit,
        seed=recipe.split_seed,
    )


def ingredients(
    recipe: Recipe, data: DetectionDataset, start: Checkpoint | None, state: dict[str, Any] | None
) -> Ingredients:
    """What a run of detection is made of; see `training.tasks.Home`."""
    check(recipe, data)
    model = build_model(recipe, len(data.classes), data.channels)
    if start is not None:
        start_from(model, start, data.classes, data.channels, f"model.weights: {recipe.model.weights}")
    freeze(model.backbone, recipe.model.freeze)
    sizes = recipe.detection.sizes or (recipe.test_size,)
    task = Finding(recipe.loss, data.classes, sizes, model.min_size)
    return Ingredients(task, model, preprocess_of(recipe, data, start, state), len(data.train), digest(data))


def build_model(recipe: Recipe, num_classes: int, in_channels: int) -> Detector:
    """The recipe's detector, its weights drawn from the recipe's seed."""
    backbone = build_network(recipe, num_classes, in_channels)
    # Pyramid and head are drawn by PyTorch and torchvision: from a state of their own, so that others' is left alone.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed if recipe.model.seed is None else recipe.model.seed)
        return Detector(backbone, num_classes, recipe.detection)


def start_from(model: Detector, start: Checkpoint, classes: tuple[str, ...], channels: int, origin: str) -> None:
    """Copy the weights of `start`, which must all fit: a detector's where its classes are the same, else the
    backbone's.

    A classifier's head is left out, auxiliary heads too unless they have the same classes; the first convolution is
    matched to the channels.
    """
    detector = start.recipe.task == "detection"
    if detector and start.classes == classes and channels == start.preprocess.channels:
        load_strictly(model, dict(start.model.state_dict()), origin)
        return
    own = model.backbone.state_dict()
    tensors = dict((start.model.backbone if detector else start.network).state_dict())
    sides = start.classes == classes and any(key.startswith(AUXILIARY) for key in tensors)
    tensors = {key: value for key, value in tensors.items() if sides or not key.startswith(AUXILIARY)}
    tensors = {key: value for key, value in tensors.items() if not key.startswith("classifier.")}
    if not sides:
        tensors |= {key: value for key, value in own.items() if key.startswith(AUXILIARY)}
    elif not model.backbone.aux_heads:
        tensors = {key: value for key, value in tensors.items() if not key.startswith(AUXILIARY)}
    first = next(name for name, module in model.backbone.named_modules() if isinstance(module, nn.Conv2d)) + ".weight"
    tensors[first] = match_channels(tensors[first], channels)
    load_strictly(model.backbone, tensors, origin)


def check(recipe: Recipe, data: DetectionDataset) -> None:
    """Refuse what detection does not know, and batches too small for normalisation."""
    if recipe.augment not in (Augmentation(), replace(Augmentation(), flip="random")):
        raise ValueError("detection knows augment.flip none and random alone: leave the other changes out")
    if recipe.loss.class_weights != "none" or recipe.loss.label_smoothing:
        raise ValueError("loss.label_smoothing and loss.class_weights are for classification: leave them out")
    if recipe.early_stop and not data.validation:
        raise ValueError("early_stop needs a validation part: set data.validation, such as 0.2")
    if min(recipe.batch_size, len(data.train)) < 2:
        raise ValueError("detection needs 2 pictures a step at least")


def preprocess_of(
    recipe: Recipe, data: DetectionDataset, start: Checkpoint | None, state: dict[str, Any] | None
) -> Preprocess:
    """How pictures become a batch: here `size` is the longer side."""
    if recipe.data.normalise == "weights":
        if start is None:
            assert state is not None
            return Preprocess.from_dict(state["preprocess"])
        return start_preprocess(recipe, start, data.channels)
    plain = recipe.data.normalise == "none"
    mean = (0.0,) * data.channels if plain else data.mean
    std = (1.0,) * data.channels if plain else data.std
    return Preprocess(recipe.test_size, data.channels, mean, std)


def digest(data: DetectionDataset) -> str:
    """Tells one set of training pictures from another, by names, boxes, labels and pixels' mean.

    ValueError where the processes of a run see different ones.
    """
    about = [[one.name, one.boxes.tolist(), one.labels.tolist(), one.crowd.tolist()] for one in data.train]
    mine = hashlib.sha256(json.dumps([data.classes, about, data.mean, data.std]).encode()).hexdigest()
    if len(set(processes.gather(mine))) > 1:
        raise ValueError(f"{data.source}: the processes of this run do not see the same pictures")
    return mine
