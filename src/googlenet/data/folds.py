"""Folds for cross-validation: every image is in one fold, each fold has all classes in equal parts (stratified).

Images of one group, such as the photographs of one patient, stay together.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..errors import nearest
from .dataset import Dataset, LoadOptions, Split, num_validation
from .image_checks import pixel_statistics
from .lazy import LazyImages
from .table_file import cell_text, sort_classes


def assign_folds(labels: Tensor, num_folds: int, seed: int, groups: Sequence[object] | None = None) -> Tensor:
    """Return the fold 0..num_folds - 1 of each image: int64 (n,), a function of the arguments.

    `labels` are classes int64 (n,), or bool (n, classes). `groups` (n,) has the group of each image, None for one that
    is a group of its own. Raises ValueError if there are fewer images or groups than folds.
    """
    if num_folds < 2:
        raise ValueError(f"cross-validation needs 2 or more folds, not {num_folds}")
    if groups is None and labels.ndim == 1:
        check_enough(len(labels), num_folds, "images")
        return _deal(labels, num_folds, seed)
    units = group_indices(groups, len(labels))
    num_units = int(units.max()) + 1 if len(units) else 0
    check_enough(num_units, num_folds, "images" if groups is None else "groups")
    fractions = torch.full((num_folds,), 1 / num_folds, dtype=torch.float64)
    return assign_units(count_classes(labels, units, num_units), fractions, seed)[units]


def check_enough(count: int, num_folds: int, noun: str) -> None:
    """Raise ValueError if a fold would be empty."""
    if count < num_folds:
        raise ValueError(f"{count} {noun} cannot be divided into {num_folds} folds; use at most {count}")


def group_indices(groups: Sequence[object] | None, count: int) -> Tensor:
    """Return the index of each image's group, in the order of first occurrence: int64 (count,)."""
    if groups is None:
        return torch.arange(count)
    numbers: dict[object, int] = {}
    return torch.tensor(
        [numbers.setdefault(("image", i) if value is None else value, len(numbers)) for i, value in enumerate(groups)],
        dtype=torch.int64,
    )


def count_classes(labels: Tensor, units: Tensor, num_units: int) -> Tensor:
    """Count the images of each unit by class, and in a last column all: float64 (num_units, classes + 1)."""
    if labels.ndim == 1:
        labels = torch.nn.functional.one_hot(labels)
    rows = torch.cat((labels.double(), torch.ones(len(labels), 1, dtype=torch.float64)), dim=1)
    return torch.zeros(num_units, rows.shape[1], dtype=torch.float64).index_add_(0, units, rows)


def _deal(labels: Tensor, num_folds: int, seed: int) -> Tensor:
    """Deal the shuffled images of one class after the other to the folds in turn: sizes differ by at most one."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = order[labels[order].argsort(stable=True)]
    folds = torch.empty_like(labels)
    folds[by_class] = torch.arange(len(labels)) % num_folds
    return folds


def assign_units(counts: Tensor, fractions: Tensor, seed: int) -> Tensor:
    """Assign units with `counts` (units, columns) to parts with `fractions` (parts,) of the images: int64 (units,).

    Each unit goes to the part that lacks most of what the unit has, rare classes first. (Sechidis et al., "On the
    Stratification of Multi-label Data", 2011, extended to groups.)
    """
    totals = counts.sum(0).clamp_min(1)
    targets = fractions.unsqueeze(1) * totals
    missing = targets.clone()
    rarity = counts / totals
    shuffled = torch.randperm(len(counts), generator=torch.Generator().manual_seed(seed))
    # Large units and those with rare classes are placed first, while all parts have room.
    order = shuffled[(-rarity.amax(dim=1)[shuffled]).argsort(stable=True)]
    parts = torch.empty(len(counts), dtype=torch.int64)
    for unit in order.tolist():
        need = ((missing / targets) * rarity[unit]).sum(dim=1)
        part = int(need.argmax())
        missing[part] -= counts[unit]
        parts[unit] = part
    return parts


def hold_out(data: Dataset, options: LoadOptions) -> Dataset:
    """Choose the validation images of a data set that was loaded with its training images undivided.

    With `options.num_folds` these are the images of `options.fold`, taken from the training and the source's own
    validation images; None: no image, all are for training. Otherwise a part of the training images is held out if the
    source has no validation images, as in `stratified_split`, but with groups or several labels per image.
    """
    train = data.train
    if options.num_folds is not None:
        pool = concatenate(train, data.validation)
        if options.fold is None:
            return replace(data, train=pool, validation=pool.slice(0, 0))
        is_held_out = image_folds(replace(data, train=pool), options) == options.fold
        return replace(data, train=pool.select(~is_held_out), validation=pool.select(is_held_out).stored())
    if data.validation or not options.validation:
        return data
    count = num_validation(len(train), options.validation)
    units = group_indices(group_values(train, options.group_column), len(train))
    num_units = int(units.max()) + 1
    share = count / len(train)
    parts = assign_units(
        count_classes(train.labels, units, num_units), torch.tensor([1 - share, share]).double(), options.seed
    )
    is_held_out = parts[units] == 1
    rest, validation = train.select(~is_held_out), train.select(is_held_out).stored()
    data.accounting.notes.append(
        f"no validation images: {len(validation):,} of the {len(train):,} training images are held out"
    )
    mean, std = pixel_statistics(rest.images)
    return replace(data, train=rest, validation=validation, mean=mean, std=std)


def image_folds(data: Dataset, options: LoadOptions) -> Tensor:
    """Return the fold of each training image: that of the data's own column of folds, or an assigned one."""
    assert options.num_folds is not None
    train, column = data.train, data.fold_column
    if column is None:
        groups = group_values(train, options.group_column)
        return assign_folds(train.labels.cpu(), options.num_folds, options.seed, groups)
    values = [cell_text(value) for value in train.columns[column]]
    names = sort_classes(values)
    if len(names) != options.num_folds:
        raise ValueError(
            f"{data.source}: column {column!r} has {len(names)} folds, not {options.num_folds}: use that number, or "
            "rename the column to have folds assigned"
        )
    numbers = {name: number for number, name in enumerate(names)}
    return torch.tensor([numbers[value] for value in values])


def group_values(split: Split, column: str | None) -> list[object] | None:
    """Return the values of a column for each image, None for an empty one; ValueError if there is no such column."""
    if column is None:
        return None
    if column not in split.columns:
        known = f"the columns are {', '.join(split.columns)}" if split.columns else "this data source has no columns"
        raise ValueError(f"data.group_column: no column {column!r}{nearest(column, split.columns)}; {known}")
    return [cell_text(value) or None for value in split.columns[column]]


def concatenate(first: Split, second: Split) -> Split:
    """Return the images of two splits of a data set, in order."""
    if not second:
        return first
    if not first:
        return second
    images: Tensor | LazyImages
    if isinstance(first.images, LazyImages):
        assert isinstance(second.images, LazyImages)
        images = first.images.concatenate(second.images)
    else:
        assert isinstance(second.images, Tensor)
        images = torch.cat((first.images, second.images))
    columns = {
        name: np.concatenate((values, second.columns[name]))
        for name, values in first.columns.items()
        if name in second.columns
    }
    return Split(images, torch.cat((first.labels, second.labels)), [*first.names, *second.names], columns)
