"""R-CNN with Inception: each proposed region is cut out, warped, and classified; background is a class of its own.

Girshick et al., "Rich feature hierarchies" (2014), as "Going Deeper with Convolutions", section 8, has it: Inception
as the classifier, proposals of selective search and of MultiBox together, the answers of several networks averaged.
Where R-CNN had one support vector machine per class, the network's own softmax scores the regions.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..data.preprocess import Preprocess
from ..errors import NonFiniteLossError
from ..models.fusion import fuse
from ..models.layers import pyramid_pool
from ..models.network import Network
from ..training.recipe import Detection, Regions
from .boxes import batched_nms, clip, voted
from .dataset import Detections
from .multibox import MultiBox, decode, learned_proposals, whole_pictures
from .proposals import Search, propose
from .regions import full_batches, warp

# Of a batch of regions: enough to keep a CPU busy.
PIXELS_AT_ONCE = 400_000
# Pictures that MultiBox sees at once.
WHOLES_AT_ONCE = 32

# Changes of a box are learned in these units, so that shifts and scales weigh alike (Girshick, "Fast R-CNN").
UNITS = (0.1, 0.1, 0.2, 0.2)


class RegionAnswers(NamedTuple):
    """Of n regions and k classes: `logits` (n, k + 1), the last of the background; `changes` (n, k, 4) that make an
    object's box of the region, per class (see `multibox.encode`), in `UNITS`; the logits of the auxiliary heads."""

    logits: Tensor
    changes: Tensor
    aux: tuple[Tensor, ...]


class RegionNetwork(nn.Module):
    """A region classifier, a linear box regression on its pooled features, and MultiBox with a network of its own.

    `backbone` has one class more than there are: the background, the last. The regression reads the classifier's
    features and does not change them, as in R-CNN, where it is fitted afterwards: so one training shows what it is
    worth. `multibox` may be left out. `options` and `limits` say how regions are found, cut out and chosen from.
    """

    def __init__(self, backbone: Network, multibox: MultiBox | None, options: Regions, limits: Detection):
        super().__init__()
        self.backbone, self.multibox = backbone, multibox
        self.options, self.limits = options, limits
        self.num_classes, self.min_size = backbone.num_classes - 1, backbone.min_size
        self.regressor = nn.Linear(backbone.num_features, 4 * self.num_classes)
        nn.init.zeros_(self.regressor.weight)
        nn.init.zeros_(self.regressor.bias)

    def forward(self, regions: Tensor) -> RegionAnswers:
        """Warped regions (n, channels, size, size), normalised -> `RegionAnswers`."""
        maps, aux = self.backbone.features_aux(regions)
        features = self.backbone.forward_head(next(reversed(maps.values())), pre_logits=True)
        changes = self.regressor(features.detach()).unflatten(1, (self.num_classes, 4))
        return RegionAnswers(self.backbone.get_classifier()(features), changes, aux)


class RegionClassifier:
    """A `RegionNetwork` as it answers in use: normalisations folded into the convolutions, channels last in memory.

    On CPUs half the time. The network is not changed, whatever its mode.
    """

    def __init__(self, network: RegionNetwork):
        channels = network.backbone.in_channels
        # Regions come normalised: what `fuse` folds in changes nothing.
        same = Preprocess(network.min_size, channels, (0.0,) * channels, (1 / 255,) * channels)
        self.fused = fuse(network.backbone, same).to(memory_format=torch.channels_last)
        self.network = network

    def __call__(self, regions: Tensor) -> RegionAnswers:
        """Warped regions (n, channels, size, size), normalised -> `RegionAnswers`, no auxiliary ones."""
        maps = self.fused.trunk(regions.contiguous(memory_format=torch.channels_last))
        features = pyramid_pool(maps, self.fused.pyramid)
        changes = self.network.regressor(features).unflatten(1, (self.network.num_classes, 4))
        return RegionAnswers(self.fused.classifier(features), changes, ())


def search_of(options: Regions) -> Search | None:
    """The selective search of a recipe; None where it asks for none."""
    if not options.search:
        return None
    return Search(superpixel=options.superpixel, most=options.most)


