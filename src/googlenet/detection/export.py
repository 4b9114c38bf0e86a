"""A one-stage detector as an ONNX file that takes a picture of any size and gives boxes in its own pixels.

Pre- and post-processing are in the file: resizing, to one size or to several, normalisation, decoding, non-maximum
suppression. Nothing of this package is needed to use it.
"""

import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..data.preprocess import Preprocess
from ..errors import FailedError
from ..files import write_atomically
from ..training.checkpoint import Checkpoint
from .boxes import iou
from .dataset import Detections
from .detector import Detector
from .fcos import FCOSHead, suppressed
from .placing import canvas_side, placed
from .predict import detect, merged

OPSET = 20
# How far a file's boxes (in pixels) and scores may be from PyTorch's.
BOX_BOUND, SCORE_BOUND = 1e-3, 1e-4


class Deployed(nn.Module):
    """The detector with everything around it: a raw picture -> what `predict.detect` finds on it."""

    def __init__(self, model: Detector, preprocess: Preprocess, sizes: Sequence[int] = ()):
        super().__init__()
        self.model, self.preprocess = model.eval(), preprocess
        self.sizes = tuple(sizes) or (preprocess.size,)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """uint8 (channels, h, w) -> boxes float (n, 4) in its pixels, scores (n,), labels int64 (n,), best first."""
        found = [self._at(pixels, size) for size in self.sizes]
        one = merged(found, self.model.options.overlap, self.model.options.most)
        return one.boxes, one.scores, one.labels

    def _at(self, pixels: Tensor, longer: int) -> Detections:
        """What is found with the longer side made `longer` pixels."""
        head = self.model.head
        assert isinstance(head, FCOSHead)
        # Heights and widths as values, so that the file takes any.
        size = torch.stack((_length(pixels, 1), _length(pixels, 2)))
        most = size.max()
        side = canvas_side(longer, self.model.min_size)
        new_size = torch.div(2 * size * longer + most, 2 * most, rounding_mode="floor").clamp_min(1)
        canvas = placed(pixels, size, new_size, self.preprocess, side).unsqueeze(0)
        said = head(self.model.levels(canvas)[0], side, side)
        edges = new_size.flip(0).repeat(2).float()
        boxes = torch.minimum(said.boxes[0].clamp_min(0), edges)
        found = suppressed(boxes, said.scores[0], head.threshold, head.overlap, head.most)
        own = size.flip(0).repeat(2).float()
        return found._replace(boxes=torch.minimum(found.boxes * (own / edges), own))


def _length(pixels: Tensor, dim: int) -> Tensor:
    """The length of a dimension as a tensor ()."""
    return torch.ones_like(pixels.select(3 - dim, 0)[0], dtype=torch.int64).sum()


class Difference(NamedTuple):
    """How far a file's answers are from PyTorch's, at most: `box` in pixels, `score`; over how many `pictures`."""

    box: float
    score: float
    pictures: int


def export_detector(
    checkpoint: Checkpoint, path: Path, pictures: Sequence[Tensor], sizes: Sequence[int] = ()
) -> Difference:
    """Write `checkpoint` to the ONNX file `path` and compare it with PyTorch on `pictures` uint8 (channels, h, w).

    The file makes a picture's longer side each of `sizes` (those of the recipe's test where none is given) and merges
    the boxes.

    ValueError for a network that cannot be written, FailedError where a package is missing or the answers differ by
    more than `BOX_BOUND` or `SCORE_BOUND`; then nothing is written.
    """
    model = checkpoint.model.cpu()
    if not isinstance(model, Detector) or not isinstance(model.head, FCOSHead):
        raise ValueError("a one-stage detector (detection.head fcos) can be written as ONNX, not this one")
    sizes = sizes or checkpoint.recipe.detection.sizes or ()
    try:
        import onnx
        import onnxruntime
    except ImportError:
        raise FailedError("exporting needs onnx and onnxruntime: pip install 'googlenet[export]'") from None

    content = _written(Deployed(model, checkpoint.preprocess, sizes))
    about = onnx.load_from_string(content)
    facts = {
        "classes": json.dumps(checkpoint.classes),
        "input": "pixels: uint8 (channels, height, width), grey or RGB",
        "output": "boxes: left, top, right, bottom in the picture's pixels; scores 0..1; labels: places in classes",
        "size": str(checkpoint.preprocess.size),
    }
    for key, value in facts.items():
        about.metadata_props.add(key=key, value=value)
    content = about.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    difference = compare(session, model, checkpoint.preprocess, pictures, sizes)
    if not (difference.box <= BOX_BOUND and difference.score <= SCORE_BOUND):
        raise FailedError(
            f"the file answers other than the network, by {difference.box:.2g} pixels and {difference.score:.2g} of "
            "the score; nothing was written"
        )
    write_atomically(path, content)
    return difference


def _written(deployed: Deployed) -> bytes:
    """The ONNX file, its picture of any height and width."""
    channels = deployed.preprocess.channels
    example = torch.zeros(channels, 90, 123, dtype=torch.uint8)
    free = {1: torch.export.Dim("height", min=1, max=2**15), 2: torch.export.Dim("width", min=1, max=2**15)}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            deployed, (example,), dynamo=True, dynamic_shapes=(free,), opset_version=OPSET, verbose=False,
            input_names=["pixels"], output_names=["boxes", "scores", "labels"],
        )  # fmt: skip
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


def compare(
    session: Any, model: Detector, preprocess: Preprocess, pictures: Sequence[Tensor], sizes: Sequence[int] = ()
) -> Difference:
    """How far the answers of an ONNX Runtime `session` are from those of PyTorch, at the same `sizes`.

    Each box of either is compared with that of the other of its class that it overlaps most. One that has no
    counterpart is infinitely far, unless its score is within `SCORE_BOUND` of what decides whether it is given at
    all.
    """
    box = score = 0.0
    for picture, wanted in zip(pictures, detect(model, preprocess, pictures, sizes), strict=True):
        given = Detections(*(torch.from_numpy(values) for values in session.run(None, {"pixels": picture.numpy()})))
        for one, other in ((wanted, given), (given, wanted)):
            apart, off = _distance(one, other, model.options.threshold, model.options.most)
            box, score = max(box, apart), max(score, off)
    return Difference(box, score, len(pictures))


def _distance(one: Detections, other: Detections, threshold: float, most: int) -> tuple[float, float]:
    """The largest distance of a box and of a score in `one` to its counterpart in `other`."""
    # Those that the limits might have let in or not: about the least score, or the least of a full list.
    least = max(threshold, *(float(side.scores[-1]) for side in (one, other) if len(side.scores) == most), 0.0)
    sure = one.scores > least + SCORE_BOUND
    boxes, scores, labels = one.boxes[sure], one.scores[sure], one.labels[sure]
    if not len(boxes):
        return 0.0, 0.0
    if not len(other.boxes):
        return math.inf, math.inf
    shared = torch.where(labels.unsqueeze(1) == other.labels, iou(boxes, other.boxes), -1.0)
    overlap, which = shared.max(dim=1)
    if (overlap < 0.5).any():
        return math.inf, math.inf
    return (boxes - other.boxes[which]).abs().max().item(), (scores - other.scores[which]).abs().max().item()
