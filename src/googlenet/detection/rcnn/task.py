"""R-CNN: a training step on labeled region proposals, and the task for `fit`.

Girshick et al., "Rich feature hierarchies for accurate object detection" (R-CNN, 2014), section 2 and appendix A.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou, clip_boxes_to_image

from ...checkpoint.format import Checkpoint, build_network, load_strictly
from ...config.schema import LossConfig, Recipe, RegionsConfig
from ...data.loader import BatchSpec, sample_indices
from ...data.preprocess import Preprocess
from ...models.factory import create_model
from ...models.network import Network
from ...training import distributed
from ...training.finetune import freeze_layers, init_from_checkpoint, run_preprocess
from ...training.tasks.base import LossOutput, TaskSetup
from .. import task
from ..boxes import hflip_boxes, intersection_over_area
from ..data.dataset import DetectionDataset, Sample
from .multibox import MultiBox, encode, kmeans_priors, multibox_loss, preprocess_images
from .network import BBOX_REG_STDS, RCNN, crop_and_resize
from .selective_search import SelectiveSearchConfig, cached_proposals, recall

BACKGROUND = "background"
# Batch normalization lets the new proposal network train at the learning rate of the fine-tuned classifier.
MULTIBOX_MODEL = "googlenet_bn"
# Random boxes near the objects of each image, in addition to the proposals of selective search.
NUM_JITTERED_BOXES = 40
# Regions with at least this IoU with an object are positives of its class, the others are background.
POSITIVE_IOU = 0.5
# Background with at least this IoU with an object is hard to classify (Girshick, "Fast R-CNN", section 2.3).
HARD_NEGATIVE_IOU = 0.1
IGNORED = -1


class LabeledRegions(NamedTuple):
    """Labeled regions of an image: `boxes` (n, 4) in pixels.

    `labels` (n,) are class indices, the number of classes for background, or `IGNORED` inside a crowd. `gt_boxes` (n,
    4) are the objects with the highest `iou` (n,), or the region itself in an image without objects.
    """

    boxes: Tensor
    labels: Tensor
    gt_boxes: Tensor
    iou: Tensor


def assign_labels(
    proposals: Tensor, objects: Tensor, labels: Tensor, crowds: Tensor, background: int
) -> LabeledRegions:
    """Label the `proposals` (n, 4) of an image, and its objects, which are positives too.

    `objects` (m, 4) have class indices `labels` (m,), all below `background`. Background regions inside a box of
    `crowds` (k, 4) are ignored.
    """
    boxes = torch.cat((objects, proposals))
    if len(objects):
        iou, nearest = box_iou(boxes, objects).max(dim=1)
        gt_boxes = objects[nearest]
        region_labels = torch.where(iou >= POSITIVE_IOU, labels[nearest], background)
    else:
        iou, gt_boxes = boxes.new_zeros(len(boxes)), boxes
        region_labels = torch.full((len(boxes),), background, device=boxes.device)
    if len(crowds) and len(boxes):
        in_crowd = intersection_over_area(boxes, crowds).amax(dim=1) >= POSITIVE_IOU
        region_labels = torch.where(in_crowd & (region_labels == background), IGNORED, region_labels)
    return LabeledRegions(boxes, region_labels, gt_boxes, iou)


def sample_regions(
    regions: LabeledRegions, background: int, count: int, config: RegionsConfig, generator: torch.Generator
) -> Tensor:
    """Return the indices of up to `count` regions for a training step.

    `config.positive_fraction` of them are positives (R-CNN: 32 of 128), the others background, of which
    `config.hard_negative_fraction` are hard. If there are too few hard ones, easy ones replace them, and vice versa;
    missing positives are replaced by background.
    """
    is_background = regions.labels == background
    positives = _shuffled(~is_background & (regions.labels != IGNORED), generator)
    hard = _shuffled(is_background & (regions.iou >= HARD_NEGATIVE_IOU), generator)
    easy = _shuffled(is_background & (regions.iou < HARD_NEGATIVE_IOU), generator)
    positives = positives[: round(count * config.positive_fraction)]
    num_negatives = count - len(positives)
    hard = hard[: max(round(num_negatives * config.hard_negative_fraction), num_negatives - len(easy))]
    return torch.cat((positives, hard, easy[: num_negatives - len(hard)]))


def _shuffled(mask: Tensor, generator: torch.Generator) -> Tensor:
    """Return the indices of the true values in random order."""
    indices = mask.nonzero().flatten()
    return indices[torch.randperm(len(indices), generator=generator)]


def jitter_boxes(objects: Tensor, count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Draw `count` random boxes around the objects (n, 4) of an image, clipped to it; none without objects.

    The center is shifted by up to half of the object's size, and each side is scaled by a factor of 1/2 to 2. The boxes
    replace MultiBox proposals, which change during training. Boxes with a side under one pixel are left out.
    """
    if not len(objects):
        return objects
    chosen = objects[torch.randint(len(objects), (count,), generator=generator)]
    size, centers = chosen[:, 2:] - chosen[:, :2], (chosen[:, :2] + chosen[:, 2:]) / 2
    centers = centers + size * (torch.rand(count, 2, generator=generator) - 0.5)
    half = size * torch.exp2(2 * torch.rand(count, 2, generator=generator) - 1) / 2
    boxes: Tensor = clip_boxes_to_image(torch.cat((centers - half, centers + half), dim=1), (height, width))
    return boxes[((boxes[:, 2:] - boxes[:, :2]) >= 1).all(dim=1)]


