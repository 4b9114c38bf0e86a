"""Folds: every image once, classes and groups as scikit-learn divides them, and the same on every call."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.model_selection import StratifiedGroupKFold

from googlenet.data.dataset import Dataset, LoadOptions, Split
from googlenet.data.folds import assign_folds, concatenate, hold_out, image_folds
from googlenet.data.lazy import ByteRanges, LazyImages
from googlenet.data.preprocess import Preprocess
from googlenet.data.sources import load_dataset


def class_shares(labels: torch.Tensor, folds: torch.Tensor, num_folds: int) -> torch.Tensor:
    """Return the share of each class's images in each fold, (folds, classes)."""
    rows = labels.double() if labels.ndim == 2 else torch.nn.functional.one_hot(labels).double()
    counts = torch.stack([rows[folds == fold].sum(0) for fold in range(num_folds)])
    return counts / rows.sum(0)


@given(st.integers(2, 7), st.integers(7, 90), st.integers(2, 5), st.integers(0, 99))
def test_single_labels_are_dealt_evenly(num_folds: int, count: int, classes: int, seed: int) -> None:
    labels = torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))
    folds = assign_folds(labels, num_folds, seed)
    sizes = torch.bincount(folds, minlength=num_folds)
    assert sizes.sum() == count and sizes.max() - sizes.min() <= 1
    for label in range(classes):
        by_fold = torch.bincount(folds[labels == label], minlength=num_folds)
        assert by_fold.max() - by_fold.min() <= 1
    assert torch.equal(folds, assign_folds(labels, num_folds, seed))


def test_another_seed_gives_other_folds() -> None:
    labels = torch.arange(60) % 3
    assert not torch.equal(assign_folds(labels, 5, 0), assign_folds(labels, 5, 1))


@pytest.mark.parametrize("seed", range(3))
def test_groups_stay_together_and_are_as_balanced_as_those_of_scikit_learn(seed: int) -> None:
    generator = np.random.default_rng(seed)
    groups = generator.integers(0, 40, 400)
    labels = generator.choice(4, 400, p=[0.6, 0.2, 0.15, 0.05])
    folds = assign_folds(torch.from_numpy(labels), 5, seed, groups.tolist())
    for group in set(groups.tolist()):
        assert len(set(folds[torch.from_numpy(groups == group)].tolist())) == 1
    reference = torch.zeros(400, dtype=torch.int64)
    splitter = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    for fold, (_, test) in enumerate(splitter.split(labels, labels, groups)):
        reference[torch.from_numpy(test)] = fold
    ours, theirs = (class_shares(torch.from_numpy(labels), f, 5).std(0).mean() for f in (folds, reference))
    # Both are heuristics, so neither is better every time: half as good is a bug.
    assert ours <= 1.5 * theirs + 0.01
    shares = class_shares(torch.zeros(400, dtype=torch.int64), folds, 5)
    assert (shares - 0.2).abs().max() < 0.05, "equal sizes, up to half a group"


def test_several_labels_are_stratified() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.rand(300, 4, generator=generator) < torch.tensor([0.5, 0.3, 0.1, 0.03])
    folds = assign_folds(labels, 3, 0)
    counts = class_shares(labels, folds, 3) * labels.sum(0)
    assert (counts.amax(0) - counts.amin(0) <= 2).all(), "every label, also rare ones, is in all folds alike"
    sizes = torch.bincount(folds)
    assert sizes.max() - sizes.min() <= 6


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="2 or more folds, not 1"):
        assign_folds(torch.zeros(9, dtype=torch.int64), 1, 0)
    with pytest.raises(ValueError, match="3 images cannot be divided into 4 folds; use at most 3"):
        assign_folds(torch.zeros(3, dtype=torch.int64), 4, 0)
    with pytest.raises(ValueError, match="2 groups cannot be divided into 3 folds"):
        assign_folds(torch.zeros(6, dtype=torch.int64), 3, 0, ["a", "b"] * 3)
    with pytest.raises(ValueError, match=r"no column 'patent' \(did you mean patient\?\); the columns are"):
        hold_out(dataset(), LoadOptions(group_column="patent", num_folds=2, fold=0))
    with pytest.raises(ValueError, match="column 'fold' has 3 folds, not 4"):
        image_folds(dataset(fold_column="fold"), LoadOptions(num_folds=4))


