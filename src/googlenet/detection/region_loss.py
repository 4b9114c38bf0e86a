"""A training step of R-CNN: regions of several pictures with what they are, and the loss of a network on them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.preprocess import Preprocess
from ..data.transfer import send
from .dataset import Picture
from .multibox import encode, multibox_loss, whole_pictures
from .rcnn import UNITS, RegionNetwork
from .regions import around, choose, label, warp

# Boxes by chance near the objects of each picture, beside those of selective search.
STAND_INS = 40


class Choice(NamedTuple):
    """Which regions a step sees: `per_picture` on average, `positives` of them objects, `hard` of the rest near one;
    cut out at `size` pixels with `context` around (see `regions`)."""

    per_picture: int
    positives: float
    hard: float
    size: int
    context: float


class RegionBatch(NamedTuple):
    """`regions` float (n, channels, size, size) with `labels` int64 (n,), the last number for background; the `boxes`
    (n, 4) that they were cut from and the `truth` (n, 4) each lies over. `wholes` are the pictures that they come
    from, as MultiBox sees them, None where there is none; `objects` their boxes as shares of the picture."""

    regions: Tensor
    labels: Tensor
    boxes: Tensor
    truth: Tensor
    wholes: Tensor | None
    objects: tuple[Tensor, ...]


def region_batch(
    pictures: Sequence[Picture],
    proposals: Sequence[Tensor],
    classes: int,
    preprocess: Preprocess,
    choice: Choice,
    *,
    multibox: bool,
    generator: torch.Generator,
    device: torch.device,
) -> RegionBatch:
    """Regions of the `pictures`, drawn from all their `proposals` (n, 4) together: as many positives and as much
    background as `choice` says, whichever picture has them."""
    found = []
    for picture, boxes in zip(pictures, proposals, strict=True):
        objects = picture.boxes[picture.objects]
        near = around(objects, STAND_INS, picture.height, picture.width, generator)
        labels, crowds = picture.labels[picture.objects], picture.boxes[picture.crowd]
        found.append(label(torch.cat((boxes, near)), objects, labels, crowds, classes))
    labels, overlap = torch.cat([one.labels for one in found]), torch.cat([one.overlap for one in found])
    count = choice.per_picture * len(pictures)
    chosen = choose(labels, overlap, classes, count, choice.positives, choice.hard, generator)
    # In the order of the pictures: each is brought to the device once.
    chosen = chosen.sort().values
    owner = torch.repeat_interleave(torch.tensor([len(one.labels) for one in found]))[chosen]
    boxes, truth = (torch.cat(parts)[chosen] for parts in ([o.boxes for o in found], [o.truth for o in found]))
    raw = [picture.read(preprocess.channels) for picture in pictures]
    regions = [
        warp(
            preprocess.normalise(send(pixels.unsqueeze(0), device).float())[0],
            send(boxes[owner == number], device),
            choice.size,
            choice.context,
        )
        for number, pixels in enumerate(raw)
    ]
    wholes = send(whole_pictures(raw, preprocess), device) if multibox else None
    shares = tuple(
        send(p.boxes[p.objects] / torch.tensor([p.width, p.height, p.width, p.height]), device) for p in pictures
    )
    return RegionBatch(
        torch.cat(regions), send(labels[chosen], device), send(boxes, device), send(truth, device), wholes, shares
    )


class RegionLosses(NamedTuple):
    """Scalars: the `total`, which is differentiated, its parts, and the share of the regions that were classified
    right."""

    total: Tensor
    classes: Tensor
    boxes: Tensor
    multibox: Tensor
    right: Tensor


def region_loss(model: RegionNetwork, batch: RegionBatch, label_smoothing: float = 0.0) -> RegionLosses:
    """Cross-entropy of the regions, smooth L1 of the positives' boxes, and MultiBox's loss, where there is one."""
    answers = model(batch.regions)
    logits = answers.logits.float()
    of_class = F.cross_entropy(logits, batch.labels, label_smoothing=label_smoothing)
    rows = (batch.labels < model.classes).nonzero().flatten()
    wanted = encode(batch.truth[rows], batch.boxes[rows]) / batch.boxes.new_tensor(UNITS)
    changes = answers.changes[rows, batch.labels[rows]].float()
    # Per region, so that steps with few positives weigh them no more.
    of_boxes = F.smooth_l1_loss(changes, wanted, reduction="sum") / max(len(batch.labels), 1)
    of_multibox = logits.new_zeros(())
    if model.multibox is not None and batch.wholes is not None:
        of_multibox = multibox_loss(model.multibox(batch.wholes), model.multibox.priors, batch.objects)
    right = (logits.detach().argmax(dim=1) == batch.labels).float().mean()
    return RegionLosses(of_class + of_boxes + of_multibox, of_class, of_boxes, of_multibox, right)
