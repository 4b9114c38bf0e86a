"""Check annotated images, decode them into memory if they fit, and build a data set."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torchvision.ops import clip_boxes_to_image

from ...data.accounting import Accounting
from ...data.dataset import LoadOptions, num_validation
from ...data.decode import ImageError, printable
from ...data.lazy import ByteRanges
from ...data.scan import channel_histogram, check_images, mean_std
from .dataset import DetectionDataset, Sample, subsample

# Largest size of the decoded images in memory; the images of a larger source are decoded when they are used.
MAX_BYTES = 4 * 2**30
# Number of images that the mean and standard deviation are computed from.
STATISTICS_SAMPLES = 2000
MISSING, UNREADABLE = "image files missing, skipped", "unreadable images, skipped"
WRONG_SIZE = "images of another size than their annotations, skipped"
NO_BOX, NO_OBJECTS = "annotations without a box, skipped", "images without objects, kept"


class RawObject(NamedTuple):
    """An unchecked object: x1, y1, x2, y2 in pixels, and the other fields of `Sample`; without `area`, the box's."""

    box: tuple[float, float, float, float]
    label: int
    crowd: bool
    area: float | None = None


class RawAnnotation(NamedTuple):
    """An image's unchecked annotation; `size` is (height, width), None if the annotation has none."""

    path: Path
    image_id: int
    size: tuple[int, int] | None
    objects: Sequence[RawObject]


class AnnotationFile(NamedTuple):
    """The usable samples of a split, whether all their images are gray, and the number of each kind of problem."""

    classes: tuple[str, ...]
    samples: list[Sample]
    all_gray: bool
    problems: Counter[str]


def validate_annotations(
    annotations: Sequence[RawAnnotation], classes: tuple[str, ...], problems: Counter[str]
) -> AnnotationFile:
    """Convert annotations to samples, leave out unusable images and boxes, and add their problems to the count."""
    with ThreadPoolExecutor() as pool:
        headers = list(pool.map(_read_header, [annotation.path for annotation in annotations]))
    samples, all_gray = [], True
    for annotation, header in zip(annotations, headers, strict=True):
        if isinstance(header, str):
            problems[header] += 1
            continue
        height, width, gray = header
        size = annotation.size or (height, width)
        # The size may be that of the image before its EXIF rotation.
        if sorted(size) != sorted((height, width)):
            problems[WRONG_SIZE] += 1
            continue
        all_gray &= gray
        samples.append(_build_sample(annotation, size, problems))
    problems[NO_OBJECTS] += sum(not len(sample.boxes) for sample in samples)
    return AnnotationFile(classes, samples, all_gray, problems)


def _read_header(path: Path) -> tuple[int, int, bool] | str:
    """Return height, width and whether an image file is gray, without decoding it; or the kind of problem."""
    try:
        with Image.open(path) as image:
            return image.height, image.width, image.mode in ("L", "1", "I;16")
    except FileNotFoundError:
        return MISSING
    except Exception:  # Pillow raises many types for damaged files
        return UNREADABLE


def _build_sample(annotation: RawAnnotation, size: tuple[int, int], problems: Counter[str]) -> Sample:
    """Clip the boxes to the image, leave out unusable ones, and count the problems.

    Up to one pixel outside the image is rounding and not counted.
    """
    objects = annotation.objects
    boxes = torch.tensor([item.box for item in objects], dtype=torch.float32).view(-1, 4)
    finite = boxes.isfinite().all(dim=1)
    boxes = torch.where(finite.unsqueeze(1), boxes, 0.0)
    clipped = clip_boxes_to_image(boxes, size)
    empty = ~finite | ((boxes[:, 2:] - boxes[:, :2]) <= 0).any(dim=1)
    outside = ~empty & ((clipped[:, 2:] - clipped[:, :2]) <= 0).any(dim=1)
    cut = ~empty & ~outside & ((clipped - boxes).abs() > 1).any(dim=1)
    problems["empty boxes, skipped"] += int(empty.sum())
    problems["boxes outside their image, skipped"] += int(outside.sum())
    problems["boxes partly outside their image, clipped to it"] += int(cut.sum())
    kept = ~empty & ~outside
    # Python's floats, because areas are computed in double precision.
    areas = [item.area or (item.box[2] - item.box[0]) * (item.box[3] - item.box[1]) for item in objects]
    return Sample(
        printable(annotation.path),
        annotation.image_id,
        annotation.path,
        *size,
        clipped[kept],
        torch.tensor([item.label for item in objects], dtype=torch.int64)[kept],
        torch.tensor([item.crowd for item in objects], dtype=torch.bool)[kept],
        torch.tensor(areas, dtype=torch.float32)[kept],
    )


