"""Scenes: garments of Fashion-MNIST at random places on textured backgrounds, with exact boxes.

A data set to learn detection on in minutes. A scene is a function of (seed, split, number) alone. Garments of
Fashion-MNIST's training part are in training scenes only, those of its test part in test scenes only.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..cache import cache_folder
from ..data.dataset import Split
from ..data.fashion_mnist import CLASSES, load_fashion_mnist
from .coco import coco_files, write_coco
from .dataset import Picture

# Raised when the same numbers would give other scenes: it is a part of the cache's name.
VERSION = 1

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Scenes:
    """What is asked for: how many scenes of each split, and how they look.

    Heights and widths are in `sides` pixels; a garment is `scales` times its 28 pixels, all sizes in between being
    equally likely on a logarithmic scale; `objects` garments are tried on a scene. Of a garment that others or the
    border hide, the share `visible` of its pixels remains at least. `contrasts` are the range of its brightness, as a
    share of the full range.
    """

    train: int = 4000
    test: int = 1000
    seed: int = 0
    sides: tuple[int, int] = (128, 192)
    scales: tuple[float, float] = (0.7, 4.0)
    objects: tuple[int, int] = (1, 8)
    visible: float = 0.7
    contrasts: tuple[float, float] = (0.6, 1.0)

    @classmethod
    def parse(cls, text: str) -> "Scenes":
        """``train=4000,test=1000,seed=0``, each part optional; ValueError for another key or value."""
        values: dict[str, Any] = {}
        for part in filter(None, text.split(",")):
            key, _, value = part.partition("=")
            if key not in ("train", "test", "seed") or not value.isdecimal():
                raise ValueError(f"scenes take train=N,test=N,seed=N, not {part!r}")
            values[key] = int(value)
        scenes = cls(**values)
        if scenes.train < 1:
            raise ValueError("scenes need a training scene at least: train=1 or more")
        return scenes


class Garment(NamedTuple):
    """A garment at its final size: brightness in 0..1 and outline (bool), both (side, side)."""

    brightness: Array
    outline: NDArray[np.bool_]


def silhouette(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which pixels belong to the garment: (28, 28) -> bool (28, 28).

    Everything but the black that is connected with the border: black parts inside stay in. Specks fainter than 8 of
    255 do not count.
    """
    # Flooded from a rim of black around the picture, a pixel further with each pass.
    dark = np.pad(image < 8, 1, constant_values=True)
    outside = np.pad(np.zeros(image.shape, np.bool_), 1, constant_values=True)
    while True:
        wider = outside.copy()
        wider[1:] |= outside[:-1]
        wider[:-1] |= outside[1:]
        wider[:, 1:] |= outside[:, :-1]
        wider[:, :-1] |= outside[:, 1:]
        wider &= dark
        if np.array_equal(wider, outside):
            return ~outside[1:-1, 1:-1]
        outside = wider


