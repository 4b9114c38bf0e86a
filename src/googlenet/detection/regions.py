"""Regions: proposals labelled by the objects they meet, chosen for a training step, and cut out at one size.

As in R-CNN (Girshick et al., "Rich feature hierarchies for accurate object detection", 2014, section 2 and
appendix A).
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import roi_align

from .boxes import clip, iou, overlaps

# From this overlap on a region is a positive of its object's class; under it, background.
POSITIVE = 0.5
# Background that meets an object at least so much is hard to tell from one (Girshick, "Fast R-CNN", section 2.3).
HARD = 0.1

IGNORED = -1


class Labelled(NamedTuple):
    """Regions and what they are: `boxes` (n, 4) in pixels, `labels` int64 (n,): a class, the number of classes for
    background, `IGNORED` for what lies in a crowd. `truth` (n, 4) is the object that each meets most (itself where
    there is none), `overlap` (n,) the IoU with it."""

    boxes: Tensor
    labels: Tensor
    truth: Tensor
    overlap: Tensor


def label(proposals: Tensor, objects: Tensor, labels: Tensor, crowds: Tensor, classes: int) -> Labelled:
    """Label the `proposals` (n, 4) of a picture, and its objects themselves, which are positives too.

    `objects` (m, 4) have `labels` in 0..`classes` - 1; `crowds` (k, 4) are neither one object nor background.
    """
    boxes = torch.cat((objects, proposals))
    if len(objects):
        overlap, nearest = iou(boxes, objects).max(dim=1)
        truth = objects[nearest]
        found = torch.where(overlap >= POSITIVE, labels[nearest], classes)
    else:
        overlap, truth = boxes.new_zeros(len(boxes)), boxes
        found = torch.full((len(boxes),), classes, device=boxes.device)
    if len(crowds) and len(boxes):
        in_crowd = overlaps(boxes, crowds).amax(dim=1) >= POSITIVE
        found = torch.where(in_crowd & (found == classes), IGNORED, found)
    return Labelled(boxes, found, truth, overlap)


def choose(
    labels: Tensor,
    overlap: Tensor,
    classes: int,
    count: int,
    positive_share: float,
    hard_share: float,
    generator: torch.Generator,
) -> Tensor:
    """The numbers of `count` of the regions, for one step.

    `positive_share` of them are positives (R-CNN: 32 of 128), the rest background, `hard_share` of which meets an
    object somewhat. Where there are too few of a kind, others take their place, as far as there are any.
    """
    background = labels == classes
    positives = _shuffled(~background & (labels != IGNORED), generator)
    hard = _shuffled(background & (overlap >= HARD), generator)
    easy = _shuffled(background & (overlap < HARD), generator)
    positives = positives[: round(count * positive_share)]
    rest = count - len(positives)
    wanted = round(rest * hard_share)
    taken = max(wanted, rest - len(easy))
    hard = hard[:taken]
    return torch.cat((positives, hard, easy[: rest - len(hard)]))


def _shuffled(mask: Tensor, generator: torch.Generator) -> Tensor:
    rows = mask.nonzero().flatten()
    return rows[torch.randperm(len(rows), generator=generator)]


def around(objects: Tensor, count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """`count` boxes by chance near the objects (n, 4) of a picture, inside it: shifted by up to half of the object's
    size, each side 1/2 to 2 times as long. None where there is no object.

    What MultiBox proposes is not known while it learns; these stand in for it.
    """
    if not len(objects):
        return objects
    chosen = objects[torch.randint(len(objects), (count,), generator=generator)]
    size, middle = chosen[:, 2:] - chosen[:, :2], (chosen[:, :2] + chosen[:, 2:]) / 2
    middle = middle + size * (torch.rand(count, 2, generator=generator) - 0.5)
    half = size * torch.exp2(2 * torch.rand(count, 2, generator=generator) - 1) / 2
    boxes = clip(torch.cat((middle - half, middle + half), dim=1), height, width)
    return boxes[((boxes[:, 2:] - boxes[:, :2]) >= 1).all(dim=1)]


def warp(pixels: Tensor, boxes: Tensor, size: int, context: float) -> Tensor:
    """Cut `boxes` (n, 4) out of a picture (channels, h, w), normalised, and warp each to (n, channels, size, size).

    Proportions are not kept. Each box is widened so that `context` pixels of the result lie around it on every side
    (R-CNN: 16 of 227). What lies outside the picture is 0, the mean. Shrunken regions are averaged, not skipped over.
    """
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]) / 2 * (size / (size - 2 * context))
    widened = torch.cat((middle - half, middle + half), dim=1)
    # The kernel knows no half precision on CPUs, and pixels lose nothing by it.
    cut: Tensor = roi_align(pixels.unsqueeze(0).float(), [widened.float()], size, aligned=True)
    return cut


def full_batches(parts: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """The rows of `parts` in order, `size` at a time; the last batch may be smaller, and none is empty."""
    waiting: list[Tensor] = []
    count = 0
    for part in parts:
        waiting.append(part)
        count += len(part)
        if count >= size:
            joined = torch.cat(waiting)
            whole = count - count % size
            yield from torch.split(joined[:whole], size)
            waiting, count = [joined[whole:]], count - whole
    if count:
        yield torch.cat(waiting)
