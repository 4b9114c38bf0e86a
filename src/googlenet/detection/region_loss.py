"""A training step of R-CNN: regions of several pictures with what they are, and the loss of a network on them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.preprocess import Preprocess
from ..data.transfer import send
from ..training.recipe import Loss, Regions
from .dataset import Picture
from .multibox import encode, multibox_loss, whole_pictures
from .rcnn import UNITS, RegionNetwork
from .regions import around, choose, label, warp

# Boxes by chance near the objects of each picture, beside those of selective search.
STAND_INS = 40


class RegionBatch(NamedTuple):
    """`regions` float (n, channels, size, size) with `labels` int64 (n,), the last number for background; the `boxes`
    (n, 4) that they were cut from and the `truth` (n, 4) each lies over. `wholes` are the pictures that they come
    from, as MultiBox sees them; `objects` their boxes as shares of the picture, crowds left out."""

    regions: Tensor
    labels: Tensor
    boxes: Tensor
    truth: Tensor
    wholes: Tensor
    objects: tuple[Tensor, ...]

    @property
    def pictures(self) -> int:
        """How many pictures the regions are of."""
        return len(self.objects)

    def to(self, device: torch.device) -> "RegionBatch":
        """The same batch on `device`."""
        regions, labels, boxes, truth, wholes = (send(tensor, device) for tensor in self[:5])
        return RegionBatch(regions, labels, boxes, truth, wholes, tuple(send(o, device) for o in self.objects))


def region_batch(
    pictures: Sequence[Picture],
    proposals: Sequence[Tensor],
    classes: int,
    preprocess: Preprocess,
    options: Regions,
    size: int,
    *,
    flip: bool,
    generator: torch.Generator,
) -> RegionBatch:
    """Regions of the `pictures`, drawn from all their `proposals` (n, 4) together: as many positives and as much
    background as `options` say, whichever picture has them; with `flip` half of them are mirrored."""
    nothing = torch.zeros(0, preprocess.channels, size, size)
    if not pictures:  # of several processes one may have none
        none, no_label = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
        return RegionBatch(nothing, no_label, none, none, whole_pictures([], preprocess), ())
    found = []
    for picture, boxes in zip(pictures, proposals, strict=True):
        objects = picture.boxes[picture.objects]
        near = around(objects, STAND_INS, picture.height, picture.width, generator)
        labels, crowds = picture.labels[picture.objects], picture.boxes[picture.crowd]
        found.append(label(torch.cat((boxes, near)), objects, labels, crowds, classes))
    labels, overlap = torch.cat([one.labels for one in found]), torch.cat([one.overlap for one in found])
    count = options.per_picture * len(pictures)
    chosen = choose(labels, overlap, classes, count, options.positives, options.hard, generator)
    # In the order of the pictures: each is normalised once.
    chosen = chosen.sort().values
    owner = torch.repeat_interleave(torch.tensor([len(one.labels) for one in found]))[chosen]
    boxes, truth = (torch.cat(parts)[chosen] for parts in ([o.boxes for o in found], [o.truth for o in found]))
    raw = [picture.read(preprocess.channels) for picture in pictures]
    regions = torch.cat([
        warp(preprocess.normalise(pixels.unsqueeze(0).float())[0], boxes[owner == number], size, options.context)
        for number, pixels in enumerate(raw)
    ])  # fmt: skip
    if flip:
        turned = torch.rand(len(boxes), generator=generator) < 0.5
        regions = torch.where(turned.view(-1, 1, 1, 1), regions.flip(-1), regions)
        truth = torch.where(turned.unsqueeze(1), mirror(truth, boxes), truth)
    wholes = whole_pictures(raw if options.multibox else [], preprocess)
    shares = tuple(p.boxes[p.objects] / torch.tensor([p.width, p.height, p.width, p.height]) for p in pictures)
    return RegionBatch(regions, labels[chosen], boxes, truth, wholes, shares)


def mirror(boxes: Tensor, inside: Tensor) -> Tensor:
    """Where each of the `boxes` (n, 4) comes to lie when what is `inside` the other box (n, 4) is mirrored."""
    ends = inside[:, 0] + inside[:, 2]
    return torch.stack((ends - boxes[:, 2], boxes[:, 1], ends - boxes[:, 0], boxes[:, 3]), dim=1)


class RegionLosses(NamedTuple):
    """Scalars: the losses of `classes`, auxiliary heads included, of `boxes` and of `multibox`; and the share of the
    regions that were classified `right`."""

    classes: Tensor
    boxes: Tensor
    multibox: Tensor
    right: Tensor

    @property
    def total(self) -> Tensor:
        """What is differentiated."""
        return self.classes + self.boxes + self.multibox


def region_loss(model: RegionNetwork, batch: RegionBatch, options: Loss) -> RegionLosses:
    """Cross-entropy of the regions, smooth L1 of the positives' boxes, and MultiBox's loss, where there is one."""
    batch = batch.to(next(model.parameters()).device)
    answers = model(batch.regions)
    # Means over at least one: a process may have no region. Boxes count per region, so that steps with few positives
    # weigh them no more.
    count = max(len(batch.labels), 1)

    def cross_entropy(logits: Tensor) -> Tensor:
        smoothing = options.label_smoothing
        return F.cross_entropy(logits.float(), batch.labels, label_smoothing=smoothing, reduction="sum") / count

    of_class = cross_entropy(answers.logits)
    for logits in answers.aux:
        of_class = of_class + options.aux_weight * cross_entropy(logits)
    rows = (batch.labels < model.num_classes).nonzero().flatten()
    wanted = encode(batch.truth[rows], batch.boxes[rows]) / batch.boxes.new_tensor(UNITS)
    changes = answers.changes[rows, batch.labels[rows]].float()
    of_boxes = F.smooth_l1_loss(changes, wanted, reduction="sum") / count
    of_multibox = of_class.new_zeros(())
    if model.multibox is not None and len(batch.wholes):
        of_multibox = multibox_loss(model.multibox(batch.wholes), model.multibox.priors, batch.objects)
    right = (answers.logits.detach().argmax(dim=1) == batch.labels).sum() / count
    return RegionLosses(of_class, of_boxes, of_multibox, right)