def numbered(start: int, stop: int) -> Split:
    numbers = torch.arange(start, stop)
    values = {
        "patient": np.array([f"p{n // 4}" for n in numbers.tolist()], object),
        "fold": np.array([f"f{n % 3}" for n in numbers.tolist()], object),
    }
    images = numbers.view(-1, 1, 1, 1).expand(-1, 1, 2, 2).to(torch.uint8)
    return Split(images, numbers % 2, [str(n) for n in numbers.tolist()], values)


def dataset(fold_column: str | None = None) -> Dataset:
    splits = numbered(0, 24), numbered(24, 36), numbered(36, 40)
    return Dataset("toy", ("even", "odd"), *splits, (0.5,), (0.2,), fold_column=fold_column)


@pytest.mark.parametrize("group", [None, "patient"])
def test_each_image_is_held_out_once(group: str | None) -> None:
    held_out: list[str] = []
    for fold in range(3):
        data = hold_out(dataset(), LoadOptions(num_folds=3, fold=fold, group_column=group))
        assert {*data.train.names, *data.validation.names} == {str(n) for n in range(36)}, "validation images too"
        assert data.test.names == [str(n) for n in range(36, 40)]
        if group:
            assert not set(data.train.columns[group]) & set(data.validation.columns[group])
        held_out += data.validation.names
    assert sorted(held_out, key=int) == [str(n) for n in range(36)]
    pool = hold_out(dataset(), LoadOptions(num_folds=3))
    assert (len(pool.train), len(pool.validation)) == (36, 0)


def test_folds_of_the_table() -> None:
    data = hold_out(dataset("fold"), LoadOptions(num_folds=3, fold=1))
    assert set(data.validation.columns["fold"]) == {"f1"}
    assert "f1" not in data.train.columns["fold"]


def test_groups_are_held_out_together() -> None:
    data = dataset()
    empty = data.validation.slice(0, 0)
    data = hold_out(Dataset("toy", data.classes, data.train, empty, empty, (0.5,), (0.2,)),
                    LoadOptions(validation=0.25, group_column="patient"))  # fmt: skip
    assert not set(data.train.columns["patient"]) & set(data.validation.columns["patient"])
    assert 4 <= len(data.validation) <= 8
    assert "are held out" in data.accounting.notes[0]
    assert data.mean != (0.5,), "of the remaining training images"


def test_images_on_disk_are_concatenated() -> None:
    parts = [
        Split(
            LazyImages(ByteRanges.from_files([f"{name}{n}.png" for n in range(3)]), Preprocess(4, 1, (0.0,), (1.0,))),
            torch.arange(3), [f"{name}{n}" for n in range(3)],
        )
        for name in "ab"
    ]  # fmt: skip
    joined = concatenate(*parts)
    assert isinstance(joined.images, LazyImages)
    assert [joined.images.ranges.name(n) for n in range(6)] == [f"{name}{n}.png" for name in "ab" for n in range(3)]
    assert joined.labels.tolist() == [0, 1, 2] * 2
    assert concatenate(parts[0], parts[1].slice(0, 0)) is parts[0]


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("full_size", [None, 12])
def test_folds_of_a_folder_with_validation_images(in_memory: bool, full_size: int | None, tmp_path: Path) -> None:
    """With random views of the full images, which are stored in another way than center crops."""
    for split, start in (("train", 0), ("val", 20)):
        for number in range(start, start + 10):
            folder = tmp_path / split / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("L", (16, 12 + number % 3), 8 * number).save(folder / f"{number}.png")
    seen: list[str] = []
    for fold in range(2):
        options = LoadOptions(size=8, num_folds=2, fold=fold, full_size=full_size, in_memory=in_memory, num_workers=0)
        data = load_dataset(f"folder:{tmp_path}", options)
        assert len(data.train) == len(data.validation) == 10
        for split in (data.train, data.validation):
            (pixels,) = split.pixels([torch.arange(10)])
            values = [8 * int(Path(name).stem) for name in split.names]
            assert pixels[:, 0, 4, 4].tolist() == values, "the pixels are those of the named images"
        seen += data.validation.names
    assert len(set(seen)) == 20