class RegionBatch(NamedTuple):
    """The regions of a training step: normalized, float (n, channels, size, size).

    `labels`, `boxes` and `gt_boxes` are those of `LabeledRegions`. MultiBox takes the `full_images`, and learns the
    `relative_boxes` of each image: its objects as fractions of it, without crowds.
    """

    regions: Tensor
    labels: Tensor
    boxes: Tensor
    gt_boxes: Tensor
    full_images: Tensor
    relative_boxes: tuple[Tensor, ...]

    @property
    def num_images(self) -> int:
        """Return the number of images that the regions are from."""
        return len(self.relative_boxes)

    def to(self, device: torch.device) -> "RegionBatch":
        """Return the same batch on `device`."""

        tensors, non_blocking = (*self[:5], *self.relative_boxes), device.type == "cuda"
        regions, labels, boxes, *others = (tensor.to(device, non_blocking=non_blocking) for tensor in tensors)
        return RegionBatch(regions, labels, boxes, others[0], others[1], tuple(others[2:]))


class RegionBatchConfig(NamedTuple):
    """How regions become a batch: without the background, resized to `size` pixels, with `flip` randomly flipped."""

    num_classes: int
    preprocess: Preprocess
    regions: RegionsConfig
    size: int
    flip: bool


def region_batch(
    samples: Sequence[Sample], proposals: Sequence[Tensor], config: RegionBatchConfig, generator: torch.Generator
) -> RegionBatch:
    """Sample `regions_per_image` regions per image on average from the `proposals` (n, 4) of all images together."""
    preprocess, size = config.preprocess, config.size
    if not samples:  # with several processes one may have no image in a step
        boxes, regions = torch.zeros(0, 4), torch.zeros(0, preprocess.channels, size, size)
        return RegionBatch(regions, boxes[:, 0].long(), boxes, boxes, preprocess_images([], preprocess), ())
    labeled = []
    for sample, boxes in zip(samples, proposals, strict=True):
        objects = sample.boxes[~sample.crowd]
        jittered = jitter_boxes(objects, NUM_JITTERED_BOXES, sample.height, sample.width, generator)
        labels, crowds = sample.labels[~sample.crowd], sample.boxes[sample.crowd]
        labeled.append(assign_labels(torch.cat((boxes, jittered)), objects, labels, crowds, config.num_classes))
    candidates = LabeledRegions(*map(torch.cat, zip(*labeled, strict=True)))
    count = config.regions.regions_per_image * len(samples)
    chosen = sample_regions(candidates, config.num_classes, count, config.regions, generator)
    chosen = chosen.sort().values  # in the order of the images, each of which is normalized once
    owner = torch.repeat_interleave(torch.tensor([len(regions.labels) for regions in labeled]))[chosen]
    boxes, gt_boxes = candidates.boxes[chosen], candidates.gt_boxes[chosen]
    images = [sample.read(preprocess.channels) for sample in samples]
    padding = config.regions.context_padding
    regions = torch.cat([
        crop_and_resize(preprocess.normalize(image.unsqueeze(0).float())[0], boxes[owner == index], size, padding)
        for index, image in enumerate(images)
    ])  # fmt: skip
    if config.flip:
        flipped = torch.rand(len(boxes), generator=generator) < 0.5
        regions = torch.where(flipped.view(-1, 1, 1, 1), regions.flip(-1), regions)
        gt_boxes = torch.where(flipped.unsqueeze(1), hflip_boxes(gt_boxes, boxes[:, 0] + boxes[:, 2]), gt_boxes)
    full_images = preprocess_images(images if config.regions.multibox_width_mult else [], preprocess)
    relative_boxes = tuple(sample.relative_boxes() for sample in samples)
    return RegionBatch(regions, candidates.labels[chosen], boxes, gt_boxes, full_images, relative_boxes)


