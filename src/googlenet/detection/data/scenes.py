"""Synthetic scenes: Fashion-MNIST garments at random positions on textured backgrounds, with exact boxes.

A data set on which a detector trains in minutes. A scene is a function of (seed, split, index). Training scenes contain
training garments of Fashion-MNIST only, test scenes test garments only.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import masks_to_boxes

from ...data.dataset import LoadOptions, Split
from ...data.sources import load_dataset
from ...data.sources.fashion_mnist import CLASSES
from ...files import cache_file
from .coco import find_coco_files, load_coco, write_coco
from .dataset import DetectionDataset, Sample

# Part of the folder's name in the cache: increase it if the same configuration would give other scenes.
VERSION = 1
GARMENT_SIZE = 28
Array = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Scenes:
    """The configuration of the scenes: the numbers of scenes, and inclusive ranges.

    They are of the height and the width in pixels (`sides`), a garment's size as a factor of its 28 pixels, log-uniform
    (`scales`), the number of garments that are placed if they fit (`objects`), and a garment's brightness range as a
    fraction of the full range (`contrasts`). `visible` is the smallest fraction of a garment that remains visible.
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
        """Parse ``train=4000,test=1000,seed=0``, each item optional; ValueError for other keys and values."""
        values: dict[str, Any] = {}
        for item in filter(None, text.split(",")):
            key, _, value = item.partition("=")
            if key not in ("train", "test", "seed") or not value.isdecimal():
                raise ValueError(f"scenes takes train=N,test=N,seed=N, not {item!r}")
            values[key] = int(value)
        scenes = cls(**values)
        if scenes.train < 1:
            raise ValueError("scenes needs at least one training scene: train=1 or more")
        return scenes


def load(location: str, options: LoadOptions) -> DetectionDataset:
    """Load the scenes of ``train=N,test=N,seed=N``; they are drawn once and cached."""
    source = f"scenes:{location}" if location else "scenes"
    return load_coco(scenes_folder(Scenes.parse(location), options.root), source, options)


class Canvas:
    """A scene while it is drawn.

    `pixels` are in 0..1, `owner` is the index of the garment at each pixel (-1 for the background), and `sizes` are the
    garments' total pixels.
    """

    def __init__(self, background: Array):
        self.pixels = background
        self.owner: NDArray[np.int16] = np.full(background.shape, -1, np.int16)
        self.sizes: list[int] = []

    def place(self, brightness: Array, shape: Mask, top: int, left: int, min_visible: float) -> bool:
        """Draw a garment of mask `shape`, unless it or one that it covers would be visible by less than a fraction."""
        (height, width), side = self.owner.shape, len(shape)
        window = slice(max(top, 0), min(top + side, height)), slice(max(left, 0), min(left + side, width))
        inside = slice(max(-top, 0), window[0].stop - top), slice(max(-left, 0), window[1].stop - left)
        mask, size = shape[inside], int(shape.sum())
        if not size or mask.sum() < min_visible * size:
            return False
        covered = np.bincount(self.owner[window][mask] + 1, minlength=len(self.sizes) + 1)[1:]
        remaining = np.bincount(self.owner.ravel() + 1, minlength=len(self.sizes) + 1)[1:] - covered
        if any(count < min_visible * total for count, total in zip(remaining.tolist(), self.sizes, strict=True)):
            return False
        self.pixels[window][mask] = brightness[inside][mask]
        self.owner[window][mask] = len(self.sizes)
        self.sizes.append(size)
        return True


def garment_mask(image: NDArray[np.uint8]) -> Mask:
    """Segment a garment (28, 28): all pixels but the black region (values < 8) connected with the border."""
    # Flood fill from a black border, one pixel per iteration. The border is outside, so wrapping around is harmless.
    dark = np.pad(image < 8, 1, constant_values=True)
    outside, previous = np.pad(np.zeros(image.shape, np.bool_), 1, constant_values=True), dark[:0]
    while not np.array_equal(outside, previous):
        previous = outside
        neighbors = [np.roll(outside, shift, axis) for shift in (-1, 1) for axis in (0, 1)]
        outside = np.logical_or.reduce([outside, *neighbors]) & dark
    return ~outside[1:-1, 1:-1]


