"""torchvision's Faster R-CNN as a head: proposals from every level, each looked at once more.

"Faster R-CNN" (Ren et al., 2015) on a pyramid. Anchors, matching, sampling and losses are torchvision's; the pyramid
under it, and the batches, are those of the one-stage head.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops import MultiScaleRoIAlign

from .batch import DetectionBatch
from .dataset import Detections
from .fcos import Losses
from .pyramid import Level

POOLED, HIDDEN = 7, 512
# Shapes of the anchors, height to width, as in the paper.
RATIOS = (0.5, 1.0, 2.0)


class _Channels(nn.Module):
    """What torchvision asks a backbone for when it makes the rest."""

    def __init__(self, out_channels: int):
        super().__init__()
        self.out_channels = out_channels


class RegionHead(nn.Module):
    """Region proposals and the classifier of regions, for levels of the given `strides`.

    A level's anchors are `reach` strides wide. `threshold`, `overlap` and `most` are those of the recipe.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        strides: Sequence[int],
        *,
        reach: float,
        threshold: float,
        overlap: float,
        most: int,
    ):
        super().__init__()
        names = [str(stride) for stride in strides]
        made = FasterRCNN(
            _Channels(channels),
            rpn_anchor_generator=AnchorGenerator(
                tuple((int(reach * stride),) for stride in strides), (RATIOS,) * len(strides)
            ),
            box_roi_pool=MultiScaleRoIAlign(names, output_size=POOLED, sampling_ratio=2),
            box_head=TwoMLPHead(channels * POOLED**2, HIDDEN),
            box_predictor=FastRCNNPredictor(HIDDEN, num_classes + 1),  # the first class is none
            rpn_pre_nms_top_n_train=1000,
            rpn_post_nms_top_n_train=500,
            rpn_pre_nms_top_n_test=500,
            rpn_post_nms_top_n_test=200,
            box_batch_size_per_image=128,
            box_score_thresh=threshold,
            box_nms_thresh=overlap,
            box_detections_per_img=most,
        )
        self.proposals, self.regions = made.rpn, made.roi_heads

    def losses(self, levels: Sequence[Level], batch: DetectionBatch) -> Losses:
        """The four losses of the paper, summed; crowds are left out of the truth."""
        targets = [{"boxes": one.boxes[~one.crowd], "labels": one.labels[~one.crowd] + 1} for one in batch.targets]
        if not targets:
            return Losses(sum((level.features.sum() for level in levels), torch.zeros(())) * 0, torch.zeros(()))
        images, maps = self._seen(levels, batch)
        proposals, lost = self.proposals(images, maps, targets)
        regions, _, labels, shifts = self.regions.select_training_samples(proposals, targets)
        seen = self.regions.box_head(self.regions.box_roi_pool(maps, regions, images.image_sizes))
        logits, moved = self.regions.box_predictor(seen)
        class_loss, box_loss = fastrcnn_loss(logits.float(), moved.float(), labels, shifts)
        total = class_loss + box_loss + sum(lost.values())
        return Losses(total, _hits(logits.detach(), labels))

    def detect(self, levels: Sequence[Level], batch: DetectionBatch) -> list[Detections]:
        """The boxes on each picture, in the batch's pixels, best first."""
        images, maps = self._seen(levels, batch)
        proposals, _ = self.proposals(images, maps)
        found, _ = self.regions(maps, proposals, images.image_sizes)
        return [Detections(one["boxes"], one["scores"], one["labels"] - 1) for one in found]

    def _seen(self, levels: Sequence[Level], batch: DetectionBatch) -> tuple[ImageList, OrderedDict[str, Tensor]]:
        """The pictures and the levels, as torchvision passes them about; in float32."""
        maps = OrderedDict((str(level.stride), level.features.float()) for level in levels)
        return ImageList(batch.images, list(batch.sizes)), maps


def _hits(logits: Tensor, labels: list[Tensor]) -> Tensor:
    """Of each picture the share of its regions with an object that are classified right, summed over the pictures."""
    shares = []
    for said, truth in zip(torch.split(logits, [len(one) for one in labels]), labels, strict=True):
        has = truth > 0
        right = (said.argmax(dim=1) == truth) & has
        shares.append(torch.where(has.any(), right.sum() / has.sum().clamp_min(1), 1.0))
    return torch.stack(shares).sum()