class RegionLosses(NamedTuple):
    """The losses, of which `classes` includes auxiliary heads, and the accuracy of the classes; all are scalars."""

    classes: Tensor
    boxes: Tensor
    multibox: Tensor
    accuracy: Tensor

    @property
    def total(self) -> Tensor:
        """Return the loss to differentiate."""
        return self.classes + self.boxes + self.multibox


def region_loss(model: RCNN, batch: RegionBatch, config: LossConfig) -> RegionLosses:
    """Compute cross-entropy, smooth L1 of the positives' boxes, and MultiBox's loss if the model has one."""
    batch = batch.to(next(model.parameters()).device)
    output = model(batch.regions)
    # The losses are divided by at least one, because a process may have no region. The box loss is divided by all
    # regions, so its weight does not grow in steps with few positives.
    count = max(len(batch.labels), 1)

    def cross_entropy(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), batch.labels, reduction="sum") / count

    class_loss = cross_entropy(output.logits)
    for logits in output.aux_logits:
        class_loss = class_loss + config.aux_weight * cross_entropy(logits)
    positive = (batch.labels < model.num_classes).nonzero().flatten()
    targets = encode(batch.gt_boxes[positive], batch.boxes[positive]) / batch.boxes.new_tensor(BBOX_REG_STDS)
    deltas = output.deltas[positive, batch.labels[positive]].float()
    box_loss = F.smooth_l1_loss(deltas, targets, reduction="sum") / count
    proposal_loss, multibox = class_loss.new_zeros(()), model.multibox
    if multibox is not None and len(batch.full_images):
        proposal_loss = multibox_loss(multibox(batch.full_images), multibox.priors, batch.relative_boxes)
    accuracy = (output.logits.detach().argmax(dim=1) == batch.labels).sum() / count
    return RegionLosses(class_loss, box_loss, proposal_loss, accuracy)


@dataclass(frozen=True)
class RCNNTask(task.DetectionTask):
    """Training on regions; `proposals` (n, 4) are those of selective search for each training image."""

    regions: RegionsConfig = field(default_factory=RegionsConfig)
    proposals: Sequence[Tensor] = ()
    monitor: ClassVar[str] = "ap50"  # the metric of 2014

    def batch(self, train: Sequence[Sample], preprocess: Preprocess, spec: BatchSpec) -> RegionBatch:
        """Return regions of the images of `spec`.

        They are drawn for each slice of a batch separately, so they depend on how the batch is split.
        """
        indices = sample_indices(len(train), spec.seed, spec.samples, spec.part).tolist()
        seed = (2 * spec.seed * 1_000_000_007 + spec.step) * 1009 + spec.part.start
        config = RegionBatchConfig(len(self.classes), preprocess, self.regions, spec.size, self.flip)
        samples, proposals = [train[index] for index in indices], [self.proposals[index] for index in indices]
        return region_batch(samples, proposals, config, torch.Generator().manual_seed(seed))

    def loss(self, model: RCNN, batch: RegionBatch) -> LossOutput:
        """Compute the training loss of a batch, and the accuracy of the regions times the number of images."""
        losses = region_loss(model, batch, self.loss_config)
        return LossOutput(losses.total, losses.accuracy * batch.num_images)


load_data = task.load_data


