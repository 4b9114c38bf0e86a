"""FCOS: a one-stage head that predicts a class, a box and a centerness at each location of each level.

"FCOS: Fully Convolutional One-Stage Object Detection" (Tian et al., 2019) with its later center sampling, the
generalized IoU loss ("Generalized Intersection over Union", Rezatofighi et al., 2019) and the focal loss ("Focal Loss
for Dense Object Detection", Lin et al., 2017).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image, generalized_box_iou_loss, sigmoid_focal_loss

from ...config.schema import DetectionConfig
from ...errors import NonFiniteLossError
from ...training.tasks.base import LossOutput
from .. import fpn
from ..boxes import batched_nms
from ..data.dataset import DetectionBatch, Detections, Target
from ..fpn import FeatureLevel
from . import DetectionHead

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
# A location is a positive of an object if it is within this many strides of the object's center.
CENTER_SAMPLING_RADIUS = 1.5
# Largest number of candidates that enter non-maximum suppression.
TOPK_CANDIDATES = 1000
# Initial probability of each class at each location (focal loss, section 4.1).
PRIOR_PROBABILITY = 0.01


class HeadOutput(NamedTuple):
    """The output at the locations of all levels: class `logits` (n, locations, classes), `boxes` (n, locations, 4) in
    pixels, `centerness` before the sigmoid (n, locations), `locations` x, y in pixels, and their level's `strides`."""

    logits: Tensor
    boxes: Tensor
    centerness: Tensor
    locations: Tensor
    strides: Tensor

    @property
    def scores(self) -> Tensor:
        """Return the geometric mean of class probability and centerness, (n, locations, classes)."""
        return (self.logits.sigmoid() * self.centerness.sigmoid().unsqueeze(2)).sqrt()


class Assignment(NamedTuple):
    """The object's index at each location (-1 for background), and whether it is `valid` for the class loss."""

    gt_index: Tensor
    valid: Tensor


def assign(locations: Tensor, strides: Tensor, target: Target, regress_range: float) -> Assignment:
    """Assign to each of the `locations` (n, 2) the smallest object that it can detect.

    A location can detect an object if it is inside the box, within `CENTER_SAMPLING_RADIUS` strides of its center, and
    if the box's farthest side is at a distance of `regress_range` / 2 to `regress_range` strides. The finest level
    also takes smaller objects, the coarsest larger ones. Background locations inside a crowd box are not valid.
    """
    boxes, points = target.boxes, locations.unsqueeze(1)
    distances = torch.cat((points - boxes[:, :2], boxes[:, 2:] - points), dim=2)
    inside = distances.amin(dim=2) > 0
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    near_center = (points - centers).abs().amax(dim=2) < CENTER_SAMPLING_RADIUS * strides.unsqueeze(1)
    farthest = distances.amax(dim=2)
    lower = torch.where(strides == strides.min(), 0.0, regress_range / 2 * strides).unsqueeze(1)
    upper = torch.where(strides == strides.max(), math.inf, regress_range * strides).unsqueeze(1)
    fits = inside & near_center & (farthest >= lower) & (farthest <= upper) & ~target.crowd
    if not len(boxes):
        background = torch.full((len(locations),), -1, device=locations.device)
        return Assignment(background, torch.ones_like(background, dtype=torch.bool))
    areas = torch.where(fits, (boxes[:, 2:] - boxes[:, :2]).prod(dim=1), math.inf)
    smallest, nearest = areas.min(dim=1)
    gt_index = torch.where(smallest.isinf(), -1, nearest)
    in_crowd = (inside & target.crowd).any(dim=1)
    return Assignment(gt_index, ~in_crowd | (gt_index >= 0))


