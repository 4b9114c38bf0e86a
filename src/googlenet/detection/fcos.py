"""A one-stage head: every position of every level says which class it sees, and how far away its box's sides are.

"FCOS: Fully Convolutional One-Stage Object Detection" (Tian et al., 2019), with its later centre sampling and
generalised IoU loss ("Generalized Intersection over Union", Rezatofighi et al., 2019) and the focal loss ("Focal Loss
for Dense Object Detection", Lin et al., 2017).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from .batch import DetectionBatch, Target
from .boxes import batched_nms, clip
from .dataset import Detections
from .pyramid import Level, centres

ALPHA, GAMMA = 0.25, 2.0
# A position counts for a box where it is within so many strides of the box's centre.
RADIUS = 1.5
# Candidates that go into non-maximum suppression, at most.
CANDIDATES = 1000
# What a position says before it has learnt anything: an object of a class is this likely (focal loss, section 4.1).
PRIOR = 0.01


class Predicted(NamedTuple):
    """Of all positions of all levels: class `logits` (n, positions, classes), `boxes` (n, positions, 4) in pixels,
    the logit of being at the box's centre (n, positions); where the positions look, and their strides."""

    logits: Tensor
    boxes: Tensor
    centreness: Tensor
    places: Tensor
    strides: Tensor

    @property
    def scores(self) -> Tensor:
        """Of each position and class the geometric mean of the class's probability and the centreness."""
        return (self.logits.sigmoid() * self.centreness.sigmoid().unsqueeze(2)).sqrt()


class Losses(NamedTuple):
    """The `total` to differentiate; of each picture the share of its objects' positions that know their class, summed
    over the pictures."""

    total: Tensor
    hits: Tensor


class Assigned(NamedTuple):
    """What each position shall say: the number of its object, or -1 for none; whether it is asked at all."""

    objects: Tensor
    asked: Tensor


def assign(places: Tensor, strides: Tensor, target: Target, reach: float) -> Assigned:
    """The object of each of the `places` (positions, 2), the smallest of those it may have.

    It may have one whose sides lie around it, whose centre is within `RADIUS` strides, and whose furthest side is no
    nearer than half of, and no further than, `reach` strides (the finest level takes all smaller ones, the coarsest
    all larger ones). A position in a crowd that has no object is not asked.
    """
    boxes = target.boxes
    x, y = places[:, :1], places[:, 1:]
    sides = torch.stack((x - boxes[:, 0], y - boxes[:, 1], boxes[:, 2] - x, boxes[:, 3] - y), dim=2)
    inside = sides.amin(dim=2) > 0
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    near = (places.unsqueeze(1) - middle).abs().amax(dim=2) < RADIUS * strides.unsqueeze(1)
    furthest = sides.amax(dim=2)
    least = torch.where(strides == strides.min(), 0.0, reach / 2 * strides).unsqueeze(1)
    most = torch.where(strides == strides.max(), math.inf, reach * strides).unsqueeze(1)
    fits = inside & near & (furthest >= least) & (furthest <= most) & ~target.crowd
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    sizes = torch.where(fits, areas, math.inf)
    if not len(boxes):
        nothing = torch.full((len(places),), -1, device=places.device)
        return Assigned(nothing, torch.ones_like(nothing, dtype=torch.bool))
    smallest, chosen = sizes.min(dim=1)
    objects = torch.where(smallest.isinf(), -1, chosen)
    in_crowd = (inside & target.crowd).any(dim=1)
    return Assigned(objects, ~in_crowd | (objects >= 0))