def build_task(
    recipe: Recipe, data: DetectionDataset, init: Checkpoint | None, saved: dict[str, Any] | None
) -> TaskSetup:
    """Return task, networks and preprocessing of an R-CNN run; see `config.tasks.TaskModule`."""
    check_recipe(recipe, data)
    model = init_model(recipe, data, init)
    if min(*recipe.size.sizes, recipe.eval_size) < model.min_size:
        hint = ", or model.pool_mode same" if recipe.model.pool_mode == "ceil" else ""
        raise ValueError(f"size: regions too small: {recipe.model.name} needs at least {model.min_size} pixels{hint}")
    preprocess = run_preprocess(recipe, data, init, saved)
    flip = recipe.augment.flip == "random"
    proposals = distributed.main_process_first(lambda: propose_regions(recipe.regions, data))
    rcnn_task = RCNNTask(recipe.loss, data.classes, sizes=(), flip=flip, regions=recipe.regions, proposals=proposals)
    return TaskSetup(rcnn_task, model, preprocess, len(data.train), task.digest(data))


def propose_regions(regions: RegionsConfig, data: DetectionDataset) -> list[Tensor]:
    """Return the selective-search proposals of each training image; prints their recall on standard error."""
    if not regions.selective_search:
        return [torch.zeros(0, 4)] * len(data.train)
    print(f"selective search on {len(data.train):,} training images", file=sys.stderr)
    images = (sample.read(data.channels) for sample in data.train)
    proposals = cached_proposals(images, SelectiveSearchConfig.from_recipe(regions))
    covered = recall(proposals, [sample.boxes[~sample.crowd] for sample in data.train])
    mean = sum(map(len, proposals)) / len(proposals)
    print(f"{mean:.0f} proposals per image, recall {covered:.1%}", file=sys.stderr)
    return proposals


def build_model(recipe: Recipe, num_classes: int, in_channels: int) -> RCNN:
    """Build the recipe's networks with initial weights from the recipe's seed."""
    return _build_rcnn(recipe, build_network(recipe, num_classes + 1, in_channels), in_channels)


def init_model(recipe: Recipe, data: DetectionDataset, init: Checkpoint | None) -> RCNN:
    """Build the recipe's networks from `init`, if given, an R-CNN or a classifier; set MultiBox's priors."""
    if init is not None and init.recipe.task == "detection":
        if not isinstance(init.model, RCNN) or init.classes != data.classes:
            raise ValueError("model.init_from: R-CNN starts from a classifier, or from an R-CNN with the same classes")
        model = build_model(recipe, len(data.classes), data.channels)
        load_strictly(model, dict(init.model.state_dict()), f"model.init_from: {recipe.model.init_from}")
    else:
        network = init_from_checkpoint(recipe, init, (*data.classes, BACKGROUND), data.channels)
        model = _build_rcnn(recipe, network, data.channels)
    if model.multibox is not None:
        model.multibox.shapes.copy_(kmeans_priors(torch.cat([sample.relative_boxes() for sample in data.train])))
    freeze_layers(model.backbone, recipe.model.freeze)
    return model


def _build_rcnn(recipe: Recipe, network: Network, in_channels: int) -> RCNN:
    """Build an R-CNN around its region classifier."""
    width_mult = recipe.regions.multibox_width_mult
    seed = recipe.seed if recipe.model.seed is None else recipe.model.seed
    # PyTorch draws initial weights of some layers from the global generator: restore it afterwards.
    with torch.random.fork_rng(devices=[]):
        multibox = None
        if width_mult:
            trunk = create_model(MULTIBOX_MODEL, 1, in_channels, width_mult=width_mult, pool_mode="same", seed=seed)
            trunk.reset_classifier(0)
            multibox = MultiBox(trunk, seed=seed)
        return RCNN(network, multibox, recipe.regions, recipe.detection)


def check_recipe(recipe: Recipe, data: DetectionDataset) -> None:
    """Raise ValueError for options that R-CNN does not have."""
    task.check_recipe(recipe, data)
    if recipe.precise_bn_batches is not None:
        raise ValueError("R-CNN does not support precise_bn_batches: leave it unset")
    if recipe.detection.test_sizes:
        raise ValueError("R-CNN does not support detection.test_sizes, as its regions have one size: leave it unset")
    if not recipe.regions.selective_search and not recipe.regions.multibox_width_mult:
        raise ValueError("R-CNN needs proposals: set regions.selective_search or regions.multibox_width_mult")
