"""Pictures -> detections, at one size or several whose boxes are merged."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.pictures import PictureError, read_picture, to_tensor
from ..data.preprocess import Preprocess
from ..errors import NonFiniteLossError
from .batch import DetectionBatch
from .boxes import batched_nms, clip, rescale
from .dataset import Detections
from .detector import Detector
from .placing import canvas_side, on_canvas
from .rcnn import RegionDetector, RegionNetwork

# Of a batch: enough to keep a processor busy.
PIXELS_AT_ONCE = 1_000_000
# Pictures whose files are read before the first of them is answered.
GROUP = 64


def detect(
    model: Detector | RegionNetwork | RegionDetector,
    preprocess: Preprocess,
    pictures: Sequence[Tensor],
    sizes: Sequence[int] = (),
) -> list[Detections]:
    """The objects on each picture uint8 (channels, h, w), in its own pixels, best first.

    The longer side is made each of `sizes` (the one of `preprocess` where none is given), and the boxes that were
    found are merged: of two of a class that overlap the better remains. NonFiniteLossError for weights that answer
    with no number. R-CNN looks at pictures as they are: ValueError for other `sizes` than that of its regions.
    """
    if isinstance(model, RegionNetwork):
        model = RegionDetector.of([model], preprocess)
    if isinstance(model, RegionDetector):
        if set(sizes) - {preprocess.size}:
            raise ValueError(f"R-CNN looks at pictures as they are, at regions of {preprocess.size} px: ask no sizes")
        return model(pictures)
    sizes = sizes or (preprocess.size,)
    found: list[list[Detections]] = [[] for _ in pictures]
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for size in sizes:
            for row, detections in enumerate(_at(model, preprocess, pictures, size)):
                found[row].append(detections)
    model.train(was_training)
    return [merged(many, model.options.overlap, model.options.most) for many in found]


def _at(model: Detector, preprocess: Preprocess, pictures: Sequence[Tensor], size: int) -> Iterator[Detections]:
    """The detections on each picture at one size, in its own pixels."""
    at_once = max(1, PIXELS_AT_ONCE // canvas_side(size, model.min_size) ** 2)
    for start in range(0, len(pictures), at_once):
        group = pictures[start : start + at_once]
        canvases = [on_canvas(picture, preprocess, size, model.min_size) for picture in group]
        sizes = tuple(placed for _, placed in canvases)
        batch = DetectionBatch(torch.stack([canvas for canvas, _ in canvases]), sizes, ())
        for picture, placed, detections in zip(group, sizes, model.detect(batch), strict=True):
            if not detections.boxes.isfinite().all() or not detections.scores.isfinite().all():
                raise NonFiniteLossError("the network answers with boxes that are no numbers: its weights are broken")
            own = (picture.shape[1], picture.shape[2])
            yield detections._replace(boxes=clip(rescale(detections.boxes, placed, own), *own)).cpu()


def merged(many: Sequence[Detections], overlap: float, most: int) -> Detections:
    """One list of what was found at several sizes: of two of a class that overlap by over `overlap`, the better."""
    if len(many) == 1:
        return many[0]
    boxes, scores, labels = (torch.cat(values) for values in zip(*many, strict=True))
    kept = batched_nms(boxes, scores, labels, overlap)[:most]
    return Detections(boxes[kept], scores[kept], labels[kept])


class Found(NamedTuple):
    """What was found on the picture of a file; or the `problem`. `pixels` are the picture's."""

    path: str
    detections: Detections
    pixels: Tensor | None
    problem: str | None = None


def detect_files(
    model: Detector | RegionNetwork, preprocess: Preprocess, paths: Sequence[str], sizes: Sequence[int] = ()
) -> Iterator[Found]:
    """The objects on the picture of each file in turn. One that cannot be used is answered with its problem."""
    for start in range(0, len(paths), GROUP):
        read = [_read(path, preprocess.channels) for path in paths[start : start + GROUP]]
        usable = [picture for picture in read if isinstance(picture, Tensor)]
        answers = iter(detect(model, preprocess, usable, sizes))
        for path, picture in zip(paths[start : start + GROUP], read, strict=True):
            if isinstance(picture, Tensor):
                yield Found(path, next(answers), picture)
            else:
                yield Found(path, Detections.none(), None, picture)


def _read(path: str, channels: int) -> Tensor | str:
    """The picture, or why it cannot be used."""
    try:
        return to_tensor(read_picture(Path(path)), channels)
    except PictureError as error:
        return str(error)
