"""R-CNN as a task: what `training.loop.fit` learns for a recipe with ``detection.head: rcnn``."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.loader import pictures_of
from ..data.preprocess import Preprocess
from ..models.catalogue import create
from ..models.network import Network
from ..training.checkpoint import Checkpoint, load_strictly
from ..training.checkpoint import build_model as build_network
from ..training.recipe import Recipe, Regions
from ..training.start import build_start, freeze
from ..training.task import About, Ingredients, Part, StepResult
from . import task
from .dataset import DetectionDataset, Picture
from .metrics import Answers
from .multibox import MultiBox, typical_shapes
from .proposals import coverage, propose
from .rcnn import RegionNetwork, search_of
from .region_loss import RegionBatch, region_batch, region_loss
from .task import Finding

BACKGROUND = "background"
# MultiBox's network: batch normalisation lets it start from nothing beside a classifier that is fine-tuned.
MULTIBOX_NETWORK = "googlenet_bn"


class RegionFinding(NamedTuple):
    """Boxes with labels by regions: `proposals` (n, 4) are those of each training picture. All but the steps is as in
    `finding`."""

    finding: Finding
    proposals: Sequence[Tensor]

    @property
    def best(self) -> str:
        """AP at an overlap of 0.5 decides: as in 2014."""
        return "ap50"

    @property
    def named(self) -> dict[str, str]:
        """Average precision: COCO's, and at an overlap of 0.5."""
        return self.finding.named

    def batch(self, train: Sequence[Picture], preprocess: Preprocess, recipe: Recipe, part: Part) -> RegionBatch:
        """Regions of the step's pictures.

        Which, is a function of the seed, the step and the part: parts of a step draw each for itself.
        """
        chosen = pictures_of(len(train), recipe.seed, part.turn, part.rows).tolist()
        dice = torch.Generator().manual_seed((2 * recipe.seed * 1_000_000_007 + part.step) * 1009 + part.rows.start)
        return region_batch(
            [train[row] for row in chosen], [self.proposals[row] for row in chosen],
            len(self.finding.classes), preprocess, recipe.regions, part.size,
            flip=recipe.augment.flip == "random", generator=dice,
        )  # fmt: skip

    def loss(self, model: RegionNetwork, batch: RegionBatch) -> StepResult:
        """The training loss of a batch; its rate is that of regions which were classified right."""
        losses = region_loss(model, batch, self.finding.options)
        return StepResult(losses.total, losses.right * batch.pictures)

    def score(self, model: Any, split: Sequence[Picture], preprocess: Preprocess) -> Answers:
        """What the network finds on every picture of `split`, measured."""
        return self.finding.score(model, split, preprocess)

    def figures(self, answers: Answers) -> dict[str, float]:
        """COCO's figures."""
        return self.finding.figures(answers)

    def plain(self, train: Sequence[Picture], preprocess: Preprocess, recipe: Recipe) -> Iterator[Tensor]:
        """Not offered: `ingredients` refuses a recipe that asks for it."""
        raise ValueError("reestimate_norm is not for R-CNN: leave it out")

    def report(self, about: About, split: Sequence[Picture], answers: Answers | None) -> str:
        """Figures, curves, precision and recall, misses and false alarms."""
        return self.finding.report(about, split, answers)


def load(recipe: Recipe) -> DetectionDataset:
    """The recipe's pictures, as for any detection."""
    return task.load(recipe)


def ingredients(
    recipe: Recipe, data: DetectionDataset, start: Checkpoint | None, state: dict[str, Any] | None
) -> Ingredients:
    """What a run of R-CNN is made of; see `training.tasks.Home`."""
    _check(recipe, data)
    model = start_model(recipe, data, start)
    if min(*recipe.size.sizes, recipe.test_size) < model.min_size:
        hint = ", or model.pools padded" if recipe.model.pools == "ceil" else ""
        raise ValueError(f"regions are too small: {recipe.model.name} needs {model.min_size} pixels at least{hint}")
    preprocess = task.preprocess_of(recipe, data, start, state)
    finding = Finding(recipe.loss, data.classes, ())
    found = training_proposals(recipe.regions, data)
    return Ingredients(RegionFinding(finding, found), model, preprocess, len(data.train), task.digest(data))


def training_proposals(options: Regions, data: DetectionDataset) -> list[Tensor]:
    """Selective search's proposals of each training picture; says on standard error how good they are."""
    search = search_of(options)
    if search is None:
        return [torch.zeros(0, 4)] * len(data.train)
    print(f"searching {len(data.train):,} training pictures for regions, once", file=sys.stderr)
    found = propose((picture.read(data.channels) for picture in data.train), search)
    covered = coverage(found, [picture.boxes[picture.objects] for picture in data.train])
    mean = sum(map(len, found)) / len(found)
    print(f"{mean:.0f} regions a picture; they cover {covered:.1%} of the objects", file=sys.stderr)
    return found


def build_model(recipe: Recipe, num_classes: int, in_channels: int) -> RegionNetwork:
    """The recipe's networks, their weights drawn from the recipe's seed."""
    return _around(recipe, build_network(recipe, num_classes + 1, in_channels), in_channels)


def start_model(recipe: Recipe, data: DetectionDataset, start: Checkpoint | None) -> RegionNetwork:
    """The recipe's networks with the weights of `start`: all, of an R-CNN for the same classes; of a classifier those
    of the region classifier. MultiBox's priors are the typical shapes of the training boxes."""
    if start is not None and start.recipe.task == "detection":
        if not isinstance(start.model, RegionNetwork) or start.classes != data.classes:
            raise ValueError("model.weights: R-CNN starts from a classifier, or from an R-CNN with the same classes")
        model = build_model(recipe, len(data.classes), data.channels)
        load_strictly(model, dict(start.model.state_dict()), f"model.weights: {recipe.model.weights}")
    else:
        network = build_start(recipe, start, (*data.classes, BACKGROUND), data.channels)
        model = _around(recipe, network, data.channels)
    if model.multibox is not None:
        model.multibox.shapes.copy_(typical_shapes(_shares(data.train)))
    freeze(model.backbone, recipe.model.freeze)
    return model


def _around(recipe: Recipe, network: Network, in_channels: int) -> RegionNetwork:
    options = recipe.regions
    seed = recipe.seed if recipe.model.seed is None else recipe.model.seed
    # PyTorch draws some layers before they are filled anew: from a state of their own, others' is left alone.
    with torch.random.fork_rng(devices=[]):
        multibox = None
        if options.multibox:
            trunk = create(MULTIBOX_NETWORK, 1, in_channels, width=options.multibox, pools="padded", seed=seed)
            trunk.reset_classifier(0)
            multibox = MultiBox(trunk, seed=seed)
        return RegionNetwork(network, multibox, options, recipe.detection)


def _shares(pictures: Sequence[Picture]) -> Tensor:
    """All objects' boxes as shares of their pictures, (n, 4)."""
    return torch.cat([
        picture.boxes[picture.objects]
        / torch.tensor([picture.width, picture.height, picture.width, picture.height])
        for picture in pictures
    ])  # fmt: skip


def _check(recipe: Recipe, data: DetectionDataset) -> None:
    """Refuse what R-CNN does not know."""
    task.check(recipe, data)
    if recipe.reestimate_norm is not None:
        raise ValueError("reestimate_norm is not for R-CNN: leave it out")
    if recipe.detection.sizes:
        raise ValueError("detection.sizes is not for R-CNN, whose regions have one size: leave it out")
    if not recipe.regions.search and not recipe.regions.multibox:
        raise ValueError("R-CNN needs proposals: regions.search, regions.multibox or both")
