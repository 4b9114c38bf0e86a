"""Columns of a split: every operation keeps them with their images."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from googlenet.data.dataset import Split, stratified_split

COUNT = 24


def numbered_split() -> Split:
    """Return images whose pixels, names and columns all are the number of the image."""
    numbers = torch.arange(COUNT)
    images = numbers.view(-1, 1, 1, 1).to(torch.uint8).expand(-1, 3, 2, 2)
    values = np.array([str(number) for number in range(COUNT)], object)
    groups = np.array([[number] for number in range(COUNT)] + [None], object)[:-1]
    return Split(images, numbers % 3, values.tolist(), {"number": values, "group": groups})


def assert_consistent(split: Split) -> None:
    numbers = split.images[:, 0, 0, 0].tolist()  # type: ignore[index]
    assert [int(name) for name in split.names] == numbers
    assert [int(value) for value in split.columns["number"]] == numbers
    assert split.columns["group"].tolist() == [[number] for number in numbers], "values may be lists"
    assert len(split) == len(numbers)


@given(st.lists(st.integers(0, COUNT - 1)), st.lists(st.booleans(), min_size=COUNT, max_size=COUNT))
def test_selections_keep_columns(indices: list[int], mask: list[bool]) -> None:
    split = numbered_split()
    by_index = split.select(torch.tensor(indices, dtype=torch.int64))
    assert_consistent(by_index)
    assert [int(name) for name in by_index.names] == indices
    by_mask = split.select(torch.tensor(mask))
    assert_consistent(by_mask)
    assert len(by_mask) == sum(mask)


@given(st.integers(0, COUNT), st.integers(0, COUNT), st.integers(1, 2 * COUNT))
def test_slices_keep_columns(start: int, stop: int, count: int) -> None:
    split = numbered_split()
    for part in (split.slice(start, stop), split.slice(start, None), split.subsample(count), split.gray()):
        assert_consistent(part)
    assert set(split.to(torch.device("cpu")).columns) == {"number", "group"}


def test_held_out_images_keep_columns() -> None:
    train, validation = stratified_split(numbered_split(), 0.25, seed=1)
    assert_consistent(train)
    assert_consistent(validation)
    assert {*train.columns["number"], *validation.columns["number"]} == {str(number) for number in range(COUNT)}