class FCOSHead(nn.Module):
    """Two towers of `depth` convolutions, shared by all `levels`: one for classes, one for boxes and centreness.

    `reach`, `threshold`, `overlap` and `most` are those of the recipe.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        levels: int,
        *,
        depth: int,
        reach: float,
        threshold: float,
        overlap: float,
        most: int,
    ):
        super().__init__()
        self.reach, self.threshold, self.overlap, self.most = reach, threshold, overlap, most
        self.class_tower, self.box_tower = _tower(channels, depth), _tower(channels, depth)
        self.classes = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.sides = nn.Conv2d(channels, 4, 3, padding=1)
        self.centre = nn.Conv2d(channels, 1, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(levels))
        # Every class unlikely everywhere, sides of about two strides.
        for layer in (self.classes, self.sides, self.centre):
            nn.init.normal_(layer.weight, std=0.01)
        starts = ((self.classes, -math.log((1 - PRIOR) / PRIOR)), (self.sides, math.log(2.0)), (self.centre, 0.0))
        for layer, bias in starts:
            assert layer.bias is not None
            nn.init.constant_(layer.bias, bias)

    def forward(self, levels: Sequence[Level], height: int, width: int) -> Predicted:
        """What the levels of pictures of `height` x `width` say."""
        logits, boxes, centreness, places, strides = [], [], [], [], []
        for number, level in enumerate(levels):
            seen, shape = self.class_tower(level.features), self.box_tower(level.features)
            logits.append(_rows(self.classes(seen)))
            # In mixed precision too, coordinates are computed in float32.
            sides = (_rows(self.sides(shape)).float() * self.scales[number]).clamp(max=8.0).exp() * level.stride
            where = centres(level, height, width)
            boxes.append(torch.cat((where - sides[..., :2], where + sides[..., 2:]), dim=2))
            centreness.append(_rows(self.centre(shape))[..., 0])
            places.append(where)
            strides.append(torch.full((len(where),), float(level.stride), device=where.device))
        return Predicted(
            torch.cat(logits, dim=1).float(),
            torch.cat(boxes, dim=1),
            torch.cat(centreness, dim=1).float(),
            torch.cat(places),
            torch.cat(strides),
        )

    def losses(self, levels: Sequence[Level], batch: DetectionBatch) -> Losses:
        """Focal loss of the classes, generalised IoU of the boxes, cross-entropy of the centreness.

        Each is divided by the number of positions that have an object. Sane for pictures without any: no box is asked
        for, and every class is to be unlikely.
        """
        said = self(levels, batch.images.shape[-2], batch.images.shape[-1])
        assigned = [assign(said.places, said.strides, target, self.reach) for target in batch.targets]
        if not assigned:
            return Losses(said.logits.sum() * 0 + said.boxes.sum() * 0, said.logits.new_zeros(()))
        objects = torch.stack([one.objects for one in assigned])
        asked = torch.stack([one.asked for one in assigned])
        has = objects >= 0
        count = has.sum().clamp_min(1)
        wanted = torch.zeros_like(said.logits)
        labels = torch.cat([one.labels for one in batch.targets])
        first = torch.tensor([0, *(len(one.labels) for one in batch.targets)]).cumsum(0)[:-1]
        which = (objects + first.to(objects.device).unsqueeze(1))[has]
        wanted[has] = F.one_hot(labels[which], said.logits.shape[2]).to(wanted.dtype)
        focal = sigmoid_focal_loss(said.logits, wanted, ALPHA, GAMMA) * asked.unsqueeze(2)
        truth = torch.cat([one.boxes for one in batch.targets])[which]
        where = said.places.expand(len(objects), -1, -1)[has]
        centre = _centreness(where, truth)
        overlap = generalized_box_iou_loss(said.boxes[has], truth) * centre
        at_centre = F.binary_cross_entropy_with_logits(said.centreness[has], centre, reduction="sum")
        total = focal.sum() / count + overlap.sum() / centre.sum().clamp_min(1e-6) + at_centre / count
        right = (said.logits.detach().argmax(dim=2) == wanted.argmax(dim=2)) & has
        share = right.sum(dim=1) / has.sum(dim=1).clamp_min(1)
        return Losses(total, torch.where(has.any(dim=1), share, 1.0).sum())

    def detect(self, levels: Sequence[Level], batch: DetectionBatch) -> list[Detections]:
        """The boxes on each picture, in the batch's pixels, best first; see `suppressed`."""
        said = self(levels, batch.images.shape[-2], batch.images.shape[-1])
        scores = said.scores
        return [
            suppressed(clip(boxes, *size), mine, self.threshold, self.overlap, self.most)
            for boxes, mine, size in zip(said.boxes, scores, batch.sizes, strict=True)
        ]


def suppressed(boxes: Tensor, scores: Tensor, threshold: float, overlap: float, most: int) -> Detections:
    """Boxes (positions, 4) with the scores of each class (positions, classes) -> the best, one for each object.

    Candidates score more than `threshold`; of two of a class that overlap by more than `overlap` the better remains;
    `most` remain at last. Every operation but the last is of a fixed size, so that the same code can be exported.
    """
    classes = scores.shape[1]
    score, place = scores.flatten().topk(min(CANDIDATES, scores.numel()))
    chosen, label = boxes[place // classes], place % classes
    kept = batched_nms(chosen, score, label, overlap)
    chosen, score, label = chosen[kept], score[kept], label[kept]
    real = (score > threshold) & ((chosen[:, 2:] - chosen[:, :2]) > 0).all(dim=1)
    return Detections(chosen[real][:most], score[real][:most], label[real][:most])


def _centreness(places: Tensor, boxes: Tensor) -> Tensor:
    """1 at the centre of a box, 0 at its sides (FCOS, section 3.3)."""
    before, behind = (places - boxes[:, :2]).clamp_min(0), (boxes[:, 2:] - places).clamp_min(0)
    shares = torch.minimum(before, behind) / torch.maximum(before, behind).clamp_min(1e-6)
    return shares.prod(dim=1).sqrt()


def _tower(channels: int, depth: int) -> nn.Sequential:
    """Convolutions with group normalisation, which is the same for large and small batches."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Conv2d(channels, channels, 3, padding=1, bias=False)]
        layers += [nn.GroupNorm(math.gcd(channels, 16), channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _rows(maps: Tensor) -> Tensor:
    """(n, channels, h, w) -> (n, h * w, channels)."""
    return maps.flatten(2).transpose(1, 2)