def load_images(samples: Sequence[Sample], channels: int, problems: Counter[str], cache_key: str) -> list[Sample]:
    """Decode the images into memory if all fit in `MAX_BYTES`; unreadable ones are left out and counted.

    Those of a larger source are decoded once to find the unreadable ones, which are cached for `cache_key`.
    """
    if sum(sample.height * sample.width for sample in samples) * channels > MAX_BYTES:
        paths = [os.fspath(sample.pixels) for sample in samples if isinstance(sample.pixels, Path)]
        usable = check_images(ByteRanges.from_files(paths), paths, cache_key).usable.tolist()
        kept = [sample for sample, is_usable in zip(samples, usable, strict=True) if is_usable]
    else:
        with ThreadPoolExecutor() as pool:
            decoded = pool.map(lambda sample: _decode(sample, channels), samples)
            kept = [sample for sample in decoded if sample is not None]
    problems[UNREADABLE] += len(samples) - len(kept)
    return kept


def _decode(sample: Sample, channels: int) -> Sample | None:
    try:
        return sample._replace(pixels=sample.read(channels))
    except ImageError:
        return None


def split_validation(
    samples: Sequence[Sample], validation: float, seed: int
) -> tuple[Sequence[Sample], Sequence[Sample]]:
    """Split samples randomly into training and validation; `validation` is a count or a fraction below 1."""
    count = num_validation(len(samples), validation)
    chosen = set(torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))[:count].tolist())
    train = [sample for index, sample in enumerate(samples) if index not in chosen]
    return train, [samples[index] for index in sorted(chosen)]


def build_detection_dataset(source: str, files: Mapping[str, AnnotationFile], options: LoadOptions) -> DetectionDataset:
    """Build a data set from its splits: ``train``, and optionally ``validation`` and ``test``.

    Validation images are held out of the training images if the source has none. Raises ValueError if no usable
    training image or box remains, and ImageError for an unusable image with ``on_error="raise"``.
    """
    classes = files["train"].classes
    channels = options.channels or (1 if all(file.all_gray for file in files.values()) else 3)
    splits: dict[str, Sequence[Sample]] = {"train": [], "validation": [], "test": []}
    for name, file in files.items():
        if file.classes != classes:
            raise ValueError(f"{source}: the classes of its {name} images differ from those of its training images")
        splits[name] = file.samples
    if not splits["validation"] and options.validation and splits["train"]:
        splits["train"], splits["validation"] = split_validation(splits["train"], options.validation, options.seed)
    for name, samples in splits.items():
        problems = files[name if name in files else "train"].problems
        chosen = samples if options.max_samples is None else subsample(samples, options.max_samples)
        splits[name] = load_images(chosen, channels, problems, f"{source}|{name}")
    skipped: list[str] = []
    for name, file in files.items():
        unusable = sum(file.problems[kind] for kind in (MISSING, UNREADABLE, WRONG_SIZE))
        if unusable and options.on_error == "raise":
            raise ImageError(f"{source}: {unusable} {name} images cannot be used, and data.on_error is raise")
        skipped += [f"{name}: {count:,} {kind}" for kind, count in sorted(file.problems.items()) if count]
    train = splits["train"]
    if not any(len(sample.boxes) for sample in train):
        problem = "usable training image has a box" if train else "training image can be used"
        raise ValueError(f"{source}: no {problem}. {'; '.join(skipped[:3])}".rstrip(". "))
    counts = torch.bincount(torch.cat([sample.labels[~sample.crowd] for sample in train]), minlength=len(classes))
    if missing := [name for name, count in zip(classes, counts.tolist(), strict=True) if not count]:
        skipped.append(f"train: no object of class {', '.join(missing)}")
    sampled = (sample.read(channels).unsqueeze(0) for sample in subsample(train, STATISTICS_SAMPLES))
    mean, std = mean_std(sum(map(channel_histogram, sampled), torch.tensor(0)))
    accounting = Accounting(notes=skipped)
    return DetectionDataset(source, classes, **splits, channels=channels, mean=mean, std=std, accounting=accounting)
