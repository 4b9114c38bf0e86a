"""Folders with one subfolder per class."""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from googlenet.data.decode import ImageError
from googlenet.data.preprocess import Preprocess
from googlenet.data.sources import LoadOptions, load_dataset


def tree(root: Path, count: int = 10, color: bool = True) -> Path:
    rng = np.random.default_rng(0)
    for label, base in (("cat", 200), ("dog", 40)):
        (root / label).mkdir(parents=True)
        for number in range(count):
            shape = (30 + number, 50, 3) if color else (30 + number, 50)
            pixels = np.clip(base + rng.integers(-20, 20, shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / label / f"{number}.png")
    return root


def test_split_is_stratified_and_deterministic(tmp_path: Path) -> None:
    tree(tmp_path)
    data, again = (load_dataset(f"folder:{tmp_path}", LoadOptions(validation=0.3, size=16, seed=4)) for _ in range(2))
    assert data.classes == ("cat", "dog")
    assert data.train.images.shape == (14, 3, 16, 16)
    assert data.train.images.dtype == torch.uint8
    assert Counter(data.validation.labels.tolist()) == {0: 3, 1: 3}
    assert data.validation.names == again.validation.names
    assert not set(data.train.names) & set(data.validation.names)
    other = load_dataset(f"folder:{tmp_path}", LoadOptions(validation=0.3, size=16, seed=5))
    assert data.validation.names != other.validation.names
    means = data.train.images.float().mean((1, 2, 3))
    assert (means[data.train.labels == 0] > 150).all(), "images carry their own folder's label"
    assert (means[data.train.labels == 1] < 90).all()


def test_existing_splits_are_used_unchanged(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        tree(tmp_path / split, count)
    data = load_dataset(f"folder:{tmp_path}", LoadOptions(validation=0.5, size=8))
    assert [len(s.labels) for s in (data.train, data.validation, data.test)] == [8, 4, 6]


def test_gray_if_every_image_is_gray(tmp_path: Path) -> None:
    assert load_dataset(f"folder:{tree(tmp_path, 3, color=False)}", LoadOptions(validation=0, size=8)).channels == 1
    Image.new("RGB", (9, 9), "red").save(tmp_path / "cat" / "red.png")
    assert load_dataset(f"folder:{tmp_path}", LoadOptions(validation=0, size=8)).channels == 3


def test_unreadable_files_are_skipped_or_raise(tmp_path: Path) -> None:
    tree(tmp_path, 3)
    (tmp_path / "dog" / "text.jpg").write_text("no image")
    data = load_dataset(f"folder:{tmp_path}", LoadOptions(validation=0, size=8))
    assert len(data.train.labels) == 6
    assert len(data.skipped) == 1
    assert "text.jpg" in data.skipped[0]
    with pytest.raises(ImageError, match="text.jpg"):
        load_dataset(f"folder:{tmp_path}", LoadOptions(validation=0, size=8, on_error="raise"))


def test_invalid_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        load_dataset(f"folder:{tmp_path / 'x'}")
    with pytest.raises(ValueError, match="at least two folders"):
        load_dataset(f"folder:{tmp_path}")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match="no readable image"):
        load_dataset(f"folder:{tmp_path}")
    Image.new("L", (4, 4)).save(tmp_path / "a" / "1.png")
    with pytest.raises(ValueError, match="no readable image of class b"):
        load_dataset(f"folder:{tmp_path}", LoadOptions(validation=0))
    with pytest.raises(ValueError, match="unknown data source"):
        load_dataset("imagenet")


def test_max_samples_keeps_each_class(tmp_path: Path) -> None:
    data = load_dataset(f"folder:{tree(tmp_path, 10)}", LoadOptions(validation=0, size=8, max_samples=6))
    assert Counter(data.train.labels.tolist()) == {0: 3, 1: 3}


@pytest.mark.parametrize("validation", [-1, 20, 1.0e9])
def test_validation_must_leave_training_images(tmp_path: Path, validation: float) -> None:
    with pytest.raises(ValueError, match="validation"):
        load_dataset(f"folder:{tree(tmp_path)}", LoadOptions(validation=validation, size=8))


def test_stored_pixels_equal_those_of_prediction(tmp_path: Path) -> None:
    """For both crop modes, on noise, where any other crop or resampling would differ."""
    rng = np.random.default_rng(1)
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        Image.fromarray(rng.integers(0, 255, (40, 23, 3), np.uint8)).save(tmp_path / label / "1.png")
    for crop_mode in ("center", "squash"):
        data = load_dataset(f"folder:{tmp_path}", LoadOptions(validation=0, size=17, crop_mode=crop_mode))
        preprocess = Preprocess(17, 3, (0.0,) * 3, (1.0,) * 3, crop_mode=crop_mode)
        with Image.open(tmp_path / "a" / "1.png") as image:
            predicted, _ = preprocess.from_pil(image)
        difference = (preprocess(data.train.images[:1]) - predicted).abs() * 255
        assert difference.max() <= 1.0 + 1e-4, "stored pixels are rounded once for each direction"
        assert difference.mean() < 0.4


def test_channels_can_be_set(tmp_path: Path) -> None:
    tree(tmp_path, 3)
    assert load_dataset(f"folder:{tmp_path}", LoadOptions(validation=0, size=8, channels=1)).channels == 1
    gray = tree(tmp_path / "more", 3, color=False)
    assert load_dataset(f"folder:{gray}", LoadOptions(validation=0, size=8, channels=3)).channels == 3


def test_a_class_may_be_named_train(tmp_path: Path) -> None:
    tree(tmp_path, 2)
    (tmp_path / "cat").rename(tmp_path / "train")
    assert load_dataset(f"folder:{tmp_path}", LoadOptions(validation=0, size=8)).classes == ("dog", "train")


def test_undecodable_names_are_escaped(tmp_path: Path) -> None:
    tree(tmp_path, 2)
    odd = os.fsdecode(b"caf\xe9 [bold]")
    (tmp_path / "dog").rename(tmp_path / odd)
    data = load_dataset(f"folder:{tmp_path}", LoadOptions(validation=0, size=8))
    assert data.classes[0] == "caf\\xe9 [bold]"
    json.dumps([*data.classes, *data.train.names]).encode()


def test_ignored_files_are_listed(tmp_path: Path) -> None:
    for split in ("train", "val"):
        tree(tmp_path / split, 3)
    (tmp_path / "val" / "bird").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "val" / "bird" / "1.png")
    (tmp_path / "train" / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    skipped = load_dataset(f"folder:{tmp_path}", LoadOptions(size=8)).skipped
    assert len(skipped) == 2
    assert skipped[0].startswith("1 link excluded: broken link (") and "gone.png" in skipped[0]
    assert "not a class of the training images" in skipped[1] and "bird/1.png" in skipped[1]
    with pytest.raises(ImageError, match="gone.png: broken link|bird/1.png: in a folder that is not a class"):
        load_dataset(f"folder:{tmp_path}", LoadOptions(size=8, on_error="raise"))


def test_relative_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path / "photos", 2)
    monkeypatch.chdir(tmp_path)
    assert load_dataset("folder:photos", LoadOptions(validation=0, size=8)).source == f"folder:{tmp_path / 'photos'}"
    monkeypatch.chdir("/")
    assert len(load_dataset("folder:photos", LoadOptions(root=str(tmp_path), validation=0, size=8)).train.labels) == 4