@dataclass(frozen=True)
class RegionDetector:
    """Pictures -> objects, by regions.

    The probabilities of the `networks`, which know the same classes, are averaged, as are their boxes. Regions are
    warped to the size of `preprocess`, with `context` pixels around (see `warp`). Proposals come from selective
    search, unless `search` is None, and from the first network's MultiBox, where it has one and `multibox` says so.
    `regress` corrects the boxes, and `vote`, where it is set, averages those that overlap by so much (see
    `boxes.voted`). `threshold` is the least score, `overlap` the most that two boxes of a class may
    meet, and `most` the most objects of a picture.
    """

    networks: Sequence[RegionNetwork]
    preprocess: Preprocess
    context: float
    search: Search | None
    multibox: bool = True
    regress: bool = True
    vote: float | None = None
    threshold: float = 0.05
    overlap: float = 0.3
    most: int = 100

    def __post_init__(self) -> None:
        if self.search is None and not (self.multibox and self.networks[0].multibox):
            raise ValueError("R-CNN needs proposals: regions.search, regions.multibox or both")

    @classmethod
    def of(cls, networks: Sequence[RegionNetwork], preprocess: Preprocess) -> "RegionDetector":
        """The detector that the first network's recipe asks for."""
        options, limits = networks[0].options, networks[0].limits
        return cls(
            networks, preprocess, options.context, search_of(options), regress=options.regress, vote=options.vote,
            threshold=limits.threshold, overlap=limits.overlap, most=limits.most,
        )  # fmt: skip

    def with_networks(self, networks: Sequence[RegionNetwork]) -> "RegionDetector":
        """The same detector with other networks."""
        return replace(self, networks=networks)

    def __call__(self, pictures: Sequence[Tensor]) -> list[Detections]:
        """Pictures uint8 (channels, h, w), of any sizes -> what is on each, on the CPU.

        The regions of all pictures are classified together, in full batches.
        """
        return self.classify(pictures, self.proposals(pictures)) if pictures else []

    @torch.inference_mode()
    def proposals(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        """The regions of each picture, (n, 4) in its pixels, on the CPU."""
        found: list[list[Tensor]] = [[] for _ in pictures]
        if self.search is not None:
            for boxes, parts in zip(propose(pictures, self.search), found, strict=True):
                parts.append(boxes)
        learned = self.networks[0].multibox
        if self.multibox and learned is not None:
            learned = copy.deepcopy(learned).eval()  # whose mode is not ours to change
            for start in range(0, len(pictures), WHOLES_AT_ONCE):
                some = pictures[start : start + WHOLES_AT_ONCE]
                answers = learned(whole_pictures(some, self.preprocess).to(learned.shapes.device))
                sizes = [(picture.shape[1], picture.shape[2]) for picture in some]
                for row, boxes in enumerate(learned_proposals(answers, learned.priors, sizes), start):
                    found[row].append(boxes.cpu())
        return [torch.cat(parts) for parts in found]

    @torch.inference_mode()
    def classify(self, pictures: Sequence[Tensor], proposals: Sequence[Tensor]) -> list[Detections]:
        """Say of each region of each picture what it shows; the objects, each once."""
        size = self.preprocess.size
        device = next(self.networks[0].parameters()).device

        def regions() -> Iterator[Tensor]:
            for picture, boxes in zip(pictures, proposals, strict=True):
                pixels = self.preprocess.normalise(picture.to(device).unsqueeze(0).float())[0]
                yield warp(pixels, boxes.to(device), size, self.context)

        classifiers = [RegionClassifier(network) for network in self.networks]
        probabilities, changes = [], []
        for batch in full_batches(regions(), max(1, PIXELS_AT_ONCE // size**2)):
            answers = [classifier(batch) for classifier in classifiers]
            probabilities.append(_mean([one.logits.softmax(dim=1) for one in answers]).cpu())
            if self.regress:
                changes.append(_mean([one.changes for one in answers]).cpu())
        counts = [len(boxes) for boxes in proposals]
        if not sum(counts):
            return [Detections.none() for _ in pictures]
        found = torch.cat(probabilities)
        if not found.isfinite().all():
            raise NonFiniteLossError("the network answers with scores that are no numbers: its weights are broken")
        scores = torch.split(found[:, :-1], counts)
        moves = torch.split(torch.cat(changes), counts) if self.regress else [None] * len(counts)
        return [
            self._objects(picture, boxes, score, move)
            for picture, boxes, score, move in zip(pictures, proposals, scores, moves, strict=True)
        ]

    def _objects(self, picture: Tensor, boxes: Tensor, scores: Tensor, changes: Tensor | None) -> Detections:
        """Of one picture's regions the objects: those sure enough, and of those that meet the surest."""
        rows, labels = (scores >= self.threshold).nonzero(as_tuple=True)
        sure, found = scores[rows, labels], boxes[rows]
        if changes is not None:
            found = decode(changes[rows, labels] * found.new_tensor(UNITS), found)
        found = clip(found, picture.shape[-2], picture.shape[-1])
        kept = batched_nms(found, sure, labels, self.overlap)[: self.most]
        places = found[kept] if self.vote is None else voted(kept, found, sure, labels, self.vote)
        return Detections(places, sure[kept], labels[kept])


def _mean(answers: list[Tensor]) -> Tensor:
    return torch.stack(answers).mean(dim=0)
