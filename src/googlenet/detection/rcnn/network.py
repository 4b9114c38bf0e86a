"""R-CNN with Inception: each proposed region is cropped, resized and classified, with background as a class of its own.

Girshick et al., "Rich feature hierarchies" (2014), as in "Going Deeper with Convolutions", section 8: an Inception
classifier, whose softmax replaces support vector machines, proposals of selective search and MultiBox, and an ensemble.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image, roi_align

from ...config.schema import DetectionConfig, RegionsConfig
from ...data.preprocess import Preprocess
from ...errors import NonFiniteLossError
from ...models.folding import fold
from ...models.layers import spatial_pyramid_pool
from ...models.network import Network
from ..boxes import batched_nms, box_voting
from ..data.dataset import Detections
from .multibox import MultiBox, decode, decode_proposals, preprocess_images
from .selective_search import SelectiveSearchConfig, cached_proposals

# Pixels of a batch of regions, enough to use all cores, and images of a MultiBox batch.
MAX_BATCH_PIXELS, MULTIBOX_BATCH = 400_000, 32
# The box regression predicts deltas in these units, so that shifts and scales have the same weight (Girshick, "Fast
# R-CNN").
BBOX_REG_STDS = (0.1, 0.1, 0.2, 0.2)


class RCNNOutput(NamedTuple):
    """The output for n regions and k classes: `logits` (n, k + 1), the background last, and `deltas` (n, k, 4) to an
    object of each class in units of `BBOX_REG_STDS`; see `multibox.encode`."""

    logits: Tensor
    deltas: Tensor
    aux_logits: tuple[Tensor, ...]


class RCNN(nn.Module):
    """A region classifier, a linear box regression on its pooled features, and optionally a MultiBox.

    `backbone` has one more class than `num_classes`: the background, the last. As in R-CNN, where it is fitted
    afterwards, the regression does not change the classifier's features.
    """

    def __init__(self, backbone: Network, multibox: MultiBox | None, regions: RegionsConfig, config: DetectionConfig):
        super().__init__()
        self.backbone, self.multibox = backbone, multibox
        self.regions, self.config = regions, config
        self.num_classes, self.min_size = backbone.num_classes - 1, backbone.min_size
        self.bbox_pred = nn.Linear(backbone.num_features, 4 * self.num_classes)
        nn.init.zeros_(self.bbox_pred.weight)
        nn.init.zeros_(self.bbox_pred.bias)

    def forward(self, regions: Tensor) -> RCNNOutput:
        """Compute the output for cropped, normalized regions (n, channels, size, size)."""
        maps, aux_logits = self.backbone.features_aux(regions)
        features = self.backbone.forward_head(next(reversed(maps.values())), pre_logits=True)
        deltas = self.bbox_pred(features.detach()).unflatten(1, (self.num_classes, 4))
        return RCNNOutput(self.backbone.get_classifier()(features), deltas, aux_logits)


class FoldedRCNN:
    """A copy of an `RCNN` with folded normalization and channels last in memory: half the time on CPUs."""

    def __init__(self, network: RCNN):
        channels = network.backbone.in_channels
        # Regions are normalized already: this preprocessing folds in the identity.
        identity = Preprocess(network.min_size, channels, (0.0,) * channels, (1 / 255,) * channels)
        self.folded = fold(network.backbone, identity).to(memory_format=torch.channels_last)
        self.network = network

    def __call__(self, regions: Tensor) -> RCNNOutput:
        """Compute the output for cropped, normalized regions, without auxiliary logits."""
        maps = self.folded.trunk(regions.contiguous(memory_format=torch.channels_last))
        features = spatial_pyramid_pool(maps, self.folded.spp_levels)
        deltas = self.network.bbox_pred(features).unflatten(1, (self.network.num_classes, 4))
        return RCNNOutput(self.folded.classifier(features), deltas, ())


@dataclass(frozen=True)
class RCNNDetector:
    """Detects objects with one or more R-CNNs of the same classes, whose probabilities and boxes are averaged.

    Regions are resized to `preprocess.size`. Proposals come from selective search, and from the first network's
    MultiBox, unless `regions` disables either.
    """

    networks: Sequence[RCNN]
    preprocess: Preprocess
    regions: RegionsConfig
    config: DetectionConfig

    def __post_init__(self) -> None:
        if not self.regions.selective_search and self.multibox is None:
            raise ValueError("R-CNN needs proposals: set regions.selective_search or regions.multibox_width_mult")

    @classmethod
    def from_networks(cls, networks: Sequence[RCNN], preprocess: Preprocess) -> "RCNNDetector":
        """Return the detector with the options of the first network's recipe."""
        return cls(networks, preprocess, networks[0].regions, networks[0].config)

    @property
    def multibox(self) -> MultiBox | None:
        """Return the MultiBox that proposes regions, if any."""
        return self.networks[0].multibox if self.regions.multibox_width_mult else None

    def predict(self, images: Sequence[Tensor]) -> list[Detections]:
        """Detect the objects on images uint8 (channels, h, w) of any sizes; the result is on the CPU.

        The regions of all images are classified together, in full batches.
        """
        return self.classify(images, self.proposals(images)) if images else []

    @torch.inference_mode()
    def proposals(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Return the proposed regions of each image, (n, 4) in its pixels, on the CPU."""
        proposals: list[list[Tensor]] = [[] for _ in images]
        if self.regions.selective_search:
            for index, boxes in enumerate(cached_proposals(images, SelectiveSearchConfig.from_recipe(self.regions))):
                proposals[index].append(boxes)
        if self.multibox is not None:
            multibox = copy.deepcopy(self.multibox).eval()  # does not change the mode of the original
            for start in range(0, len(images), MULTIBOX_BATCH):
                chunk = images[start : start + MULTIBOX_BATCH]
                output = multibox(preprocess_images(chunk, self.preprocess).to(multibox.shapes.device))
                sizes = [(image.shape[1], image.shape[2]) for image in chunk]
                for index, boxes in enumerate(decode_proposals(output, multibox.priors, sizes), start):
                    proposals[index].append(boxes.cpu())
        return [torch.cat(boxes) for boxes in proposals]

    @torch.inference_mode()
    def classify(self, images: Sequence[Tensor], proposals: Sequence[Tensor]) -> list[Detections]:
        """Classify the proposed regions of each image, and select the detections."""
        size, device = self.preprocess.size, next(self.networks[0].parameters()).device

        batch_size = max(1, MAX_BATCH_PIXELS // size**2)

        def crops() -> Iterator[Tensor]:
            # The regions of an image are cropped in parts: together they may be far larger than the image.
            for image, boxes in zip(images, proposals, strict=True):
                pixels = self.preprocess.normalize(image.to(device).unsqueeze(0).float())[0]
                for part in torch.split(boxes.to(device), batch_size):
                    yield crop_and_resize(pixels, part, size, self.regions.context_padding)

        classifiers = [FoldedRCNN(network) for network in self.networks]
        probabilities, deltas = [], []
        for batch in rebatch(crops(), batch_size):
            outputs = [classifier(batch) for classifier in classifiers]
            probabilities.append(torch.stack([output.logits.softmax(dim=1) for output in outputs]).mean(dim=0).cpu())
            if self.regions.box_regression:
                deltas.append(torch.stack([output.deltas for output in outputs]).mean(dim=0).cpu())
        counts = [len(boxes) for boxes in proposals]
        if not sum(counts):
            return [Detections.empty()] * len(images)
        scores = torch.cat(probabilities)
        if not scores.isfinite().all():
            raise NonFiniteLossError("non-finite scores: the weights are corrupt or training diverged")
        deltas_per_image = torch.split(torch.cat(deltas), counts) if deltas else [None] * len(counts)
        regions = zip(images, proposals, torch.split(scores[:, :-1], counts), deltas_per_image, strict=True)
        return [self._select(*values) for values in regions]

    def _select(self, image: Tensor, boxes: Tensor, scores: Tensor, deltas: Tensor | None) -> Detections:
        """Return the detections of an image from its regions: threshold, box regression, suppression, box voting."""
        config, vote_iou = self.config, self.regions.box_voting_iou
        regions, labels = (scores > config.score_threshold).nonzero(as_tuple=True)
        scores, boxes = scores[regions, labels], boxes[regions]
        if deltas is not None:
            boxes = decode(deltas[regions, labels] * boxes.new_tensor(BBOX_REG_STDS), boxes)
        boxes = clip_boxes_to_image(boxes, (image.shape[-2], image.shape[-1]))
        kept = batched_nms(boxes, scores, labels, config.nms_iou)[: config.max_detections]
        selected = boxes[kept] if vote_iou is None else box_voting(kept, boxes, scores, labels, vote_iou)
        return Detections(selected, scores[kept], labels[kept])


def crop_and_resize(image: Tensor, boxes: Tensor, size: int, padding: float) -> Tensor:
    """Crop boxes (n, 4) from a normalized image (channels, h, w) and resize them to (n, channels, size, size).

    The aspect ratio is not kept. Each box is enlarged so that the result has `padding` pixels of context on each side
    (R-CNN: 16 of 227). Pixels outside the image are 0, the mean. Pixels are averaged when a region shrinks.
    """
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]) / 2 * (size / (size - 2 * padding))
    enlarged = torch.cat((centers - half, centers + half), dim=1)
    # The CPU kernel does not support half precision.
    regions: Tensor = roi_align(image.unsqueeze(0).float(), [enlarged.float()], size, aligned=True)
    return regions


def rebatch(chunks: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Yield the rows of `chunks` in order in batches of `size`; the last batch may be smaller, and none is empty."""
    pending: list[Tensor] = []
    for chunk in chunks:
        pending.append(chunk)
        count = sum(map(len, pending))
        if count >= size:
            rows, complete = torch.cat(pending), count - count % size
            yield from torch.split(rows[:complete], size)
            pending = [rows[complete:]]
    if any(map(len, pending)):
        yield torch.cat(pending)