class FCOSHead(DetectionHead):
    """Two towers of convolutions, shared by all levels: one for classes, one for boxes and centerness."""

    def __init__(self, config: DetectionConfig, num_classes: int, strides: Sequence[int]):
        super().__init__()
        self.config = config
        channels = config.neck_channels
        self.class_tower, self.box_tower = _tower(channels, config.head_convs), _tower(channels, config.head_convs)
        self.cls_logits = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.bbox_reg = nn.Conv2d(channels, 4, 3, padding=1)
        self.bbox_ctrness = nn.Conv2d(channels, 1, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(len(strides)))
        # Initially every class is unlikely, and the sides are two strides away.
        prior = -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY)
        for layer, bias in ((self.cls_logits, prior), (self.bbox_reg, math.log(2.0)), (self.bbox_ctrness, 0.0)):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.bias, bias)  # type: ignore[arg-type]

    def forward(self, levels: Sequence[FeatureLevel], height: int, width: int) -> HeadOutput:
        """Compute the output for the levels of images of `height` x `width`."""
        logits, boxes, centerness, locations, strides = [], [], [], [], []
        for index, level in enumerate(levels):
            class_features, box_features = self.class_tower(level.features), self.box_tower(level.features)
            logits.append(_flatten(self.cls_logits(class_features)))
            # Coordinates are computed in float32, also under autocast.
            bbox_reg = _flatten(self.bbox_reg(box_features)).float() * self.scales[index]
            distances = bbox_reg.clamp(max=8.0).exp() * level.stride
            centers = fpn.locations(level, height, width)
            boxes.append(torch.cat((centers - distances[..., :2], centers + distances[..., 2:]), dim=2))
            centerness.append(_flatten(self.bbox_ctrness(box_features))[..., 0])
            locations.append(centers)
            strides.append(torch.full((len(centers),), float(level.stride), device=centers.device))
        all_logits, all_centerness = torch.cat(logits, dim=1).float(), torch.cat(centerness, dim=1).float()
        return HeadOutput(all_logits, torch.cat(boxes, dim=1), all_centerness, torch.cat(locations), torch.cat(strides))

    def losses(self, levels: Sequence[FeatureLevel], batch: DetectionBatch) -> LossOutput:
        """Sum the focal loss of the classes, the generalized IoU loss of the boxes, and the centerness cross-entropy.

        Each is divided by the number of positive locations. Without any object only the class loss remains.
        """
        output = self(levels, batch.images.shape[-2], batch.images.shape[-1])
        if not batch.targets:
            return LossOutput(output.logits.sum() * 0 + output.boxes.sum() * 0, output.logits.new_zeros(()))
        regress_range = self.config.regress_range
        assignments = [assign(output.locations, output.strides, target, regress_range) for target in batch.targets]
        gt_index, valid = map(torch.stack, zip(*assignments, strict=True))
        positive = gt_index >= 0
        num_positive = positive.sum().clamp_min(1)
        # `gt_index` counts within an image, `matched` within all targets of the batch.
        starts = torch.tensor([0, *(len(target.labels) for target in batch.targets)]).cumsum(0)[:-1]
        matched = (gt_index + starts.to(gt_index.device).unsqueeze(1))[positive]
        labels = torch.cat([target.labels for target in batch.targets])
        class_targets = torch.zeros_like(output.logits)
        class_targets[positive] = F.one_hot(labels[matched], output.logits.shape[2]).to(class_targets.dtype)
        class_loss = sigmoid_focal_loss(output.logits, class_targets, FOCAL_ALPHA, FOCAL_GAMMA) * valid.unsqueeze(2)
        box_targets = torch.cat([target.boxes for target in batch.targets])[matched]
        centerness = _centerness(output.locations.expand(len(gt_index), -1, -1)[positive], box_targets)
        box_loss = generalized_box_iou_loss(output.boxes[positive], box_targets) * centerness
        centerness_loss = F.binary_cross_entropy_with_logits(output.centerness[positive], centerness, reduction="sum")
        loss = class_loss.sum() / num_positive + box_loss.sum() / centerness.sum().clamp_min(1e-6)
        loss = loss + centerness_loss / num_positive
        correct = (output.logits.detach().argmax(dim=2) == class_targets.argmax(dim=2)) & positive
        fraction = correct.sum(dim=1) / positive.sum(dim=1).clamp_min(1)
        return LossOutput(loss, torch.where(positive.any(dim=1), fraction, 1.0).sum())

    def detect(self, levels: Sequence[FeatureLevel], batch: DetectionBatch) -> list[Detections]:
        """Return the detections on each image; see `postprocess`. NonFiniteLossError for non-finite outputs."""
        output = self(levels, batch.images.shape[-2], batch.images.shape[-1])
        # Thresholds would omit such boxes without a word.
        if not (output.scores.isfinite().all() and output.boxes.isfinite().all()):
            raise NonFiniteLossError("non-finite boxes: the weights are corrupt or training diverged")
        return [
            postprocess(clip_boxes_to_image(boxes, size), scores, self.config)
            for boxes, scores, size in zip(output.boxes, output.scores, batch.sizes, strict=True)
        ]


build_head = FCOSHead


def postprocess(boxes: Tensor, scores: Tensor, config: DetectionConfig) -> Detections:
    """Select the detections of an image from `boxes` (locations, 4) and `scores` (locations, classes).

    All shapes before the non-maximum suppression are fixed, so that this function can be exported.
    """
    num_classes = scores.shape[1]
    top_scores, indices = scores.flatten().topk(min(TOPK_CANDIDATES, scores.numel()))
    candidates = Detections(boxes[indices // num_classes], top_scores, indices % num_classes)
    candidates = candidates.select(batched_nms(*candidates, config.nms_iou))
    nonempty = ((candidates.boxes[:, 2:] - candidates.boxes[:, :2]) > 0).all(dim=1)
    valid = (candidates.scores > config.score_threshold) & nonempty
    return candidates.select(valid).select(slice(config.max_detections))


def _centerness(locations: Tensor, boxes: Tensor) -> Tensor:
    """Return the centerness targets: 1 at the center of the box, 0 at its sides (FCOS, section 3.3)."""
    left_top, right_bottom = (locations - boxes[:, :2]).clamp_min(0), (boxes[:, 2:] - locations).clamp_min(0)
    ratios = torch.minimum(left_top, right_bottom) / torch.maximum(left_top, right_bottom).clamp_min(1e-6)
    return ratios.prod(dim=1).sqrt()


def _tower(channels: int, num_convs: int) -> nn.Sequential:
    """Build convolutions with group normalization, which does not depend on the batch size."""
    layers: list[nn.Module] = []
    for _ in range(num_convs):
        layers += [nn.Conv2d(channels, channels, 3, padding=1, bias=False)]
        layers += [nn.GroupNorm(math.gcd(channels, 16), channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _flatten(maps: Tensor) -> Tensor:
    """Convert (n, channels, h, w) to (n, h * w, channels)."""
    return maps.flatten(2).transpose(1, 2)
