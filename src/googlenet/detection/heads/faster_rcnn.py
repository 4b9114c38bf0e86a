"""torchvision's Faster R-CNN as a head: region proposals on every level, and a second stage that classifies them.

"Faster R-CNN" (Ren et al., 2015) on a feature pyramid. Anchors, matching, sampling and losses are torchvision's.
"""

from collections import OrderedDict
from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops import MultiScaleRoIAlign

from ...config.schema import DetectionConfig
from ...training.tasks.base import LossOutput
from ..data.dataset import DetectionBatch, Detections
from ..fpn import FeatureLevel
from . import DetectionHead

ROI_SIZE, HIDDEN_CHANNELS = 7, 512
# Height-to-width ratios of the anchors (Faster R-CNN, section 3.1.1).
ASPECT_RATIOS = (0.5, 1.0, 2.0)


class FasterRCNNHead(DetectionHead):
    """torchvision's region proposal network and RoI heads; anchors are `config.regress_range` strides wide."""

    def __init__(self, config: DetectionConfig, num_classes: int, strides: Sequence[int]):
        super().__init__()
        anchor_sizes = tuple((int(config.regress_range * stride),) for stride in strides)
        model = FasterRCNN(
            SimpleNamespace(out_channels=config.neck_channels),  # all that the constructor reads of a backbone
            rpn_anchor_generator=AnchorGenerator(anchor_sizes, (ASPECT_RATIOS,) * len(strides)),
            box_roi_pool=MultiScaleRoIAlign([str(stride) for stride in strides], ROI_SIZE, sampling_ratio=2),
            box_head=TwoMLPHead(config.neck_channels * ROI_SIZE**2, HIDDEN_CHANNELS),
            box_predictor=FastRCNNPredictor(HIDDEN_CHANNELS, num_classes + 1),  # class 0 is the background
            rpn_pre_nms_top_n_train=1000, rpn_post_nms_top_n_train=500,
            rpn_pre_nms_top_n_test=500, rpn_post_nms_top_n_test=200, box_batch_size_per_image=128,
            box_score_thresh=config.score_threshold, box_nms_thresh=config.nms_iou,
            box_detections_per_img=config.max_detections,
        )  # fmt: skip
        self.rpn, self.roi_heads = model.rpn, model.roi_heads

    def losses(self, levels: Sequence[FeatureLevel], batch: DetectionBatch) -> LossOutput:
        """Sum the four losses of the paper; crowd boxes are left out of the targets."""
        if not batch.targets:
            return LossOutput(sum((level.features.sum() for level in levels), torch.zeros(())) * 0, torch.zeros(()))
        targets = [{"boxes": t.boxes[~t.crowd], "labels": t.labels[~t.crowd] + 1} for t in batch.targets]
        images, maps = _torchvision_inputs(levels, batch)
        proposals, rpn_losses = self.rpn(images, maps, targets)
        proposals, _, labels, box_targets = self.roi_heads.select_training_samples(proposals, targets)
        features = self.roi_heads.box_head(self.roi_heads.box_roi_pool(maps, proposals, images.image_sizes))
        logits, box_regression = self.roi_heads.box_predictor(features)
        class_loss, box_loss = fastrcnn_loss(logits.float(), box_regression.float(), labels, box_targets)
        loss = class_loss + box_loss + sum(rpn_losses.values())
        return LossOutput(loss, _correct_fraction(logits.detach(), labels))

    def detect(self, levels: Sequence[FeatureLevel], batch: DetectionBatch) -> list[Detections]:
        """Return the detections on each image, in pixels of the batch, best first."""
        images, maps = _torchvision_inputs(levels, batch)
        outputs, _ = self.roi_heads(maps, self.rpn(images, maps)[0], images.image_sizes)
        return [Detections(output["boxes"], output["scores"], output["labels"] - 1) for output in outputs]


build_head = FasterRCNNHead


def _torchvision_inputs(
    levels: Sequence[FeatureLevel], batch: DetectionBatch
) -> tuple[ImageList, OrderedDict[str, Tensor]]:
    """Return images and feature maps as torchvision's modules take them, in float32."""
    maps = OrderedDict((str(level.stride), level.features.float()) for level in levels)
    return ImageList(batch.images, list(batch.sizes)), maps


def _correct_fraction(logits: Tensor, labels: list[Tensor]) -> Tensor:
    """Return the fraction of an image's positive regions with the correct class, summed over the images."""
    fractions = []
    predictions = torch.split(logits.argmax(dim=1), [len(target) for target in labels])
    for predicted, target in zip(predictions, labels, strict=True):
        correct, positive = predicted == target, target > 0
        fractions.append(torch.where(positive.any(), (correct & positive).sum() / positive.sum().clamp_min(1), 1.0))
    return torch.stack(fractions).sum()
