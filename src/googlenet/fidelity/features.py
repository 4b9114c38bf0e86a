"""Features of a set of images in a file, so that memory does not grow with the set and nothing is computed twice.

The file is named by the contents of the images, the network, its engine and precision, and the resizing. An interrupted
computation continues after the last complete batch, with the same batches and therefore the same result.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..evaluation.progress import ProgressCallback
from ..files import cache_file, locked, mark_used, prune_cache
from .images import ImageSet, Preparation, pixel_batches
from .networks import FeatureNetwork

MAX_CACHE_BYTES = 4 * 2**30
FLOAT_BYTES = 4


def features_of(
    images: ImageSet, network: FeatureNetwork, prepare: Preparation, batch_size: int, use_cache: bool,
    progress: ProgressCallback,
) -> Tensor:  # fmt: skip
    """Return the features float32 (n, d) of a set, memory-mapped; from the cache if they are there.

    Raises ImageError for an image that cannot be decoded, ValueError for features that are not finite.
    """
    if not use_cache or not network.digest:
        return _compute(images, network, prepare, batch_size, _temporary_file(), progress)
    path = cache_file("fid", f"{_key(images, network, prepare, batch_size)}.f32")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        mark_used(path)
        progress(len(images))
        return _open(path, len(images))
    # A lock of its own: closing any handle of a file gives up the process's lock of it.
    with locked(path.with_suffix(".lock")) as mine:
        if not mine:  # another process computes the same features
            return _compute(images, network, prepare, batch_size, _temporary_file(), progress)
        if not path.exists():
            partial = path.with_suffix(".partial")
            _compute(images, network, prepare, batch_size, partial, progress)
            partial.replace(path)
    prune_cache(path.parent, MAX_CACHE_BYTES, path)
    return _open(path, len(images))


def features_of_batches(batches: Iterable[Tensor], network: FeatureNetwork) -> Tensor:
    """Return the features (n, d) of batches of prepared pixels, in a temporary file, memory-mapped."""
    path, count = _temporary_file(), 0
    with path.open("ab") as file:
        for pixels in batches:
            count += len(pixels)
            file.write(_checked(network.compute(pixels)).numpy().tobytes())
    if not count:
        raise ValueError("no images: the batches are empty, or were consumed before")
    return _open(path, count)


def _key(images: ImageSet, network: FeatureNetwork, prepare: Preparation, batch_size: int) -> str:
    resizing = [prepare.mode.resizing, prepare.side, prepare.channels]
    inputs = [images.digest, network.digest, network.engine, network.precision, resizing, batch_size]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:32]


def _compute(
    images: ImageSet, network: FeatureNetwork, prepare: Preparation, batch_size: int, path: Path,
    progress: ProgressCallback,
) -> Tensor:  # fmt: skip
    """Append the missing features to a file, in whole batches."""
    start = _complete_batches(path, network, batch_size)
    progress(start)
    if start < len(images):
        with path.open("ab") as file:
            for pixels in pixel_batches(images, prepare, batch_size, start):
                file.write(_checked(network.compute(pixels)).numpy().tobytes())
                file.flush()
                progress(len(pixels))
    return _open(path, len(images))


def _complete_batches(path: Path, network: FeatureNetwork, batch_size: int) -> int:
    """Truncate a file of features to whole batches and return the number of its images."""
    length = path.stat().st_size if path.exists() else 0
    if not length:
        return 0
    row = FLOAT_BYTES * network.compute(torch.zeros(1, network.channels, network.side, network.side)).shape[1]
    count = length // row // batch_size * batch_size
    os.truncate(path, count * row)
    return count


def _checked(features: Tensor) -> Tensor:
    if not features.isfinite().all():
        raise ValueError("the features are not finite: the weights are damaged")
    return features.contiguous()


def _open(path: Path, count: int) -> Tensor:
    """Map a file of features to memory: float32 (count, d)."""
    # Copy-on-write: PyTorch has no read-only tensors, and nothing writes to it.
    array = np.memmap(path, np.float32, mode="c")
    return torch.from_numpy(array).view(count, -1)


def _temporary_file() -> Path:
    file = tempfile.NamedTemporaryFile(dir=_temporary_folder().name, suffix=".partial", delete=False)  # noqa: SIM115
    file.close()
    return Path(file.name)


@cache
def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="googlenet-fid-")
