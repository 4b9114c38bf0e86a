"""MultiBox: 200 learned proposals a picture, of any class.

Erhan et al., "Scalable Object Detection using Deep Neural Networks" (2014): a network looks at the whole picture once
and answers with boxes and how sure it is of each. As in its successor (Szegedy et al., "Scalable, High-Quality Object
Detection", 2014) the boxes start from priors, typical shapes of the training boxes at the cells of the deepest map,
and the same weights serve every cell.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.preprocess import Preprocess
from ..models.network import Network
from .boxes import iou

GRID, SHAPES = 5, 8
PROPOSALS = GRID * GRID * SHAPES

# Height and width of the picture that the network sees: its deepest map, of stride 32, is then the grid.
SIDE = 32 * GRID

# A share of this many priors is near an object before anything is learned.
RARE = 0.02
# Location's weight beside confidence (Erhan et al., section 3: 0.3; with smooth L1 in place of L2, more).
LOCATION = 1.0
# No box is learned to be more than this many times its prior, or less: exp(4) = 55.
LARGEST_CHANGE = 4.0


class Answers(NamedTuple):
    """Of n pictures: `confidence` logits (n, 200), and `changes` (n, 200, 4) of the priors (see `decode`)."""

    confidence: Tensor
    changes: Tensor


class MultiBox(nn.Module):
    """A trunk and two 1x1 convolutions on its deepest map.

    `shapes` (8, 2) are widths and heights of the priors as shares of the picture's. They are a buffer: saved with the
    weights.
    """

    shapes: Tensor

    def __init__(self, trunk: Network, shapes: Tensor | None = None, seed: int = 0):
        super().__init__()
        self.trunk = trunk
        channels = trunk.feature_info[-1].channels
        self.head = nn.Conv2d(channels, SHAPES * 5, 1)
        self.register_buffer("shapes", typical_shapes(torch.zeros(0, 4)) if shapes is None else shapes.float())
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.head.weight.normal_(0, 0.01, generator=generator)
            unsure = torch.logit(torch.tensor(RARE)).expand(SHAPES)
            self.head.bias = nn.Parameter(torch.cat((unsure, torch.zeros(SHAPES * 4))))

    def forward(self, x: Tensor) -> Answers:
        """Pixels (n, channels, 160, 160), normalised -> `Answers`."""
        deepest = self.trunk.forward_features(x)
        if deepest.shape[-2:] != (GRID, GRID):
            deepest = F.adaptive_avg_pool2d(deepest, GRID)
        out = self.head(deepest).float()
        confidence, changes = out[:, :SHAPES], out[:, SHAPES:]
        changes = changes.unflatten(1, (SHAPES, 4)).movedim(2, -1)
        return Answers(confidence.flatten(1), changes.flatten(1, 3))

    @property
    def priors(self) -> Tensor:
        """(200, 4): left, top, right, bottom as shares of the picture; a shape's cells follow each other."""
        centres = (torch.arange(GRID, device=self.shapes.device) + 0.5) / GRID
        down, across = torch.meshgrid(centres, centres, indexing="ij")
        middle = torch.stack((across, down), dim=-1).view(1, -1, 2)
        half = self.shapes.view(-1, 1, 2) / 2
        return torch.cat((middle - half, middle + half), dim=2).view(-1, 4)


def whole_pictures(pictures: Sequence[Tensor], preprocess: Preprocess) -> Tensor:
    """uint8 pictures (channels, h, w) of any sizes -> what the network takes, (n, channels, 160, 160)."""
    nothing = torch.zeros(0, preprocess.channels, SIDE, SIDE)
    resized = [preprocess.resize(picture.unsqueeze(0), SIDE) for picture in pictures]
    return preprocess.normalise(torch.cat([nothing, *resized]))


