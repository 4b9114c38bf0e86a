"""Export of one-stage detectors: an image of any size to boxes in its pixels, with all pre- and post-processing."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from ..checkpoint.format import Checkpoint
from ..data.preprocess import Preprocess
from ..detection.data.dataset import Detections
from ..detection.detector import Detector
from ..detection.heads.fcos import FCOSHead, postprocess
from ..detection.letterbox import letterbox, padded_side
from ..detection.predict import DetectorPredictor, merge_detections
from .engine import OpenedFile, open_session
from .manifest import OutputKind

# The largest differences from PyTorch that are allowed, in pixels and of the score.
MAX_BOX_ERROR, MAX_SCORE_ERROR = 1e-3, 1e-4


class ExportableDetector(nn.Module):
    """A detector with its pre- and post-processing, which computes the same as `DetectorPredictor`.

    `metadata` is written into the file. The other attributes are those of `spec.ExportSpec`.
    """

    dynamic_size, min_size = True, 1
    output: OutputKind = "boxes"

    def __init__(self, model: Detector, preprocess: Preprocess, sizes: Sequence[int], metadata: dict[str, str]):
        super().__init__()
        self.model, self.preprocess, self.metadata = model.eval(), preprocess, metadata
        self.sizes = tuple(sizes) or (preprocess.size,)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """uint8 (channels, h, w) -> boxes float (n, 4) in its pixels, scores (n,), labels int64 (n,), best first."""
        detections = [self._detect(pixels, size) for size in self.sizes]
        config = self.model.config
        merged = merge_detections(detections, config.nms_iou, config.max_detections)
        return merged.boxes, merged.scores, merged.labels

    def _detect(self, pixels: Tensor, max_side: int) -> Detections:
        """Detect objects with the longer side resized to `max_side` pixels."""
        head = self.model.head
        assert isinstance(head, FCOSHead)
        # Height and width are tensors, so that the exported file takes any.
        size = torch.stack((_dynamic_dim(pixels, 1), _dynamic_dim(pixels, 2)))
        longer = size.max()
        side = padded_side(max_side, self.model.min_size)
        new_size = torch.div(2 * size * max_side + longer, 2 * longer, rounding_mode="floor").clamp_min(1)
        canvas = letterbox(pixels, size, new_size, self.preprocess, side).unsqueeze(0)
        output = head(self.model.levels(canvas)[0], side, side)
        limits = new_size.flip(0).repeat(2).float()
        boxes = torch.minimum(output.boxes[0].clamp_min(0), limits)
        detections = postprocess(boxes, output.scores[0], head.config)
        image_limits = size.flip(0).repeat(2).float()
        scaled = torch.minimum(detections.boxes * (image_limits / limits), image_limits)
        return detections._replace(boxes=scaled)


def _dynamic_dim(pixels: Tensor, dim: int) -> Tensor:
    """Return the length of a dimension as a tensor ()."""
    return torch.ones_like(pixels.select(3 - dim, 0)[0], dtype=torch.int64).sum()


def exportable_detector(checkpoint: Checkpoint, sizes: Sequence[int] = ()) -> ExportableDetector:
    """Prepare a one-stage detector (others: ValueError) for export with `sizes`, or its ``detection.test_sizes``."""
    model = checkpoint.model
    if not isinstance(model, Detector) or not isinstance(model.head, FCOSHead):
        raise ValueError("only one-stage detectors (detection.head fcos) can be exported")
    sizes = sizes or checkpoint.recipe.detection.test_sizes or ()
    metadata = {
        "classes": json.dumps(checkpoint.classes),
        "input": "pixels: uint8 (channels, height, width), gray or RGB",
        "output": "boxes: left, top, right, bottom in the image's pixels; scores 0..1; labels: indices of classes",
        "size": str(checkpoint.preprocess.size),
    }
    return ExportableDetector(model.cpu(), checkpoint.preprocess, sizes, metadata)


class ExportedDetector:
    """An exported detector in an engine."""

    def __init__(self, opened: OpenedFile):
        self.name, self.precision, self.manifest = opened.engine, opened.precision, opened.manifest
        self.session = opened.session
        self.preprocess, self.classes = opened.manifest.preprocess, opened.manifest.classes
        self.sizes = opened.manifest.sizes

    def predict(self, images: Sequence[Tensor]) -> list[Detections]:
        """Return the detections on each image uint8 (channels, h, w), in its pixels, best first."""
        return [Detections(*self.session(image.cpu().contiguous())) for image in images]


def open_exported_detector(folder: Path | str, engine: str, threads: int | None = None) -> ExportedDetector:
    """Open an exported detector; see `engine.open_exported`."""
    return ExportedDetector(open_session(Path(folder), engine, threads, "detector"))


class DetectionParity(NamedTuple):
    """The largest differences of an engine from PyTorch: of boxes in pixels, and of scores."""

    engine: str
    max_error: float
    max_score_error: float

    @property
    def within_bounds(self) -> bool:
        """Whether the differences are allowed."""
        return self.max_error <= MAX_BOX_ERROR and self.max_score_error <= MAX_SCORE_ERROR


def compare(exported: ExportedDetector, reference: DetectorPredictor, images: Sequence[Tensor]) -> DetectionParity:
    """Compare the detections on `images` uint8 (channels, h, w).

    Each box of either is compared with the box of its class in the other that it overlaps most. A box without a
    counterpart is an infinite error, unless its score is within `MAX_SCORE_ERROR` of the limit for being returned.
    """
    box_error = score_error = 0.0
    assert isinstance(reference.model, Detector)
    config = reference.model.config
    for expected, actual in zip(reference.predict(images), exported.predict(images), strict=True):
        for first, second in ((expected, actual), (actual, expected)):
            errors = _errors(first, second, config.score_threshold, config.max_detections)
            box_error, score_error = max(box_error, errors[0]), max(score_error, errors[1])
    return DetectionParity(exported.name, box_error, score_error)


def _errors(first: Detections, second: Detections, threshold: float, max_detections: int) -> tuple[float, float]:
    """Return the largest errors of boxes and scores of `first` against their counterparts in `second`."""
    # A detection is certain if its score exceeds the threshold, and the last score of a full list, by the tolerance.
    full = [float(d.scores[-1]) for d in (first, second) if len(d.scores) == max_detections]
    certain = first.scores > max(threshold, *full, 0.0) + MAX_SCORE_ERROR
    boxes, scores, labels = first.boxes[certain], first.scores[certain], first.labels[certain]
    if not len(boxes):
        return 0.0, 0.0
    if not len(second.boxes):
        return math.inf, math.inf
    iou = torch.where(labels.unsqueeze(1) == second.labels, box_iou(boxes, second.boxes), -1.0)
    best_iou, matched = iou.max(dim=1)
    if (best_iou < 0.5).any():
        return math.inf, math.inf
    return (boxes - second.boxes[matched]).abs().max().item(), (scores - second.scores[matched]).abs().max().item()
