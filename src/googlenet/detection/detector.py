"""A network of the family, the pyramid over it and a head: pixels -> boxes."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.transfer import send
from ..models.network import Network
from ..training.recipe import Detection
from .batch import DetectionBatch
from .dataset import Detections
from .fcos import FCOSHead
from .pyramid import Level, Pyramid, fused_stages
from .two_stage import RegionHead


class Step(NamedTuple):
    """The `loss` to differentiate, and the share of the objects whose class was seen, summed over the pictures."""

    loss: Tensor
    hits: Tensor


class Detector(nn.Module):
    """Finds objects of `num_classes` classes.

    `backbone` is a network of the family without its classifier; where it has auxiliary heads they learn which
    classes a picture has, with the weight that `losses` is given. `min_size` is the backbone's.
    """

    def __init__(self, backbone: Network, num_classes: int, options: Detection):
        super().__init__()
        side_heads = backbone.aux_heads
        backbone.reset_classifier(0)
        backbone.aux_heads = side_heads
        self.backbone, self.num_classes, self.min_size = backbone, num_classes, backbone.min_size
        self.options = options
        stages = fused_stages(backbone, deepest_only=options.maps == "deepest")
        self.pyramid = Pyramid(stages, options.channels)
        choices = {key: getattr(options, key) for key in ("reach", "threshold", "overlap", "most")}
        self.head: FCOSHead | RegionHead
        if options.head == "fcos":
            self.head = FCOSHead(options.channels, num_classes, len(stages), depth=options.depth, **choices)
        else:
            self.head = RegionHead(options.channels, num_classes, [stage.stride for stage in stages], **choices)

    def levels(self, images: Tensor) -> tuple[list[Level], tuple[Tensor, ...]]:
        """The pyramid's levels of (n, channels, h, w), and the logits of the auxiliary heads."""
        maps, aux = self.backbone.features_aux(send(images, next(self.parameters()).device))
        return self.pyramid(maps), aux

    def losses(self, batch: DetectionBatch, aux_weight: float = 0.0) -> Step:
        """The head's loss, and `aux_weight` times that of each auxiliary head."""
        batch = batch.to(next(self.parameters()).device)
        levels, aux = self.levels(batch.images)
        loss, hits = self.head.losses(levels, batch)
        for logits in aux:
            loss = loss + aux_weight * F.binary_cross_entropy_with_logits(logits.float(), self._there(batch))
        return Step(loss, hits)

    def detect(self, batch: DetectionBatch) -> list[Detections]:
        """The boxes on each picture, in the batch's pixels, best first."""
        return self.head.detect(self.levels(batch.images)[0], batch)

    def forward(self, images: Tensor) -> list[Detections]:
        """The boxes on each of `images` (n, channels, h, w), which fill the batch; h and w multiples of 32."""
        size = (int(images.shape[-2]), int(images.shape[-1]))
        return self.detect(DetectionBatch(images, (size,) * len(images), ()))

    def forward_aux(self, images: Tensor) -> list[Level]:
        """Everything that has statistics, once; the levels."""
        return self.levels(images)[0]

    def _there(self, batch: DetectionBatch) -> Tensor:
        """Which classes each picture has, as 0 or 1: float (n, num_classes)."""
        there = torch.zeros(len(batch.targets), self.num_classes, device=batch.images.device)
        for row, target in zip(there, batch.targets, strict=True):
            row[target.labels] = 1.0
        return there
