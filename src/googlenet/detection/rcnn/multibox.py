"""MultiBox: 200 learned, class-agnostic region proposals per image.

Erhan et al., "Scalable Object Detection using Deep Neural Networks" (2014). As in its successor (Szegedy et al.,
"Scalable, High-Quality Object Detection", 2014), the boxes are relative to priors: typical shapes of the training boxes
at each cell of the deepest feature map, with the same weights for every cell.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou

from ...data.preprocess import Preprocess
from ...models.network import Network

GRID_SIZE, NUM_SHAPES = 5, 8
NUM_PROPOSALS = GRID_SIZE * GRID_SIZE * NUM_SHAPES
# Height and width of the input image: the deepest map, of stride 32, then has the size of the grid.
INPUT_SIZE = 32 * GRID_SIZE
# Initial confidence: this fraction of the priors matches an object.
PRIOR_PROBABILITY = 0.02
# Weight of the localization loss relative to the confidence loss. Erhan et al. (section 3) use 0.3 with an L2 loss;
# smooth L1 is smaller.
LOCATION_WEIGHT = 1.0
# Largest logarithm of a scale change: exp(4) = 55.
BBOX_XFORM_CLIP = 4.0


class MultiBoxOutput(NamedTuple):
    """The output for n images: `confidence` logits (n, 200) and `deltas` (n, 200, 4) of the priors; see `decode`."""

    confidence: Tensor
    deltas: Tensor


class MultiBox(nn.Module):
    """A trunk and a 1x1 convolution on its deepest map.

    `shapes` (8, 2) are the priors' widths and heights as fractions of the image; a buffer, saved with the weights.
    """

    shapes: Tensor

    def __init__(self, trunk: Network, shapes: Tensor | None = None, seed: int = 0):
        super().__init__()
        self.trunk = trunk
        channels = trunk.feature_info[-1].channels
        self.head = nn.Conv2d(channels, NUM_SHAPES * 5, 1)
        self.register_buffer("shapes", kmeans_priors(torch.zeros(0, 4)) if shapes is None else shapes.float())
        with torch.no_grad():
            self.head.weight.normal_(0, 0.01, generator=torch.Generator().manual_seed(seed))
            confidence_bias = torch.logit(torch.tensor(PRIOR_PROBABILITY)).expand(NUM_SHAPES)
            self.head.bias = nn.Parameter(torch.cat((confidence_bias, torch.zeros(NUM_SHAPES * 4))))

    def forward(self, x: Tensor) -> MultiBoxOutput:
        """Compute the output for normalized images (n, channels, 160, 160)."""
        features = self.trunk.forward_features(x)
        if features.shape[-2:] != (GRID_SIZE, GRID_SIZE):
            features = F.adaptive_avg_pool2d(features, GRID_SIZE)
        output = self.head(features).float()
        deltas = output[:, NUM_SHAPES:].unflatten(1, (NUM_SHAPES, 4)).movedim(2, -1)
        return MultiBoxOutput(output[:, :NUM_SHAPES].flatten(1), deltas.flatten(1, 3))

    @property
    def priors(self) -> Tensor:
        """Return the prior boxes (200, 4) as fractions of the image, all cells of a shape in sequence."""
        centers = (torch.arange(GRID_SIZE, device=self.shapes.device) + 0.5) / GRID_SIZE
        y, x = torch.meshgrid(centers, centers, indexing="ij")
        cells, half = torch.stack((x, y), dim=-1).view(1, -1, 2), self.shapes.view(-1, 1, 2) / 2
        return torch.cat((cells - half, cells + half), dim=2).view(-1, 4)


def preprocess_images(images: Sequence[Tensor], preprocess: Preprocess) -> Tensor:
    """Resize and normalize uint8 images (channels, h, w) of any sizes to (n, channels, 160, 160)."""
    empty = torch.zeros(0, preprocess.channels, INPUT_SIZE, INPUT_SIZE)
    resized = [preprocess.resize(image.unsqueeze(0), INPUT_SIZE) for image in images]
    return preprocess.normalize(torch.cat([empty, *resized]))


def kmeans_priors(boxes: Tensor) -> Tensor:
    """Cluster the logarithms of relative widths and heights by k-means; return the centers (8, 2), smallest first.

    The first centers are evenly spaced sizes, so the result is deterministic. For fewer than 8 boxes it is squares.
    """
    if len(boxes) < NUM_SHAPES:
        return torch.logspace(-1, 0, NUM_SHAPES).unsqueeze(1).expand(-1, 2) * 0.8
    points = (boxes[:, 2:] - boxes[:, :2]).clamp_min(1e-3).log().double()
    order = points.sum(dim=1).argsort()
    centers = points[order[(torch.arange(NUM_SHAPES) * 2 + 1) * len(points) // (2 * NUM_SHAPES)]]
    for _ in range(50):
        members = F.one_hot(torch.cdist(points, centers).argmin(dim=1), NUM_SHAPES).double()
        counts = members.sum(dim=0).unsqueeze(1)
        new_centers = torch.where(counts > 0, members.T @ points / counts.clamp_min(1), centers)
        if torch.equal(new_centers, centers):
            break
        centers = new_centers
    return centers[centers.sum(dim=1).argsort()].exp().float()


def match(priors: Tensor, gt_boxes: Tensor, iou_threshold: float = 0.5) -> Tensor:
    """Match priors (p, 4) to ground-truth boxes (n, 4): return the index of the box, int64 (p,), -1 for none.

    First each box gets the best prior that is left, in the order of the IoU, or of the center distance for pairs that
    do not overlap; with more boxes than priors some boxes get none. Then each remaining prior gets its best box if
    their IoU is at least `iou_threshold`.
    """
    matched = torch.full((len(priors),), -1, device=priors.device)
    if not len(gt_boxes):
        return matched
    iou = box_iou(priors, gt_boxes)
    best_iou, best_box = iou.max(dim=1)
    similarity = iou - 1e-3 * torch.cdist(_centers(priors), _centers(gt_boxes))
    for _ in range(min(len(priors), len(gt_boxes))):
        prior, box = divmod(int(similarity.argmax()), len(gt_boxes))
        matched[prior] = box
        similarity[prior], similarity[:, box] = -torch.inf, -torch.inf
    return torch.where((matched < 0) & (best_iou >= iou_threshold), best_box, matched)


def _centers(boxes: Tensor) -> Tensor:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def encode(boxes: Tensor, priors: Tensor) -> Tensor:
    """Return the deltas (n, 4) from `priors` to `boxes`: shifts in prior sizes and log scales (R-CNN, appendix C)."""
    size, new_size = priors[:, 2:] - priors[:, :2], boxes[:, 2:] - boxes[:, :2]
    return torch.cat(((_centers(boxes) - _centers(priors)) / size, (new_size / size).log()), dim=1)


def decode(deltas: Tensor, priors: Tensor) -> Tensor:
    """Apply deltas (..., 4) to priors, the inverse of `encode`; scales are limited to a factor of 55."""
    size = priors[..., 2:] - priors[..., :2]
    centers = (priors[..., :2] + priors[..., 2:]) / 2 + deltas[..., :2] * size
    half = deltas[..., 2:].clamp(-BBOX_XFORM_CLIP, BBOX_XFORM_CLIP).exp() * size / 2
    return torch.cat((centers - half, centers + half), dim=-1)


def multibox_loss(output: MultiBoxOutput, priors: Tensor, gt_boxes: Sequence[Tensor]) -> Tensor:
    """Return confidence plus localization loss per matched prior (Erhan et al., equation 3) for relative boxes."""
    matched = torch.stack([match(priors, boxes) for boxes in gt_boxes])
    positive = matched >= 0
    num_positive = positive.sum().clamp_min(1)
    confidence_loss = F.binary_cross_entropy_with_logits(output.confidence, positive.float(), reduction="sum")
    targets = torch.cat([boxes[rows[rows >= 0]] for boxes, rows in zip(gt_boxes, matched, strict=True)])
    priors = priors.expand(len(matched), -1, -1)[positive]
    location_loss = F.smooth_l1_loss(output.deltas[positive], encode(targets, priors), reduction="sum", beta=0.1)
    return confidence_loss / num_positive + LOCATION_WEIGHT * location_loss / num_positive


@torch.no_grad()
def decode_proposals(output: MultiBoxOutput, priors: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Return the proposals of each image of size (height, width), clipped, with sides >= 1, most confident first."""
    boxes = decode(output.deltas, priors).clamp(0, 1)
    order = output.confidence.argsort(dim=1, descending=True)
    proposals = []
    for image_boxes, indices, (height, width) in zip(boxes, order, sizes, strict=True):
        pixels = image_boxes[indices] * image_boxes.new_tensor([width, height, width, height])
        proposals.append(pixels[((pixels[:, 2:] - pixels[:, :2]) >= 1).all(dim=1)])
    return proposals
