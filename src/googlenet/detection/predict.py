"""Detect objects on images of any size, at one image size or merged from several."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from ..data.decode import ImageError, decode_image, to_tensor
from ..data.preprocess import Preprocess
from ..errors import NonFiniteLossError
from .batches import chunks_by_bytes
from .boxes import batched_nms, rescale
from .data.dataset import DetectionBatch, Detections
from .detector import Detector
from .letterbox import letterbox_image, padded_side
from .rcnn.network import RCNN, RCNNDetector

# Pixels of a batch, enough to use all cores.
MAX_BATCH_PIXELS = 1_000_000


class ObjectDetector(Protocol):
    """Anything that detects objects: `DetectorPredictor`, or an exported detector."""

    @property
    def name(self) -> str:
        """The engine."""

    @property
    def precision(self) -> str:
        """The precision of the computation: float32, bfloat16, float16 or int8."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """The longer sides that images are resized to, in pixels; empty: that of `preprocess`."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names in the order of the labels."""

    @property
    def preprocess(self) -> Preprocess:
        """How an image becomes the input."""

    def predict(self, images: Sequence[Tensor]) -> list[Detections]:
        """Detect the objects on images uint8 (channels, h, w) of any sizes; boxes are in each image's pixels."""


@dataclass(frozen=True)
class DetectorPredictor:
    """A detector in PyTorch, on the device of its parameters; `sizes` default to that of `preprocess`."""

    model: Detector | RCNN | RCNNDetector
    preprocess: Preprocess
    classes: tuple[str, ...]
    sizes: tuple[int, ...] = ()
    name: ClassVar[str] = "torch"
    precision: ClassVar[str] = "float32"
    min_size: ClassVar[int] = 1  # images are padded to what the backbone needs

    @property
    def device(self) -> torch.device:
        """Return the device of the parameters."""
        network = self.model.networks[0] if isinstance(self.model, RCNNDetector) else self.model
        return next(network.parameters()).device

    def predict(self, images: Sequence[Tensor]) -> list[Detections]:
        """Detect the objects on images; see `detect`."""
        return detect(self.model, self.preprocess, images, self.sizes)


def with_sizes(detector: ObjectDetector, sizes: Sequence[int]) -> DetectorPredictor:
    """Return the detector with other test sizes; ValueError for an exported one, whose sizes are fixed."""
    if not isinstance(detector, DetectorPredictor):
        raise ValueError("the sizes of an exported detector are fixed: set them with googlenet export --sizes")
    return replace(detector, sizes=tuple(sizes))


def detect(
    model: Detector | RCNN | RCNNDetector, preprocess: Preprocess, images: Sequence[Tensor], sizes: Sequence[int] = ()
) -> list[Detections]:
    """Detect the objects on images uint8 (channels, h, w), in each image's own pixels, best first.

    The longer side is resized to each of `sizes` (default: that of `preprocess`), and the detections are merged.
    Raises NonFiniteLossError for non-finite boxes and ValueError for `sizes` with R-CNN, whose regions have one size.
    """
    if isinstance(model, RCNN):
        model = RCNNDetector.from_networks([model], preprocess)
    if isinstance(model, RCNNDetector):
        if set(sizes) - {preprocess.size}:
            raise ValueError(f"R-CNN has no test sizes: its regions are {preprocess.size} px; leave the sizes out")
        return model.predict(images)
    config, was_training = model.config, model.training
    try:
        model.eval()
        with torch.inference_mode():
            by_size = [list(_detect_at_size(model, preprocess, images, size)) for size in sizes or (preprocess.size,)]
    finally:
        model.train(was_training)
    return [merge_detections(r, config.nms_iou, config.max_detections) for r in zip(*by_size, strict=True)]


def _detect_at_size(
    model: Detector, preprocess: Preprocess, images: Sequence[Tensor], size: int
) -> Iterator[Detections]:
    """Yield the detections on each image at one size, in the image's own pixels."""
    batch_size = max(1, MAX_BATCH_PIXELS // padded_side(size, model.min_size) ** 2)
    for start in range(0, len(images), batch_size):
        chunk = images[start : start + batch_size]
        letterboxed = [letterbox_image(image, preprocess, size, model.min_size) for image in chunk]
        sizes = tuple(scaled for _, scaled in letterboxed)
        batch = DetectionBatch(torch.stack([pixels for pixels, _ in letterboxed]), sizes, ())
        for image, scaled, detections in zip(chunk, sizes, model.detect(batch), strict=True):
            if not detections.boxes.isfinite().all() or not detections.scores.isfinite().all():
                raise NonFiniteLossError("non-finite boxes: the weights are corrupt or training diverged")
            original = (image.shape[1], image.shape[2])
            boxes = clip_boxes_to_image(rescale(detections.boxes, scaled, original), original)
            yield Detections(boxes.cpu(), detections.scores.cpu(), detections.labels.cpu())


def merge_detections(results: Sequence[Detections], nms_iou: float, max_detections: int) -> Detections:
    """Merge the detections at several sizes by non-maximum suppression."""
    if len(results) == 1:
        return results[0]
    merged = Detections(*map(torch.cat, zip(*results, strict=True)))
    return merged.select(batched_nms(*merged, nms_iou)[:max_detections])


class ImageDetections(NamedTuple):
    """The detections on the image of a file and its pixels; or the `error` if it cannot be read."""

    path: str
    detections: Detections
    pixels: Tensor | None
    error: str | None = None


def decoded_size(path: str) -> int:
    """Return the number of pixels of an image file without decoding it; 0 if it cannot be read."""
    try:
        with Image.open(path) as image:
            return image.width * image.height
    except Exception:  # Pillow raises many types; the reason is reported when the file is decoded
        return 0


def detect_files(predictor: ObjectDetector, paths: Sequence[str]) -> Iterator[ImageDetections]:
    """Yield the detections on each image file, in order."""
    channels = predictor.preprocess.channels
    for chunk in chunks_by_bytes(paths, lambda path: decoded_size(path) * channels):
        images: list[Tensor | ImageError] = []
        for path in chunk:
            try:
                images.append(to_tensor(decode_image(Path(path)), channels))
            except ImageError as error:
                images.append(error)
        detections = iter(predictor.predict([image for image in images if isinstance(image, Tensor)]))
        for path, image in zip(chunk, images, strict=True):
            if isinstance(image, Tensor):
                yield ImageDetections(path, next(detections), image)
            else:
                yield ImageDetections(path, Detections.empty(), None, str(image))
