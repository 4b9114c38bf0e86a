"""Detection data sets: samples (images with boxes), their detections, splits and training batches."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ...data.accounting import Accounting
from ...data.dataset import LoadOptions
from ...data.decode import ImageError, decode_image, to_tensor
from ...data.loader import BatchSpec, sample_indices
from ...data.preprocess import Preprocess
from ...data.sources import load_source
from ..boxes import hflip_boxes, rescale
from ..letterbox import letterbox_image, padded_side


class Sample(NamedTuple):
    """An image with its objects.

    `pixels` are uint8 (channels, height, width), or the file to decode. `boxes` are float (n, 4), clipped to the image,
    none empty; `labels` int64 (n,). `crowd` (n,) marks boxes of several objects, which are neither training targets nor
    objects to find, and detections in them are not false positives. By `areas` (n,) in square pixels COCO calls an
    object small, medium or large; they are those of the boxes if the source has no outlines.
    """

    name: str
    image_id: int | str
    pixels: Tensor | Path
    height: int
    width: int
    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    areas: Tensor

    def read(self, channels: int) -> Tensor:
        """Return the pixels, uint8 (channels, height, width), for 1 (gray) or 3 (RGB) channels.

        Raises ImageError if the file cannot be decoded, or has another size than the annotations.
        """
        if isinstance(self.pixels, Path):
            return read_image(self.pixels, self.height, self.width, channels)
        if len(self.pixels) == channels or channels == 3:
            return self.pixels.expand(channels, -1, -1)
        luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)  # ITU-R 601, which Pillow uses
        return (self.pixels.float() * luma).sum(dim=0, keepdim=True).round().to(torch.uint8)

    def relative_boxes(self) -> Tensor:
        """Return the boxes without crowds, as fractions of the image's width and height: (m, 4)."""
        return self.boxes[~self.crowd] / torch.tensor([self.width, self.height] * 2)


def read_image(path: Path, height: int, width: int, channels: int) -> Tensor:
    """Decode an image file to uint8 (channels, height, width); ImageError if its size differs.

    The EXIF orientation is applied unless the size shows that the boxes were drawn without it.
    """
    image = decode_image(path)
    if image.size == (height, width) != (width, height):
        with Image.open(path) as raw:
            image = raw.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        raise ImageError(f"{path}: {image.width}x{image.height} pixels; its annotations are for {width}x{height}")
    return to_tensor(image, channels)


class SampleImages(Sequence[Tensor]):
    """The pixels of samples, uint8 (channels, h, w), decoded when they are accessed."""

    def __init__(self, samples: Sequence[Sample], channels: int):
        self.samples, self.channels = samples, channels

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Any) -> Any:
        return self.samples[index].read(self.channels)


class Detections(NamedTuple):
    """The objects detected on an image, best first: boxes float (n, 4) in pixels, scores in 0..1, labels int64 (n,)."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    @classmethod
    def empty(cls) -> "Detections":
        """Return no detections."""
        return cls(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))

    def select(self, rows: Tensor | slice) -> "Detections":
        """Return the detections with these indices, or those where a mask is true."""
        return Detections(self.boxes[rows], self.scores[rows], self.labels[rows])

    def above(self, score_threshold: float) -> "Detections":
        """Return the detections with a higher score."""
        return self.select(self.scores > score_threshold)


@dataclass(frozen=True)
class DetectionDataset:
    """A detection data set.

    `channels` is 1 if every image is gray, else 3. `mean` and `std` are those of the training pixels in fractions.
    `accounting` counts the used and excluded images and boxes.
    """

    source: str
    classes: tuple[str, ...]
    train: Sequence[Sample]
    validation: Sequence[Sample]
    test: Sequence[Sample]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    accounting: Accounting = field(default_factory=Accounting)

    @property
    def skipped(self) -> list[str]:
        """Return one line per reason for which images or boxes are excluded; see `Accounting.lines`."""
        return self.accounting.lines()

    def to(self, device: torch.device) -> "DetectionDataset":
        """Return itself: images of different sizes stay on the CPU, and their batches are moved to the device."""
        return self


def load_detection_dataset(source: str, options: LoadOptions | None = None) -> DetectionDataset:
    """Load images with boxes, by default without held-out images; ValueError for unknown sources or unusable data."""
    data: DetectionDataset = load_source(source, options or LoadOptions(validation=0), "detection")
    return data


def subsample(samples: Sequence[Sample], count: int) -> Sequence[Sample]:
    """Return at most `count` samples, evenly spaced."""
    count = min(count, len(samples))
    return [samples[index * len(samples) // count] for index in range(count)]


class Target(NamedTuple):
    """The objects on one image of a batch, in the batch's pixels; the fields are those of `Sample`."""

    boxes: Tensor
    labels: Tensor
    crowd: Tensor


class DetectionBatch(NamedTuple):
    """Images as they enter the network.

    `images` are float (n, channels, side, side); `sizes` are the heights and widths of the images in their upper left
    corners; `targets` are the objects, empty if they are unknown.
    """

    images: Tensor
    sizes: tuple[tuple[int, int], ...]
    targets: tuple[Target, ...]

    @property
    def num_images(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def to(self, device: torch.device) -> "DetectionBatch":
        """Return the same batch on `device`."""
        non_blocking = device.type == "cuda"
        targets = tuple(Target(*(v.to(device, non_blocking=non_blocking) for v in target)) for target in self.targets)
        return DetectionBatch(self.images.to(device, non_blocking=non_blocking), self.sizes, targets)


def training_images(
    samples: Sequence[Sample], preprocess: Preprocess, spec: BatchSpec, *, flip: bool, min_side: int
) -> DetectionBatch:
    """Return the letterboxed batch of `spec`, a function of its seed and step.

    Longer sides are `spec.size`, padded to at least `min_side` pixels. With `flip`, a random half of the images is
    flipped horizontally.
    """
    indices = sample_indices(len(samples), spec.seed, spec.samples, spec.part).tolist()
    generator = torch.Generator().manual_seed(2 * spec.seed * 1_000_000_007 + spec.step)
    flipped = spec.part.slice(torch.rand(spec.part.total, generator=generator)) < (0.5 if flip else 0.0)
    side = padded_side(spec.size, min_side)
    images = torch.zeros(len(indices), preprocess.channels, side, side)
    sizes, targets = [], []
    for row, (index, flips) in enumerate(zip(indices, flipped.tolist(), strict=True)):
        sample = samples[index]
        pixels = sample.read(preprocess.channels)
        images[row], size = letterbox_image(pixels.flip(-1) if flips else pixels, preprocess, spec.size, min_side)
        boxes = rescale(sample.boxes, (sample.height, sample.width), size)
        targets.append(Target(hflip_boxes(boxes, size[1]) if flips else boxes, sample.labels, sample.crowd))
        sizes.append(size)
    return DetectionBatch(images, tuple(sizes), tuple(targets))
