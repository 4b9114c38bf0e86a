"""CIFAR-10, CIFAR-100, MNIST, KMNIST and EMNIST: found on this machine or downloaded, and read by torchvision."""

import os
import pickle
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ...errors import nearest
from ...files import cache_file, cache_folder, replace_folder
from ..accounting import Accounting
from ..dataset import Dataset, LoadOptions
from .arrays import LabeledArrays, dataset_of_arrays

IDX_FILES = tuple(
    f"{split}-{kind}-ubyte.gz" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)  # fmt: skip
# torchvision's errors for missing and damaged files, and those of its parsers.
ERRORS = (RuntimeError, OSError, ValueError, EOFError, AssertionError, KeyError, IndexError, pickle.UnpicklingError)


class Download(NamedTuple):
    """A class of torchvision, the folder of its unpacked files, and the `archives` that it downloads.

    `archive_folder` is where it downloads to.
    """

    class_name: str
    folder: str
    archives: tuple[str, ...]
    archive_folder: str = ""


DOWNLOADS = {
    "cifar10": Download("CIFAR10", "cifar-10-batches-py", ("cifar-10-python.tar.gz",)),
    "cifar100": Download("CIFAR100", "cifar-100-python", ("cifar-100-python.tar.gz",)),
    "mnist": Download("MNIST", "MNIST/raw", IDX_FILES, "MNIST/raw"),
    "kmnist": Download("KMNIST", "KMNIST/raw", IDX_FILES, "KMNIST/raw"),
    "emnist": Download("EMNIST", "EMNIST/raw", ("gzip.zip",), "EMNIST/raw"),
}


def load(name: str, location: str, options: LoadOptions) -> Dataset:
    """Load the training and test images of a data set of `DOWNLOADS`; `location` is the split of EMNIST.

    A part of the training images is held out for validation. Raises ValueError with the searched folders, and the
    files to put there, if the data are neither found nor downloaded.
    """
    import torchvision

    build = getattr(torchvision.datasets, DOWNLOADS[name].class_name)
    if name == "emnist":
        if location not in build.splits:
            known = ", ".join(build.splits)
            raise ValueError(f"emnist:{location}: no such split{nearest(location, build.splits)}; they are {known}")
        build = partial(build, split=location)
    train, test = _find(name, build, options.root)
    names = [class_name.partition(" - ")[0] for class_name in train.classes]  # MNIST: "0 - zero"
    offset = 1 if names[0] == "N/A" else 0  # The letters of EMNIST count from 1.
    source = f"{name}:{location}" if location else name
    splits = {"train": _to_arrays(train, offset, name), "test": _to_arrays(test, offset, name)}
    return dataset_of_arrays(
        source, tuple(names[offset:]), splits, Accounting(strict=options.on_error == "raise"), options
    )


load_cifar10, load_cifar100, load_mnist, load_kmnist, load_emnist = (partial(load, name) for name in DOWNLOADS)


def _to_arrays(data: Any, offset: int, name: str) -> LabeledArrays:
    """Return the images and labels of a torchvision data set: HWC arrays of CIFAR, gray tensors of the others."""
    images = torch.as_tensor(data.data)
    images = images.permute(0, 3, 1, 2) if images.ndim == 4 else images.unsqueeze(1)
    if name == "emnist":
        images = images.transpose(2, 3)  # Its files have columns before rows.
    return LabeledArrays(images.contiguous(), np.asarray(data.targets, np.int64) - offset)


def _find(name: str, build: Any, root: str | None) -> tuple[Any, Any]:
    """Return the training and test data of the first folder that has them, else of the cache, after a download.

    The folders are `root` and ``$GOOGLENET_DATA`` (each itself, then its subfolder `name`), and the cache.
    """
    roots = [Path(path).expanduser() for path in (root, os.environ.get("GOOGLENET_DATA")) if path]
    cache = cache_folder() / name
    for folder in [*(p for path in roots for p in (path, path / name)), cache]:
        if (folder / DOWNLOADS[name].folder).is_dir():
            try:
                return build(root=folder, train=True), build(root=folder, train=False)
            except ERRORS as error:
                print(f"not used: {folder}: {name} is damaged or incomplete ({_one_line(error)})", file=sys.stderr)
    tried = ", ".join(map(str, [*roots, cache]))
    try:
        print(f"{name}: not found in {tried}; downloading", file=sys.stderr)
        cache = _download(name, build)
        return build(root=cache, train=True), build(root=cache, train=False)
    except ERRORS as error:
        archives, folder = DOWNLOADS[name].archives, cache / DOWNLOADS[name].archive_folder
        raise ValueError(
            f"{name}: not found in {tried}, and the download failed ({_one_line(error)}); put {', '.join(archives)} "
            f"into {folder}, or name the folder of the unpacked data with --data.root"
        ) from None


def _download(name: str, build: Any) -> Path:
    """Download and unpack into the cache, complete or not at all; archives that are there already are used."""
    target = cache_file(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}.") as scratch:
        new, archives = Path(scratch, "new"), Path(DOWNLOADS[name].archive_folder)
        (new / archives).mkdir(parents=True)
        for archive in DOWNLOADS[name].archives:
            if (target / archives / archive).is_file():
                shutil.copy(target / archives / archive, new / archives / archive)
        build(root=new, train=True, download=True)
        replace_folder(new, target, Path(scratch, "old"))
    return target


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
