"""A detector: a network of the family as backbone, a feature pyramid, and a head."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.schema import DetectionConfig
from ..models.network import Network
from ..training.tasks.base import LossOutput
from .data.dataset import DetectionBatch, Detections
from .fpn import FeatureLevel, build_fpn, fpn_stages
from .heads import build_head


class Detector(nn.Module):
    """A detector whose `backbone` keeps its auxiliary heads, which learn the classes that are present in an image."""

    def __init__(self, backbone: Network, num_classes: int, config: DetectionConfig):
        super().__init__()
        aux_heads = backbone.aux_heads
        backbone.reset_classifier(0)
        backbone.aux_heads = aux_heads  # `reset_classifier` has removed them with the classifier
        self.backbone, self.num_classes, self.min_size = backbone, num_classes, backbone.min_size
        self.config = config
        self.stages = fpn_stages(backbone, deepest_only=config.neck == "none")
        self.neck = build_fpn(self.stages, config.neck_channels)
        self.head = build_head(config, num_classes, [stage.stride for stage in self.stages])

    def levels(self, images: Tensor) -> tuple[list[FeatureLevel], tuple[Tensor, ...]]:
        """Return the feature levels of images (n, channels, h, w), fine to coarse, and the auxiliary logits."""
        device = next(self.parameters()).device
        maps, aux_logits = self.backbone.features_aux(images.to(device, non_blocking=device.type == "cuda"))
        features = self.neck({stage.name: maps[stage.name] for stage in self.stages})
        return [FeatureLevel(features[stage.name], stage.stride) for stage in self.stages], aux_logits

    def losses(self, batch: DetectionBatch, aux_weight: float = 0.0) -> LossOutput:
        """Return the head's loss plus `aux_weight` times that of each auxiliary head."""
        batch = batch.to(next(self.parameters()).device)
        levels, aux_logits = self.levels(batch.images)
        loss, correct = self.head.losses(levels, batch)
        present = torch.zeros(len(batch.targets), self.num_classes, device=batch.images.device)
        for row, target in zip(present, batch.targets, strict=True):
            row[target.labels] = 1.0
        for logits in aux_logits:
            loss = loss + aux_weight * F.binary_cross_entropy_with_logits(logits.float(), present)
        return LossOutput(loss, correct)

    def detect(self, batch: DetectionBatch) -> list[Detections]:
        """Return the detections on each image, in pixels of the batch, best first."""
        return self.head.detect(self.levels(batch.images)[0], batch)

    def forward(self, images: Tensor) -> list[Detections]:
        """Detect objects on images (n, channels, h, w) without padding; h and w are multiples of 32."""
        size = (int(images.shape[-2]), int(images.shape[-1]))
        return self.detect(DetectionBatch(images, (size,) * len(images), ()))

    def forward_aux(self, images: Tensor) -> list[FeatureLevel]:
        """Run all layers with batch normalization, to recompute its statistics."""
        return self.levels(images)[0]
