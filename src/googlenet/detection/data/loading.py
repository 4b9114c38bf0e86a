"""Check annotated images, decode them into memory if they fit, and build a data set."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torchvision.ops import clip_boxes_to_image

from ...data.accounting import MAX_EXAMPLES, Accounting, plural
from ...data.dataset import LoadOptions, num_validation
from ...data.decode import SWAPPING_METHODS, ImageError, open_image, printable, transpose_method
from ...data.image_checks import channel_histogram, check_images, mean_std
from ...data.lazy import ByteRanges
from ...data.sources.splits import SPLITS
from .dataset import DetectionDataset, Sample, subsample
from .layout import ImageFinder

# Largest size of the decoded images in memory; the images of a larger source are decoded when they are used.
MAX_BYTES = 4 * 2**30
# Number of images that the mean and standard deviation are computed from.
STATISTICS_SAMPLES = 2000
IMAGE_EXCLUDED = "the image is excluded"
LISTED_TWICE = "listed twice"
MERGED = "listed twice: its boxes are added to the first entry"


class RawObject(NamedTuple):
    """An unchecked object: x1, y1, x2, y2, and the other fields of `Sample`; without `area`, the box's.

    `name` is its position in the annotations for messages.
    """

    box: tuple[float, ...]
    label: int
    crowd: bool
    area: float | None
    name: str


class RawAnnotation(NamedTuple):
    """An image's unchecked annotation.

    `path` is the image file, or the reason why it is missing. `size` is (height, width), None if the annotation has
    none. With `relative`, boxes are fractions of the image's width and height.
    """

    name: str
    path: Path | str
    image_id: int | str
    size: tuple[int, int] | None
    objects: Sequence[RawObject]
    relative: bool = False


@dataclass
class AnnotationFile:
    """The usable samples of a split, whether all their images are gray, and what was excluded.

    `accounting` counts the samples and their boxes as used only when their images have been decoded. `notes` are the
    names of images and boxes that are used with a remark.
    """

    classes: tuple[str, ...]
    accounting: Accounting = field(default_factory=Accounting)
    notes: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    samples: Sequence[Sample] = ()
    all_gray: bool = True

    def exclude_image(self, reason: str, name: str, num_boxes: int) -> None:
        """Count an image and its boxes as excluded."""
        self.accounting.exclude("image", reason, name)
        self.accounting.exclude("box", IMAGE_EXCLUDED, name, num_boxes)

    def exclude_box(self, reason: str, name: str) -> None:
        """Count a box as excluded."""
        self.accounting.exclude("box", reason, name)

    def add_samples(self, annotations: Sequence[RawAnnotation]) -> "AnnotationFile":
        """Convert annotations to samples, and exclude unusable images and boxes."""
        annotations = self._exclude_fractions(self._merge_entries(annotations))
        with ThreadPoolExecutor() as pool:
            headers = pool.map(_read_header, [annotation.path for annotation in annotations])
        samples = []
        for annotation, header in zip(annotations, headers, strict=True):
            if isinstance(header, str):
                self.exclude_image(header, annotation.name, len(annotation.objects))
                continue
            height, width, mode = header
            if mode.startswith(("I", "F")):
                self.notes["image of more than 8 bits, scaled by its own range"].append(annotation.name)
            size = annotation.size or (height, width)
            # The size may be that of the image before its EXIF rotation.
            if sorted(size) != sorted((height, width)):
                self.exclude_image("another size than annotated", annotation.name, len(annotation.objects))
                continue
            self.all_gray &= mode in ("L", "1", "I;16")
            samples.append(self._build_sample(annotation, size))
        self.samples = samples
        return self

    def _merge_entries(self, annotations: Sequence[RawAnnotation]) -> list[RawAnnotation]:
        """Add the boxes of several entries of the same image file to the first; boxes of both are used once.

        As separate samples, each entry would teach that the objects of the others are background.
        """
        merged: dict[Path | int, RawAnnotation] = {}
        for index, item in enumerate(annotations):
            key = item.path if isinstance(item.path, Path) else index
            if key not in merged:
                merged[key] = item
                continue
            self.accounting.exclude("image", MERGED, item.name)
            first = merged[key]
            known = {each[:2] for each in first.objects}
            for each in item.objects:
                if each[:2] in known:
                    self.exclude_box(LISTED_TWICE, each.name)
            new = [each for each in item.objects if each[:2] not in known]
            merged[key] = first._replace(objects=[*first.objects, *new], size=first.size or item.size)
        return list(merged.values())

    def _exclude_fractions(self, annotations: list[RawAnnotation]) -> list[RawAnnotation]:
        """Exclude boxes in pixels if all of them are in the first pixel of their images: they are fractions."""
        objects = [item for each in annotations if not each.relative for item in each.objects]
        if not objects or max(max(item.box) for item in objects) > 1:
            return annotations
        for item in objects:
            self.exclude_box("coordinates are fractions: multiply them by the width and height of the image", item.name)
        return [each if each.relative else each._replace(objects=[]) for each in annotations]

    def _build_sample(self, annotation: RawAnnotation, size: tuple[int, int]) -> Sample:
        """Clip the boxes to the image, and exclude unusable ones; up to one pixel outside is rounding and not noted."""
        objects, path = annotation.objects, annotation.path
        assert isinstance(path, Path)
        boxes = torch.tensor([item.box for item in objects], dtype=torch.float64).view(-1, 4)
        boxes = boxes * torch.tensor(size[::-1] * 2) if annotation.relative else boxes
        # Areas are those of the annotation, computed in double precision.
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
        given = torch.tensor([item.area or 0 for item in objects], dtype=torch.float64)
        boxes = boxes.float()
        clipped = clip_boxes_to_image(boxes, size)
        empty = ~boxes.isfinite().all(dim=1) | ((boxes[:, 2:] - boxes[:, :2]) <= 0).any(dim=1)
        outside = ~empty & ((clipped[:, 2:] - clipped[:, :2]) <= 0).any(dim=1)
        for reason, rows in (("empty box", empty), ("outside the image", outside)):
            for row in rows.nonzero().flatten().tolist():
                self.exclude_box(reason, objects[row].name)
        kept = ~empty & ~outside
        cut = kept & ((clipped - boxes).abs() > 1).any(dim=1)
        names = [objects[row].name for row in cut.nonzero().flatten().tolist()]
        self.notes["box partly outside the image, clipped to it"] += names
        return Sample(
            printable(path),
            annotation.image_id,
            path,
            *size,
            clipped[kept],
            torch.tensor([item.label for item in objects], dtype=torch.int64)[kept],
            torch.tensor([item.crowd for item in objects], dtype=torch.bool)[kept],
            torch.where(given > 0, given, areas).float()[kept],
        )

    def load_images(self, samples: Sequence[Sample], channels: int, cache_key: str) -> list[Sample]:
        """Decode the images into memory if all fit in `MAX_BYTES`, and count them and their boxes.

        Those of a larger source are decoded once to find the unreadable ones, which are cached for `cache_key`.
        """
        if sum(sample.height * sample.width for sample in samples) * channels > MAX_BYTES:
            paths = [os.fspath(sample.pixels) for sample in samples if isinstance(sample.pixels, Path)]
            checked = check_images(ByteRanges.from_files(paths), paths, cache_key)
            results = [checked.errors.get(index, sample) for index, sample in enumerate(samples)]
        else:
            with ThreadPoolExecutor() as pool:
                results = list(pool.map(lambda sample: _decode(sample, channels), samples))
        kept = []
        for sample, result in zip(samples, results, strict=True):
            if isinstance(result, str):
                self.exclude_image(result.removeprefix(f"{sample.pixels}: "), sample.name, len(sample.boxes))
            else:
                kept.append(result)
        self.accounting.use("image", len(kept))
        self.accounting.use("box", sum(len(sample.boxes) for sample in kept))
        self.notes["image without objects, kept"] += [sample.name for sample in kept if not len(sample.boxes)]
        return kept

    def finish(self, split: str) -> Accounting:
        """Return the counts with the name of the split in each reason and note."""
        result = Accounting()
        result.add(self.accounting, prefix=f"{split}: ")
        for text, names in self.notes.items():
            kind, _, rest = text.partition(" ")
            if names:
                examples = ", ".join([*names[:MAX_EXAMPLES], *(["..."] if len(names) > MAX_EXAMPLES else [])])
                result.notes.append(f"{split}: {len(names):,} {plural(kind, len(names))} {rest} ({examples})")
        return result


def _read_header(path: Path | str) -> tuple[int, int, str] | str:
    """Return height, width (as displayed) and Pillow's mode of an image file, without decoding it; or why not."""
    if isinstance(path, str):
        return path
    try:
        with open_image(path, "") as image:
            rotated = transpose_method(image) in SWAPPING_METHODS
            width, height = image.size[::-1] if rotated else image.size
            return height, width, image.mode
    except ImageError as error:
        return str(error).removeprefix(": ")


