"""Scenes: the same for the same seed, boxes exact to the pixel, garments of each part apart."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from conftest import googlenet
from googlenet.data.fashion_mnist import CLASSES, load_fashion_mnist
from googlenet.detection.scenes import Scenes, background, draw_scene, generate, scenes_folder, silhouette
from googlenet.detection.sources import load_detection

FEW = Scenes(train=12, test=6, seed=3)


def test_scenes_are_functions_of_seed_split_and_number(fashion_mnist_folder: Path) -> None:
    once, again = (list(generate(FEW, "test", str(fashion_mnist_folder))) for _ in range(2))
    for one, other in zip(once, again, strict=True):
        assert torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.boxes, other.boxes)
    longer = next(iter(generate(Scenes(train=1, test=50, seed=3), "test", str(fashion_mnist_folder))))
    assert torch.equal(longer.pixels, once[0].pixels), "whatever the number of scenes"
    others = next(iter(generate(Scenes(seed=4), "test", str(fashion_mnist_folder))))
    assert others.pixels.shape != once[0].pixels.shape or not torch.equal(others.pixels, once[0].pixels)


def test_boxes_are_exact_to_the_visible_pixels(fashion_mnist_folder: Path) -> None:
    """Drawn twice over the same background, once without the garments: what differs is theirs."""
    data = load_fashion_mnist(str(fashion_mnist_folder), 0)
    alone = Scenes(objects=(1, 1))
    for number in range(20):
        scene = draw_scene(alone, data.test, 1, number)
        rng = np.random.default_rng([1, alone.seed, 1, number])
        height, width = (int(side) for side in rng.integers(alone.sides[0], alone.sides[1] + 1, 2))
        empty = np.rint(background(rng, height, width) * 255).astype(np.uint8)
        changed = scene.pixels[0].numpy() != empty
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        left, top, right, bottom = scene.boxes[0].tolist()
        # A garment's pixel may by chance be as bright as what it covers: then the box is larger by a little.
        assert left <= columns[0] <= left + 2 and right - 2 <= columns[-1] + 1 <= right
        assert top <= rows[0] <= top + 2 and bottom - 2 <= rows[-1] + 1 <= bottom
        assert scene.areas[0] >= changed.sum() > 0.95 * scene.areas[0]


def test_scenes_vary_as_they_should(fashion_mnist_folder: Path) -> None:
    scenes = list(generate(Scenes(train=60, test=0), "train", str(fashion_mnist_folder)))
    sides = torch.cat([(one.boxes[:, 2:] - one.boxes[:, :2]).amax(dim=1) for one in scenes])
    counts = [len(one.boxes) for one in scenes]
    assert min(counts) == 1 and max(counts) == 8
    assert 10 <= sides.min() < 20 and 90 < sides.max() <= 112
    assert len({one.pixels.shape for one in scenes}) > 30
    assert torch.cat([one.labels for one in scenes]).unique().tolist() == list(range(10))
    for one in scenes:
        assert (one.boxes[:, :2] >= 0).all() and (one.boxes[:, 2] <= one.width).all()
        assert (one.boxes[:, 3] <= one.height).all() and (one.areas > 0).all()


def test_garments_of_the_two_parts_never_meet(fashion_mnist_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, int]] = []
    data = load_fashion_mnist(str(fashion_mnist_folder), 0)
    monkeypatch.setattr(
        "googlenet.detection.scenes.draw_scene",
        lambda scenes, garments, part, number: drawn.append((part, len(garments.labels))),
    )
    for split in ("train", "test"):
        list(generate(Scenes(train=1, test=1), split, str(fashion_mnist_folder)))
    assert drawn == [(0, len(data.train.labels)), (1, len(data.test.labels))] == [(0, 60000), (1, 10000)]


def test_silhouettes_keep_what_is_black_inside() -> None:
    ring = np.zeros((28, 28), np.uint8)
    ring[5:20, 8:18] = 200
    ring[8:15, 10:15] = 0
    full = np.zeros((28, 28), np.bool_)
    full[5:20, 8:18] = True
    assert (silhouette(ring) == full).all()
    ring[0:8, 12] = 0  # a slit: the inside is outside now
    assert not silhouette(ring)[10, 12]


def test_written_scenes_are_read_by_other_tools(tmp_path: Path, fashion_mnist_folder: Path) -> None:
    folder = tmp_path / "made"
    made = googlenet("fetch", "scenes", "--to", folder, "--scenes", "train=12,test=6,seed=3", "--json")
    assert made.code == 0, made.err
    assert made.json["root"] == str(folder) and len(made.json["files"]) == 12 + 6 + 3
    theirs = COCO(str(folder / "annotations" / "instances_test.json"))
    mine = load_detection(f"coco:{folder}")
    assert (mine.classes, len(mine.train), len(mine.test)) == (CLASSES, 12, 6)
    for scene in mine.test:
        found = theirs.loadAnns(theirs.getAnnIds(scene.number))
        assert [one["category_id"] - 1 for one in found] == scene.labels.tolist()
        assert json.loads((folder / "scenes.json").read_text())["seed"] == 3
    again = googlenet("fetch", "scenes", "--to", folder)
    assert again.code == 1 and "name an empty folder" in again.err


def test_scenes_as_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fashion_mnist_folder: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data = load_detection("scenes:train=12,test=6,seed=3", root=str(fashion_mnist_folder), validation=2)
    assert (len(data.train), len(data.validation), len(data.test), data.channels) == (10, 2, 6, 1)
    folder = scenes_folder(FEW)
    before = (folder / "annotations" / "instances_test.json").stat().st_mtime_ns
    load_detection("scenes:train=12,test=6,seed=3")
    assert (folder / "annotations" / "instances_test.json").stat().st_mtime_ns == before, "drawn once"
