"""Data sets from arrays in memory: labels become classes, pixels 8 bits, colors gray if the network takes gray."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..accounting import Accounting
from ..dataset import Dataset, LoadedSplit, LoadOptions, Split, build_dataset
from .splits import SPLITS

LUMA = (19595, 38470, 7471)  # of ITU-R 601 as fractions of 2**16, as Pillow computes gray


class LabeledArrays(NamedTuple):
    """Images uint8 (n, channels, h, w) with one label each: indices of the classes, int64 (n,)."""

    images: Tensor
    labels: NDArray[np.int64]


def dataset_of_arrays(
    source: str,
    classes: tuple[str, ...],
    splits: Mapping[str, LabeledArrays],
    accounting: Accounting,
    options: LoadOptions,
) -> Dataset:
    """Return a data set of the splits that exist; images with a label outside `classes` are excluded.

    The images keep their size: each batch is cropped and resized, as for Fashion-MNIST.
    """
    loaded = {}
    channels = next(iter(splits.values())).images.shape[1]
    for name in SPLITS:
        arrays = splits.get(
            name, LabeledArrays(torch.empty(0, channels, 1, 1, dtype=torch.uint8), np.empty(0, np.int64))
        )
        images, labels = convert_channels(arrays.images, options.channels), torch.from_numpy(arrays.labels)
        known = (labels >= 0) & (labels < len(classes))
        unknown = (~known).nonzero().flatten().tolist()
        if unknown:
            reason = "of a class without training images"
            accounting.exclude("image", reason, f"{name} {unknown[0]}", len(unknown), invalid=True)
        split = Split(images, labels, [f"{name} {number}" for number in range(len(labels))])
        loaded[name] = LoadedSplit(split.select(known) if unknown else split, images.shape[1] == 1)
        accounting.use("image", int(known.sum()))
    return build_dataset(source, classes, loaded, accounting, options)


def convert_channels(images: Tensor, channels: int | None) -> Tensor:
    """Convert uint8 (n, c, h, w) to `channels`: gray to RGB or RGB to gray; unset: unchanged.

    Raises ValueError for other numbers of channels.
    """
    given = images.shape[1]
    if channels in (None, given):
        return images
    if (given, channels) == (1, 3):
        return images.expand(-1, 3, -1, -1)
    if (given, channels) == (3, 1):
        weighted = sum(images[:, index : index + 1].int() * weight for index, weight in enumerate(LUMA))
        return ((torch.as_tensor(weighted) + 2**15) >> 16).to(torch.uint8)
    raise ValueError(f"the images have {given} channels, and the network takes {channels}")