def _decode(sample: Sample, channels: int) -> Sample | str:
    try:
        return sample._replace(pixels=sample.read(channels))
    except ImageError as error:
        return str(error)


def split_validation(
    samples: Sequence[Sample], validation: float, seed: int
) -> tuple[Sequence[Sample], Sequence[Sample]]:
    """Split samples randomly into training and validation; `validation` is a count or a fraction below 1."""
    count = num_validation(len(samples), validation)
    chosen = set(torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))[:count].tolist())
    train = [sample for index, sample in enumerate(samples) if index not in chosen]
    return train, [samples[index] for index in sorted(chosen)]


def build_detection_dataset(
    source: str, files: Mapping[str, AnnotationFile], finder: ImageFinder, options: LoadOptions
) -> DetectionDataset:
    """Build a data set from its splits: ``train``, and optionally ``validation`` and ``test``.

    Validation images are held out of the training images if the source has none. Raises ValueError if no usable
    training image or box remains, and ImageError for an excluded image or box with ``on_error="raise"``.
    """
    classes = files["train"].classes
    channels = options.channels or (1 if all(file.all_gray for file in files.values()) else 3)
    splits: dict[str, Sequence[Sample]] = {name: files[name].samples if name in files else [] for name in SPLITS}
    if not splits["validation"] and options.validation and splits["train"]:
        splits["train"], splits["validation"] = split_validation(splits["train"], options.validation, options.seed)
    for name, samples in splits.items():
        file = files[name if name in files and files[name].samples else "train"]
        chosen = samples if options.max_samples is None else subsample(samples, options.max_samples)
        positions = set(map(id, chosen))
        for sample in (sample for sample in samples if id(sample) not in positions):
            file.exclude_image("beyond data.max_samples", sample.name, len(sample.boxes))
        splits[name] = file.load_images(chosen, channels, f"{source}|{name}")
    accounting = Accounting()
    for name, file in files.items():
        raise_for_excluded(source, name, file.accounting, options)
        accounting.add(file.finish(name))
    finder.count_files(accounting)
    train = splits["train"]
    known = {sample.name for sample in train}
    for name in ("validation", "test"):
        if shared := sum(sample.name in known for sample in splits[name]):
            accounting.notes.append(f"{name}: {shared:,} images are training images, so its metrics are too good")
    if not any(len(sample.boxes) for sample in train):
        problem = "usable training image has a box" if train else "training image can be used"
        searched = ", ".join(map(printable, list(finder.folders)[:6]))
        reasons = accounting.reasons() or "the annotations are empty"
        raise ValueError(f"{source}: no {problem}. {reasons}. Images were searched in {searched or 'no folder'}")
    counts = torch.bincount(torch.cat([sample.labels[~sample.crowd] for sample in train]), minlength=len(classes))
    if missing := [name for name, count in zip(classes, counts.tolist(), strict=True) if not count]:
        accounting.notes.append(f"train: no object of class {', '.join(missing)}")
    sampled = (sample.read(channels).unsqueeze(0) for sample in subsample(train, STATISTICS_SAMPLES))
    mean, std = mean_std(sum(map(channel_histogram, sampled), torch.tensor(0)))
    return DetectionDataset(source, classes, **splits, channels=channels, mean=mean, std=std, accounting=accounting)


def raise_for_excluded(source: str, split: str, accounting: Accounting, options: LoadOptions) -> None:
    """Raise ImageError with the first excluded image or box, with ``on_error="raise"``."""
    excluded = ((key, value) for key, value in accounting.excluded.items() if "max_samples" not in key[1])
    first = next((item for item in excluded if item[0][1] != IMAGE_EXCLUDED), None)
    if first and options.on_error == "raise":
        (kind, reason), exclusion = first
        raise ImageError(f"{source}: {split}: {kind} {exclusion.examples[0]}: {reason}; data.on_error is raise")
