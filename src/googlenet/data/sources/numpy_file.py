"""NumPy archives: ``x_train``, ``y_train``, ``x_test``, ... or ``train_images``, ``train_labels``, ... in a file."""

import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...files import clean_name, raise_for_placeholder
from ..accounting import Accounting
from ..dataset import Dataset, LoadOptions
from ..pixel_range import to_8bit_array, white_of
from ..table_file import cell_text, sort_classes
from .arrays import LabeledArrays, dataset_of_arrays
from .splits import SPLITS, split_name

IMAGES, LABELS = "images", "labels"
ROLES = {
    "x": IMAGES, "images": IMAGES, "image": IMAGES, "imgs": IMAGES, "img": IMAGES, "data": IMAGES, "pixels": IMAGES,
    "y": LABELS, "labels": LABELS, "label": LABELS, "targets": LABELS, "target": LABELS,
}  # fmt: skip
CLASS_NAMES = ("classes", "class_names", "label_names", "categories")
NAMES_ADVICE = "name the arrays x_train, y_train, x_test, y_test, or train_images, train_labels, val_images, ..."


def load(location: str, options: LoadOptions) -> Dataset:
    """Load images (n, h, w), (n, h, w, channels) or (n, channels, h, w) with labels (n,) from an npz file.

    Labels are numbers or names; numbers are indices of the array ``classes`` if there is one. Images of more than 8
    bits are scaled as in `pixel_range`. Raises ValueError for another file or other arrays.
    """
    path, accounting = Path(location), Accounting(strict=options.on_error == "raise")
    arrays, names = _group_arrays(path, _read_arrays(path), accounting)
    if "train" not in arrays and "test" not in arrays:
        raise ValueError(f"{path}: no images of training. {accounting.reasons()}; {NAMES_ADVICE}")
    for split, items in arrays.items():
        _check_arrays(f"{path}: {split}", items)
    labels = {
        split: np.array([cell_text(x) for x in items[LABELS].reshape(-1).tolist()]) for split, items in arrays.items()
    }
    classes = names or sort_classes(labels["train" if "train" in labels else "test"].tolist())
    index = {str(number): number for number in range(len(classes))} if names else {}
    index |= {name: number for number, name in enumerate(classes)}
    if len(classes) < 2:
        raise ValueError(f"{path}: needs at least two classes; found {len(classes)}")
    # The range of the first images with more than 8 bits, which are those of training, applies to all.
    deep = [items[IMAGES] for items in arrays.values() if items[IMAGES].dtype != np.uint8]
    white = (options.max_value or white_of(deep[0])) if deep else None
    splits = {
        split: LabeledArrays(
            to_images(items[IMAGES], white),
            np.array([index.get(name, -1) for name in labels[split].tolist()], np.int64),
        )
        for split, items in arrays.items()
    }
    return replace(dataset_of_arrays(f"numpy:{path}", classes, splits, accounting, options), max_value=white)


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise ValueError(f"{path}: {'a folder; name an npz file' if path.is_dir() else 'no such file'}")
    raise_for_placeholder(path)
    if path.suffix.lower() == ".npy":
        raise ValueError(f"{path}: a single array; save images and labels with numpy.savez")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = "contains Python objects: save plain arrays" if "allow_pickle" in text else text
        raise ValueError(f"{path}: not a NumPy archive (npz) of arrays: {reason}") from None


def _group_arrays(
    path: Path, arrays: dict[str, NDArray[Any]], accounting: Accounting
) -> tuple[dict[str, dict[str, NDArray[Any]]], tuple[str, ...]]:
    """Return the arrays by split and role, and the names of the classes; other arrays are excluded."""
    groups: dict[str, dict[str, NDArray[Any]]] = {}
    names: tuple[str, ...] = ()
    for key, values in arrays.items():
        split, role = _split_and_role(key)
        if key.lower() in CLASS_NAMES and values.ndim == 1:
            names = tuple(clean_name(name) for name in values.tolist())
            if len(set(names)) < len(names):
                raise ValueError(f"{path}: {key} must list each class once")
        elif role is None or split is None:
            accounting.exclude("array", "neither images nor labels by its name", key)
        elif role in groups.setdefault(split, {}):
            raise ValueError(f"{path}: two arrays have the {role} of the {split} split; the second is {key}")
        else:
            groups[split][role] = values
    order = [split for split in SPLITS if split in groups]
    return {split: groups[split] for split in order}, names


def _split_and_role(key: str) -> tuple[str | None, str | None]:
    """Return split and role of an array such as x_train, train_images or labels; None if the name has none."""
    words = [word for word in re.split(r"[\W_]+", key.lower()) if word]
    roles = [ROLES[word] for word in words if word in ROLES]
    rest = "_".join(word for word in words if word not in ROLES)
    return (split_name(rest) if rest else "train"), (roles[0] if len(roles) == 1 else None)


def _check_arrays(where: str, items: dict[str, NDArray[Any]]) -> None:
    """Raise ValueError unless there are images and as many labels, of types and shapes that can be used."""
    for role in (IMAGES, LABELS):
        if role not in items:
            raise ValueError(f"{where} has no array of {role}; {NAMES_ADVICE}")
    images, labels = items[IMAGES], items[LABELS]
    if images.ndim not in (3, 4) or images.dtype.kind not in "uif" or 0 in images.shape:
        raise ValueError(
            f"{where}: images must be numbers of the shape (n, h, w), (n, h, w, channels) or (n, channels, h, w), not "
            f"{images.dtype} {images.shape}"
        )
    if labels.dtype.kind not in "uifUSb" or labels.shape not in ((len(images),), (len(images), 1)):
        raise ValueError(
            f"{where}: labels must be one number or name for each of {len(images):,} images, not {labels.dtype} "
            f"{labels.shape}"
        )


def to_images(values: NDArray[Any], white: float | None) -> Tensor:
    """Convert images of any numbers to uint8 (n, channels, h, w); of axes 1 and 3, the shorter has the channels.

    `white` is the value that is white in images with more than 8 bits.
    """
    values = values[..., None] if values.ndim == 3 else values
    if values.shape[3] <= values.shape[1]:
        values = values.transpose(0, 3, 1, 2)
    return torch.from_numpy(
        np.ascontiguousarray(to_8bit_array(values, 255.0 if values.dtype == np.uint8 else white or 255.0))
    )