def draw_scene(scenes: Scenes, garments: Split, split: int, index: int) -> Sample:
    """Draw scene `index` of a split (0 train, 1 test) with garments from `garments`, (n, 1, 28, 28)."""
    assert isinstance(garments.images, Tensor)
    rng = np.random.default_rng([VERSION, scenes.seed, split, index])
    height, width = (int(side) for side in rng.integers(scenes.sides[0], scenes.sides[1] + 1, 2))
    canvas = Canvas(draw_background(rng, height, width))
    labels: list[int] = []
    for _ in range(int(rng.integers(scenes.objects[0], scenes.objects[1] + 1))):
        chosen = int(rng.integers(len(garments.labels)))
        side = round(GARMENT_SIZE * float(np.exp(rng.uniform(*np.log(scenes.scales)))))
        brightness, shape = _resize_garment(garments.images[chosen, 0], side)
        contrast = float(rng.uniform(*scenes.contrasts))
        brightness = float(rng.uniform(0, 1 - contrast)) + contrast * brightness
        for _ in range(20):
            # Up to a fifth of the garment may be outside the image.
            top = int(rng.integers(-side // 5, max(height - side + side // 5, 1 - side // 5)))
            left = int(rng.integers(-side // 5, max(width - side + side // 5, 1 - side // 5)))
            if canvas.place(brightness, shape, top, left, scenes.visible):
                labels.append(int(garments.labels[chosen]))
                break
    masks = torch.from_numpy(canvas.owner) == torch.arange(len(labels)).view(-1, 1, 1)
    boxes = masks_to_boxes(masks)
    boxes[:, 2:] += 1
    pixels = torch.from_numpy(np.rint(np.clip(canvas.pixels, 0, 1) * 255).astype(np.uint8)).unsqueeze(0)
    return Sample(
        f"scene {index}", index, pixels, height, width, boxes, torch.tensor(labels, dtype=torch.int64),
        torch.zeros(len(labels), dtype=torch.bool), masks.sum(dim=(1, 2)).float(),
    )  # fmt: skip


def _resize_garment(image: Tensor, side: int) -> tuple[Array, Mask]:
    """Return brightness 0..1 and mask of a resized garment, which has the pixels that it covers at least by half."""
    mask = torch.from_numpy(garment_mask(image.numpy()))
    both = torch.stack((image.float() / 255, mask.float())).unsqueeze(0)
    resized = F.interpolate(both, (side, side), mode="bilinear", antialias=side < GARMENT_SIZE)[0]
    return resized[0].numpy(), (resized[1] >= 0.5).numpy()


def draw_background(rng: np.random.Generator, height: int, width: int) -> Array:
    """Draw a texture in 0..1: noise at several scales, a brightness gradient, and sometimes stripes or tiles."""
    texture = np.zeros((height, width), np.float32)
    for cell in (64, 24, 8, 3):
        grid = rng.normal(0, 1, (1, 1, height // cell + 2, width // cell + 2)).astype(np.float32)
        noise = F.interpolate(torch.from_numpy(grid), (height, width), mode="bicubic", align_corners=False)
        texture += float(rng.uniform(0, 0.09)) * noise[0, 0].numpy()
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    along = np.cos(angle) * x + np.sin(angle) * y
    texture += float(rng.uniform(-0.3, 0.3)) * along / max(height, width)
    pattern, period, amplitude = rng.integers(4), rng.uniform(5, 30), rng.uniform(0.03, 0.15)
    if pattern == 1:
        texture += np.float32(amplitude) * np.sin(2 * np.pi * along / period).astype(np.float32)
    elif pattern == 2:
        across = np.cos(angle) * y - np.sin(angle) * x
        tiles = np.sign(np.sin(np.pi * along / period) * np.sin(np.pi * across / period))
        texture += np.float32(amplitude) * tiles.astype(np.float32)
    texture += float(rng.uniform(0.15, 0.85)) - texture.mean()
    return np.clip(texture, 0, 1).astype(np.float32)


def draw_scenes(scenes: Scenes, split: str, root: str | None = None) -> Iterator[Sample]:
    """Yield the scenes of ``train`` or ``test``; `root` is the folder to search for Fashion-MNIST first."""
    data = load_dataset("fashion-mnist", LoadOptions(root=root, validation=0))
    garments, number, count = (data.train, 0, scenes.train) if split == "train" else (data.test, 1, scenes.test)
    for index in range(count):
        yield draw_scene(scenes, garments, number, index)


def write_scenes(scenes: Scenes, folder: Path, root: str | None = None) -> list[Path]:
    """Write scenes in COCO format to a new or empty folder, and return the files; ValueError for another folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: exists and is not empty; name an empty folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A temporary folder is renamed at the end, so that an interrupted call leaves no incomplete data set.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        root_folder = Path(scratch, "scenes")
        files: list[Path] = []
        for split in ("train", "test"):
            files += write_coco(root_folder, split, list(draw_scenes(scenes, split, root)), CLASSES)
        files.append(root_folder / "scenes.json")
        files[-1].write_text(json.dumps({"version": VERSION, **asdict(scenes)}, indent=2) + "\n")
        if folder.exists():
            folder.rmdir()
        shutil.move(root_folder, folder)
    return [folder / path.relative_to(root_folder) for path in files]


def scenes_folder(scenes: Scenes, root: str | None = None) -> Path:
    """Return the cached folder of the scenes; they are drawn if it does not exist."""
    name = f"v{VERSION}-train{scenes.train}-test{scenes.test}-seed{scenes.seed}"
    folder = cache_file("scenes", name)
    if not folder.is_dir() or "train" not in find_coco_files(folder):
        print(f"drawing {scenes.train + scenes.test:,} scenes into {folder}", file=sys.stderr)
        try:
            write_scenes(scenes, folder, root)
        except OSError:
            if not folder.is_dir():  # otherwise another process has finished first
                raise
    return folder