def draw_scene(scenes: Scenes, garments: Split, part: int, number: int) -> Picture:
    """Scene `number` of split `part` (0 train, 1 test) with garments drawn from `garments`, (n, 1, 28, 28)."""
    assert isinstance(garments.images, Tensor)
    rng = np.random.default_rng([VERSION, scenes.seed, part, number])
    height, width = (int(side) for side in rng.integers(scenes.sides[0], scenes.sides[1] + 1, 2))
    canvas = background(rng, height, width)
    owner = np.full((height, width), -1, np.int16)  # which garment each pixel shows
    sizes: list[int] = []  # pixels of each garment, hidden ones included
    labels: list[int] = []
    for _ in range(int(rng.integers(scenes.objects[0], scenes.objects[1] + 1))):
        chosen = int(rng.integers(len(garments.labels)))
        side = round(28 * float(np.exp(rng.uniform(*np.log(scenes.scales)))))
        garment = _resized(garments.images[chosen, 0], side)
        contrast = float(rng.uniform(*scenes.contrasts))
        low = float(rng.uniform(0, 1 - contrast))
        for _ in range(20):
            # Up to a fifth of it may lie outside.
            top = int(rng.integers(-side // 5, max(height - side + side // 5, 1 - side // 5)))
            left = int(rng.integers(-side // 5, max(width - side + side // 5, 1 - side // 5)))
            if _place(canvas, owner, sizes, garment, top, left, (low, contrast), scenes.visible):
                labels.append(int(garments.labels[chosen]))
                break
    boxes = torch.tensor([_box(owner == one) for one in range(len(labels))], dtype=torch.float32).view(-1, 4)
    pixels = torch.from_numpy(np.rint(np.clip(canvas, 0, 1) * 255).astype(np.uint8)).unsqueeze(0)
    areas = torch.tensor([float((owner == one).sum()) for one in range(len(labels))])
    return Picture(
        f"scene {number}", number, pixels, height, width, boxes, torch.tensor(labels, dtype=torch.int64),
        torch.zeros(len(labels), dtype=torch.bool), areas,
    )  # fmt: skip


def _resized(image: Tensor, side: int) -> Garment:
    """A garment at `side` pixels, its outline sharp: a pixel is the garment's where half of it is."""
    outline = torch.from_numpy(silhouette(image.numpy()))
    both = torch.stack((image.float() / 255, outline.float())).unsqueeze(0)
    both = F.interpolate(both, (side, side), mode="bilinear", align_corners=False, antialias=side < 28)[0]
    return Garment(both[0].numpy(), (both[1] >= 0.5).numpy())


def _place(
    canvas: Array,
    owner: NDArray[np.int16],
    sizes: list[int],
    garment: Garment,
    top: int,
    left: int,
    light: tuple[float, float],
    visible: float,
) -> bool:
    """Paint the garment, unless too little of it, or of one that it would hide, remained to be seen."""
    height, width = owner.shape
    side = len(garment.outline)
    lines, columns = slice(max(top, 0), min(top + side, height)), slice(max(left, 0), min(left + side, width))
    inside = slice(lines.start - top, lines.stop - top), slice(columns.start - left, columns.stop - left)
    shape = garment.outline[inside]
    size = int(garment.outline.sum())
    if not size or shape.sum() < visible * size:
        return False
    hidden = np.bincount(owner[lines, columns][shape] + 1, minlength=len(sizes) + 1)[1:]
    shown = np.bincount(owner.ravel() + 1, minlength=len(sizes) + 1)[1:] - hidden
    if any(left_over < visible * whole for left_over, whole in zip(shown.tolist(), sizes, strict=True)):
        return False
    low, contrast = light
    canvas[lines, columns][shape] = low + contrast * garment.brightness[inside][shape]
    owner[lines, columns][shape] = len(sizes)
    sizes.append(size)
    return True


def _box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """The smallest box around the pixels of `mask`."""
    lines, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(lines[0]), int(columns[-1]) + 1, int(lines[-1]) + 1


def background(rng: np.random.Generator, height: int, width: int) -> Array:
    """A texture in 0..1: noise of several grains, a slope of light, and at times stripes or tiles."""
    texture = np.zeros((height, width), np.float32)
    for grain in (64, 24, 8, 3):
        grid = rng.normal(0, 1, (1, 1, height // grain + 2, width // grain + 2)).astype(np.float32)
        smooth = F.interpolate(torch.from_numpy(grid), (height, width), mode="bicubic", align_corners=False)
        texture += float(rng.uniform(0, 0.09)) * smooth[0, 0].numpy()
    down, across = np.mgrid[0:height, 0:width].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    along = np.cos(angle) * across + np.sin(angle) * down
    texture += float(rng.uniform(-0.3, 0.3)) * along / max(height, width)
    kind, period, depth = rng.integers(4), rng.uniform(5, 30), rng.uniform(0.03, 0.15)
    if kind == 1:
        texture += np.float32(depth) * np.sin(2 * np.pi * along / period).astype(np.float32)
    elif kind == 2:
        aside = np.cos(angle) * down - np.sin(angle) * across
        tiles = np.sign(np.sin(np.pi * along / period) * np.sin(np.pi * aside / period))
        texture += np.float32(depth) * tiles.astype(np.float32)
    texture += float(rng.uniform(0.15, 0.85)) - texture.mean()
    return np.clip(texture, 0, 1).astype(np.float32)


def generate(scenes: Scenes, split: str, root: str | None = None) -> Iterator[Picture]:
    """The scenes of ``train`` or ``test``, one after the other; `root` is where Fashion-MNIST is looked for first."""
    data = load_fashion_mnist(root, 0)
    garments, part = (data.train, 0) if split == "train" else (data.test, 1)
    for number in range(scenes.train if part == 0 else scenes.test):
        yield draw_scene(scenes, garments, part, number)


def write_scenes(scenes: Scenes, folder: Path, root: str | None = None) -> list[Path]:
    """Write the scenes to `folder` in COCO's form: ``annotations/``, ``train/``, ``test/``; all files.

    ValueError where the folder holds something already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: exists already; name an empty folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Written beside it and renamed, so that nobody finds half of them.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        place = Path(scratch, "scenes")
        place.mkdir()
        files: list[Path] = []
        for split in ("train", "test"):
            files += write_coco(place, split, list(generate(scenes, split, root)), CLASSES)
        (place / "scenes.json").write_text(json.dumps({"version": VERSION, **asdict(scenes)}, indent=2) + "\n")
        if folder.exists():
            folder.rmdir()
        shutil.move(place, folder)
    return [folder / path.relative_to(place) for path in files] + [folder / "scenes.json"]


def scenes_folder(scenes: Scenes, root: str | None = None) -> Path:
    """The folder in the cache that has the scenes, drawn now where it does not yet; says so on standard error."""
    name = f"v{VERSION}-train{scenes.train}-test{scenes.test}-seed{scenes.seed}"
    folder = cache_folder() / "scenes" / name
    if not folder.is_dir() or "train" not in coco_files(folder):
        print(f"drawing {scenes.train + scenes.test:,} scenes, once, into {folder}", file=sys.stderr)
        try:
            write_scenes(scenes, folder, root)
        except OSError:
            if not folder.is_dir():  # else another process was first
                raise
    return folder