def typical_shapes(boxes: Tensor) -> Tensor:
    """The `SHAPES` centres (8, 2) of k-means over the boxes' widths and heights, smallest first.

    `boxes` (n, 4) are shares of their pictures. The distance is that of the logarithms. Starts from evenly spaced
    sizes, so the same boxes give the same shapes; where there are fewer boxes than shapes, from squares.
    """
    squares = torch.logspace(-1, 0, SHAPES).unsqueeze(1).expand(-1, 2) * 0.8
    if len(boxes) < SHAPES:
        return squares
    points = (boxes[:, 2:] - boxes[:, :2]).clamp_min(1e-3).log().double()
    order = points.sum(dim=1).argsort()
    centres = points[order[(torch.arange(SHAPES) * 2 + 1) * len(points) // (2 * SHAPES)]]
    for _ in range(50):
        nearest = torch.cdist(points, centres).argmin(dim=1)
        members = F.one_hot(nearest, SHAPES).double()
        counts = members.sum(dim=0).unsqueeze(1)
        moved = torch.where(counts > 0, members.T @ points / counts.clamp_min(1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres[centres.sum(dim=1).argsort()].exp().float()


def match(priors: Tensor, truth: Tensor, overlap: float = 0.5) -> Tensor:
    """Which true box each prior is to become: (p, 4), (n, 4) -> int64 (p,), -1 for none.

    Greedily one to one, the best pair first; pairs that do not meet go by the distance of their centres. Then every
    prior that is left and meets a true box with an IoU of at least `overlap` takes it too. Of more true boxes than
    priors some are not matched.
    """
    taken = torch.full((len(priors),), -1, device=priors.device)
    if not len(truth):
        return taken
    met = iou(priors, truth)
    best, nearest = met.max(dim=1)
    likeness = met - 1e-3 * torch.cdist(_centres(priors), _centres(truth))
    for _ in range(min(len(priors), len(truth))):
        prior, true = divmod(int(likeness.argmax()), len(truth))
        taken[prior] = true
        likeness[prior], likeness[:, true] = -torch.inf, -torch.inf
    return torch.where((taken < 0) & (best >= overlap), nearest, taken)


def _centres(boxes: Tensor) -> Tensor:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def encode(boxes: Tensor, starts: Tensor) -> Tensor:
    """What makes `boxes` of `starts`, (n, 4) each: shifts in units of the start's size, logarithms of the scale.

    Girshick et al., "Rich feature hierarchies" (R-CNN), appendix C.
    """
    size, wanted = starts[:, 2:] - starts[:, :2], boxes[:, 2:] - boxes[:, :2]
    shift = (_centres(boxes) - _centres(starts)) / size
    return torch.cat((shift, (wanted / size).log()), dim=1)


def decode(changes: Tensor, starts: Tensor) -> Tensor:
    """The inverse of `encode`; (..., 4) and what broadcasts to it. No side changes by more than a factor of 55."""
    size = starts[..., 2:] - starts[..., :2]
    middle = (starts[..., :2] + starts[..., 2:]) / 2 + changes[..., :2] * size
    half = changes[..., 2:].clamp(-LARGEST_CHANGE, LARGEST_CHANGE).exp() * size / 2
    return torch.cat((middle - half, middle + half), dim=-1)


def multibox_loss(answers: Answers, priors: Tensor, truth: Sequence[Tensor]) -> Tensor:
    """Confidence and location, per matched prior (Erhan et al., equation 3): a scalar.

    `truth` has, for each picture, its boxes (n, 4) as shares of it. Pictures without any count for confidence.
    """
    matched = torch.stack([match(priors, boxes) for boxes in truth])
    of_object = matched >= 0
    count = of_object.sum().clamp_min(1)
    confidence = F.binary_cross_entropy_with_logits(answers.confidence, of_object.float(), reduction="sum") / count
    wanted = torch.cat([boxes[rows[rows >= 0]] for boxes, rows in zip(truth, matched, strict=True)])
    starts = priors.expand(len(matched), -1, -1)[of_object]
    off = F.smooth_l1_loss(answers.changes[of_object], encode(wanted, starts), reduction="sum", beta=0.1)
    return confidence + LOCATION * off / count


@torch.no_grad()
def learned_proposals(answers: Answers, priors: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """For each picture of size (height, width) its 200 boxes in pixels, the surest first, inside the picture.

    None is narrower than a pixel.
    """
    boxes = decode(answers.changes, priors).clamp(0, 1)
    order = answers.confidence.argsort(dim=1, descending=True)
    found = []
    for of_picture, rows, (height, width) in zip(boxes, order, sizes, strict=True):
        in_pixels = of_picture[rows] * of_picture.new_tensor([width, height, width, height])
        wide = ((in_pixels[:, 2:] - in_pixels[:, :2]) >= 1).all(dim=1)
        found.append(in_pixels[wide])
    return found
