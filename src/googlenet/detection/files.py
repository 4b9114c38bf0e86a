"""Picture files with annotations -> pictures that can be used, decoded where they fit into memory."""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ..data.checked import check_pictures
from ..data.dataset import Unreadable
from ..data.folder import printable
from ..data.pictures import PictureError
from ..data.stream import Places
from .dataset import DetectionDataset, Found, Picture, hold_out, sentences, spaced, usable

# What decoded pictures may take of the memory; a source that would need more is read from the disk as it is used.
MAX_BYTES = 4 * 2**30
# Pictures whose pixels make the mean and the deviation.
SAMPLE = 2000

MISSING, UNREADABLE = "pictures missing, left out", "pictures that cannot be read, left out"
OTHER_SIZE = "pictures of another size than their boxes were made for, left out"
EMPTY = "pictures without an object, kept"


class Annotated(NamedTuple):
    """What an annotation file says of one picture, unchecked: boxes (left, top, right, bottom), and the rest of
    `Picture` as plain values. `size` is (height, width), None where the file does not say."""

    path: Path
    number: int
    size: tuple[int, int] | None
    boxes: Sequence[Sequence[float]]
    labels: Sequence[int]
    crowd: Sequence[bool]
    areas: Sequence[float]


class Header(NamedTuple):
    """What a file says of its picture before it is decoded."""

    height: int
    width: int
    grey: bool


def checked(annotated: Sequence[Annotated], classes: tuple[str, ...], problems: Counter[str]) -> tuple[Found, bool]:
    """The pictures that can be used, and whether all are grey; what is wrong with the others is counted."""
    with ThreadPoolExecutor() as pool:
        headers = list(pool.map(_header, [one.path for one in annotated]))
    pictures, grey = [], True
    for one, header in zip(annotated, headers, strict=True):
        if isinstance(header, str):
            problems[header] += 1
            continue
        size = one.size or (header.height, header.width)
        if sorted(size) != sorted((header.height, header.width)):
            problems[OTHER_SIZE] += 1
            continue
        grey &= header.grey
        pictures.append(_picture(one, size, problems))
    if nothing := sum(not len(picture.boxes) for picture in pictures):
        problems[EMPTY] += nothing
    return Found(classes, pictures, problems), grey


def _header(path: Path) -> Header | str:
    """The header of a picture file, or the kind of problem."""
    try:
        with Image.open(path) as picture:
            return Header(picture.height, picture.width, picture.mode in ("L", "1", "I;16"))
    except FileNotFoundError:
        return MISSING
    except Exception:  # Pillow raises many kinds for a damaged file
        return UNREADABLE


def _picture(one: Annotated, size: tuple[int, int], problems: Counter[str]) -> Picture:
    boxes = torch.tensor(one.boxes, dtype=torch.float32).view(-1, 4)
    boxes, kept = usable(boxes, *size, problems)
    return Picture(
        printable(one.path),
        one.number,
        one.path,
        *size,
        boxes[kept],
        torch.tensor(one.labels, dtype=torch.int64)[kept],
        torch.tensor(one.crowd, dtype=torch.bool)[kept],
        torch.tensor(one.areas, dtype=torch.float32)[kept],
    )


def decoded(pictures: Sequence[Picture], channels: int, problems: Counter[str], source: str) -> list[Picture]:
    """The pictures that can be decoded, in memory where all fit in `MAX_BYTES`; the others are counted.

    `source` names the place of a large source's record in the cache: its files are decoded once to know the good
    ones.
    """
    if sum(picture.height * picture.width for picture in pictures) * channels > MAX_BYTES:
        paths = [os.fspath(picture.pixels) for picture in pictures if isinstance(picture.pixels, Path)]
        found = check_pictures(Places.whole(paths), paths, source)
        problems[UNREADABLE] += int((~found.usable).sum())
        return [picture for picture, good in zip(pictures, found.usable.tolist(), strict=True) if good]

    def decode(picture: Picture) -> Picture | None:
        try:
            return picture._replace(pixels=picture.read(channels))
        except PictureError:
            return None

    with ThreadPoolExecutor() as pool:
        read = list(pool.map(decode, pictures))
    problems[UNREADABLE] += sum(picture is None for picture in read)
    return [picture for picture in read if picture is not None]


def assemble(
    source: str,
    splits: dict[str, tuple[Found, bool]],
    *,
    channels: int | None = None,
    unreadable: Unreadable = "skip",
    validation: float = 0.0,
    seed: int = 0,
    limit: int | None = None,
) -> DetectionDataset:
    """The data set of the splits ``train``, ``validation`` and ``test`` that were found, ``train`` at least.

    Where there is no validation split, `validation` (a count, or a fraction below 1) of the training pictures are
    held out; which, `seed` decides. `limit` keeps at most so many pictures of each split. ValueError where no picture
    or no box to train on is left, and, with ``unreadable="refuse"``, where any picture cannot be used.
    """
    classes = splits["train"][0].classes
    channels = channels or (1 if all(grey for _, grey in splits.values()) else 3)
    read: dict[str, Sequence[Picture]] = {"train": [], "validation": [], "test": []}
    for name, (found, _) in splits.items():
        if found.classes != classes:
            raise ValueError(
                f"{source}: the classes of its {name} pictures are others than those of its training ones"
            )
        read[name] = found.pictures
    if not read["validation"] and validation and read["train"]:
        read["train"], read["validation"] = hold_out(read["train"], validation, seed)
    for name, pictures in read.items():
        problems = splits[name if name in splits else "train"][0].problems
        chosen = pictures if limit is None else spaced(pictures, limit)
        read[name] = decoded(chosen, channels, problems, f"{source}|{name}")
    skipped: list[str] = []
    for name, (found, _) in splits.items():
        lost = sum(found.problems[kind] for kind in (MISSING, UNREADABLE, OTHER_SIZE))
        if lost and unreadable == "refuse":
            raise PictureError(f"{source}: {lost} of its {name} pictures cannot be used; data.unreadable is refuse")
        skipped += sentences(+found.problems, name)
    if not read["train"]:
        raise ValueError(f"{source}: no training picture that can be used. {'; '.join(skipped[:3])}".rstrip(". "))
    if not any(len(picture.boxes) for picture in read["train"]):
        raise ValueError(
            f"{source}: no training picture has a box that can be used. {'; '.join(skipped[:3])}".rstrip(". ")
        )
    counts = torch.bincount(
        torch.cat([picture.labels[picture.objects] for picture in read["train"]]), minlength=len(classes)
    )
    if absent := [name for name, count in zip(classes, counts.tolist(), strict=True) if not count]:
        skipped.append(f"train: no object of class {', '.join(absent)}")
    mean, std = _statistics(read["train"], channels)
    return DetectionDataset(source, classes, **read, channels=channels, mean=mean, std=std, skipped=tuple(skipped))


def _statistics(pictures: Sequence[Picture], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the pixels per channel, as fractions of the pixel range, of at most `SAMPLE` pictures."""
    counts = torch.zeros(channels, 256, dtype=torch.float64)
    for picture in spaced(pictures, SAMPLE):
        pixels: Tensor = picture.read(channels)
        for channel in range(channels):
            counts[channel] += torch.bincount(pixels[channel].flatten(), minlength=256)
    share = counts / counts.sum(dim=1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ values
    deviation = ((values - mean.unsqueeze(1)).square() * share).sum(dim=1).sqrt().clamp_min(1e-4)
    return tuple(round(v, 4) for v in mean.tolist()), tuple(round(v, 4) for v in deviation.tolist())
