"""Synthetic scenes: determinism, exact boxes, disjoint garments of the splits, and the data source."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from conftest import googlenet
from googlenet.data.sources import LoadOptions, load_dataset
from googlenet.data.sources.fashion_mnist import CLASSES
from googlenet.detection.data.dataset import load_detection_dataset
from googlenet.detection.data.scenes import (
    Scenes,
    draw_background,
    draw_scene,
    draw_scenes,
    garment_mask,
    scenes_folder,
)

SMALL = Scenes(train=12, test=6, seed=3)


def test_scenes_are_functions_of_seed_split_and_index(fashion_mnist_folder: Path) -> None:
    first, second = (list(draw_scenes(SMALL, "test", str(fashion_mnist_folder))) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.boxes, other.boxes)
    longer = next(iter(draw_scenes(Scenes(train=1, test=50, seed=3), "test", str(fashion_mnist_folder))))
    assert torch.equal(longer.pixels, first[0].pixels), "does not depend on the number of scenes"
    others = next(iter(draw_scenes(Scenes(seed=4), "test", str(fashion_mnist_folder))))
    assert others.pixels.shape != first[0].pixels.shape or not torch.equal(others.pixels, first[0].pixels)


def test_boxes_enclose_the_visible_pixels(fashion_mnist_folder: Path) -> None:
    """The pixels that differ from the background alone are those of the garment."""
    data = load_dataset("fashion-mnist", LoadOptions(root=str(fashion_mnist_folder), validation=0))
    single = Scenes(objects=(1, 1))
    for index in range(20):
        scene = draw_scene(single, data.test, 1, index)
        rng = np.random.default_rng([1, single.seed, 1, index])
        height, width = (int(side) for side in rng.integers(single.sides[0], single.sides[1] + 1, 2))
        empty = np.rint(draw_background(rng, height, width) * 255).astype(np.uint8)
        changed = scene.pixels[0].numpy() != empty
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        left, top, right, bottom = scene.boxes[0].tolist()
        # A pixel may have the brightness of the background by chance: then the box is slightly larger.
        assert left <= columns[0] <= left + 2 and right - 2 <= columns[-1] + 1 <= right
        assert top <= rows[0] <= top + 2 and bottom - 2 <= rows[-1] + 1 <= bottom
        assert scene.areas[0] >= changed.sum() > 0.95 * scene.areas[0]


def test_scenes_vary_in_size_number_and_class(fashion_mnist_folder: Path) -> None:
    scenes = list(draw_scenes(Scenes(train=60, test=0), "train", str(fashion_mnist_folder)))
    sides = torch.cat([(scene.boxes[:, 2:] - scene.boxes[:, :2]).amax(dim=1) for scene in scenes])
    counts = [len(scene.boxes) for scene in scenes]
    assert min(counts) == 1 and max(counts) == 8
    assert 10 <= sides.min() < 20 and 90 < sides.max() <= 112
    assert len({scene.pixels.shape for scene in scenes}) > 30
    assert torch.cat([scene.labels for scene in scenes]).unique().tolist() == list(range(10))
    for scene in scenes:
        assert (scene.boxes[:, :2] >= 0).all() and (scene.boxes[:, 2] <= scene.width).all()
        assert (scene.boxes[:, 3] <= scene.height).all() and (scene.areas > 0).all()


def test_splits_use_different_garments(fashion_mnist_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, int]] = []
    data = load_dataset("fashion-mnist", LoadOptions(root=str(fashion_mnist_folder), validation=0))
    monkeypatch.setattr(
        "googlenet.detection.data.scenes.draw_scene",
        lambda scenes, garments, split, index: drawn.append((split, len(garments.labels))),
    )
    for split in ("train", "test"):
        list(draw_scenes(Scenes(train=1, test=1), split, str(fashion_mnist_folder)))
    assert drawn == [(0, len(data.train.labels)), (1, len(data.test.labels))] == [(0, 60000), (1, 10000)]


def test_mask_includes_enclosed_black_pixels() -> None:
    ring = np.zeros((28, 28), np.uint8)
    ring[5:20, 8:18] = 200
    ring[8:15, 10:15] = 0
    full = np.zeros((28, 28), np.bool_)
    full[5:20, 8:18] = True
    assert (garment_mask(ring) == full).all()
    ring[0:8, 12] = 0  # a gap connects the inside with the outside
    assert not garment_mask(ring)[10, 12]


def test_generated_scenes_are_read_by_pycocotools(tmp_path: Path, fashion_mnist_folder: Path) -> None:
    folder = tmp_path / "generated"
    result = googlenet("scenes", "generate", "--out", folder, "--count", "train=12,test=6,seed=3", "--json")
    assert result.code == 0, result.err
    assert result.json["root"] == str(folder) and len(result.json["files"]) == 12 + 6 + 3
    assert json.loads((folder / "scenes.json").read_text())["seed"] == 3
    reference = COCO(str(folder / "annotations" / "instances_test.json"))
    data = load_detection_dataset(f"coco:{folder}")
    assert (data.classes, len(data.train), len(data.test)) == (CLASSES, 12, 6)
    for scene in data.test:
        annotations = reference.loadAnns(reference.getAnnIds(scene.image_id))
        assert [annotation["category_id"] - 1 for annotation in annotations] == scene.labels.tolist()
    repeated = googlenet("scenes", "generate", "--out", folder)
    assert repeated.code == 1 and "name an empty folder" in repeated.err


def test_scenes_are_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fashion_mnist_folder: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data = load_detection_dataset(
        "scenes:train=12,test=6,seed=3", LoadOptions(root=str(fashion_mnist_folder), validation=2)
    )
    assert (len(data.train), len(data.validation), len(data.test), data.channels) == (10, 2, 6, 1)
    folder = scenes_folder(SMALL)
    before = (folder / "annotations" / "instances_test.json").stat().st_mtime_ns
    load_detection_dataset("scenes:train=12,test=6,seed=3")
    assert (folder / "annotations" / "instances_test.json").stat().st_mtime_ns == before
