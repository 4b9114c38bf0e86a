"""Passes over all images before training: find unusable files, and measure mean and std; results are cached."""

import io
import json
import os
import sys
import time
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .decode import ImageError, decode_pixels, is_gray, read_deep_pixels
from .disk_cache import cache_path, cache_write, cached_json
from .lazy import ByteRanges, LazyImages, index_batches
from .pixel_range import DeepPixels, white_value

CHUNK = 256  # images that a thread decodes at a time
LOG_INTERVAL_S = 10.0
# Images measured on disk. The standard deviation of the images' means is below 1/4 of the pixel range, so the standard
# error of the mean is below 1/200.
NUM_SAMPLES = 2500
BATCH_SIZE = 100
HEADER_BYTES = 2**14  # of an image in a tar file: enough for most headers
Statistics = tuple[tuple[float, ...], tuple[float, ...]]


class ImageCheck(NamedTuple):
    """Whether each image is `usable` and `gray`, and the `errors` of the unusable ones by index, in order."""

    usable: NDArray[np.bool_]
    gray: NDArray[np.bool_]
    errors: dict[int, str]


class CheckOptions(NamedTuple):
    """How images are checked: `strict` raises the first error; without `decode` only headers are read."""

    strict: bool = False
    channels: int = 3
    decode: bool = True


DECODE_ALL = CheckOptions()


def check_images(
    ranges: ByteRanges, names: Sequence[str], cache_key: str, options: CheckOptions = DECODE_ALL
) -> ImageCheck:
    """Read every image, and cache which are usable under `cache_key`.

    JPEGs are decoded at 1/8 of their size. With `options.strict`, the first unusable image raises ImageError. Without
    `options.decode` only headers are read, which is faster by an order of magnitude and does not find damaged pixels.

    The next call reads only images that are new, changed or were unusable. An interrupted call keeps its progress.
    Slow calls report their progress on standard error.
    """
    strict, channels, decode = options
    key = cache_key if channels in (1, 3) else f"{cache_key}|{channels}"
    path = cache_path("checked" if decode else "headers", key.encode(), ".npz")
    fingerprints = ranges.fingerprints()
    usable, gray = _load_cache(path, fingerprints)
    unknown = np.flatnonzero(~usable).tolist()
    errors, num_checked, last_log = dict[int, str](), 0, time.monotonic()

    def check(index: int) -> bool | str:
        """Return whether the image is gray, or why it is unusable."""
        try:
            if not decode:
                return has_gray_header(ranges, index, names[index])
            return decode_pixels(ranges.read(index), channels, names[index], min_size=1).source_channels == 1
        except ImageError as error:
            return str(error)

    # Threads are enough, because Pillow decodes without the interpreter's lock.
    pool = ThreadPool(min(32, (os.cpu_count() or 1) + 4))
    try:
        for index, result in zip(unknown, pool.imap(check, unknown, CHUNK), strict=True):
            if isinstance(result, str):
                if strict:
                    raise ImageError(result)
                errors[index] = result
            else:
                usable[index], gray[index] = True, result
            num_checked += 1
            if time.monotonic() - last_log > LOG_INTERVAL_S:
                last_log = time.monotonic()
                print(f"checking images (once): {num_checked:,} of {len(unknown):,}", file=sys.stderr)
    finally:
        pool.terminate()
        if num_checked:
            content = io.BytesIO()
            np.savez(content, fingerprints=fingerprints[usable], gray=gray[usable])
            cache_write(path, content.getvalue())
    return ImageCheck(usable, gray, errors)


def has_gray_header(ranges: ByteRanges, index: int, name: str) -> bool:
    """Return whether an image is gray by its header; ImageError if that is unreadable or the image is too large."""
    if ranges.size[index] < 0:  # Of a file, no more than the header is read.
        return is_gray(ranges.source(index), name)
    try:
        return is_gray(ranges.read(index, HEADER_BYTES), name)
    except ImageError:  # The header may be longer.
        return is_gray(ranges.read(index), name)


def _load_cache(path: Path, fingerprints: NDArray[np.uint64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return whether the cache lists each image as usable, and as gray."""
    try:
        with np.load(path, allow_pickle=False) as file:
            cached, gray = file["fingerprints"], file["gray"]
            return np.isin(fingerprints, cached), np.isin(fingerprints, cached[gray])
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile):
        return np.zeros(len(fingerprints), np.bool_), np.zeros(len(fingerprints), np.bool_)


def find_max_value(ranges: ByteRanges) -> float | None:
    """Determine the value that is white in a data set's images of more than 8 bits per channel; see `pixel_range`.

    Returns None if there are no such images, or if all of them declare it. Raises ValueError for floats in 0..1 beside
    integers.
    """

    def read(index: int) -> DeepPixels | None:
        with suppress(ImageError):
            if not ranges.has_8_bits(index):
                pixels = read_deep_pixels(ranges.source(index), ranges.name(index))
                return None if pixels is None else pixels._replace(values=np.full(1, pixels.maximum, np.float32))
        return None

    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:
        deep = [pixels for pixels in pool.imap(read, range(len(ranges.file)), CHUNK) if pixels is not None]
    unknown = [pixels for pixels in deep if pixels.declared is None]
    if not unknown:
        return None
    by_type = {is_float: [p.maximum for p in unknown if p.is_float is is_float] for is_float in (False, True)}
    whites = [white_value(max(maxima), is_float) for is_float, maxima in by_type.items() if maxima]
    whites += [pixels.declared for pixels in deep if pixels.declared is not None and not pixels.fixed]
    if min(whites) == 1.0 < max(whites):
        raise ValueError(
            f"images of floats in 0..1 beside images with values up to {max(whites):g}: convert them to one range, or "
            "set data.max_value to the value that is white"
        )
    return max(whites)


def pixel_statistics(images: Tensor | LazyImages) -> Statistics:
    """Compute mean and standard deviation per channel of uint8 (n, c, h, w), as fractions of the pixel range.

    Of `LazyImages`, `NUM_SAMPLES` evenly spaced images are measured, and the result is cached on disk.
    """
    if isinstance(images, Tensor):
        return mean_std(channel_histogram(images))
    sample = images.to(torch.device("cpu"))
    if len(images) > NUM_SAMPLES:
        sample = sample[torch.arange(NUM_SAMPLES) * len(images) // NUM_SAMPLES]
    decoding = [sample.preprocess.to_dict(), *([] if sample.full_size is None else [sample.full_size])]
    key = sample.ranges.fingerprints().tobytes() + json.dumps(decoding[0] if len(decoding) == 1 else decoding).encode()
    batches = sample.batches(index_batches(len(sample), BATCH_SIZE))
    mean, std = cached_json("statistics", key, lambda: mean_std(sum(map(channel_histogram, batches), torch.tensor(0))))
    return tuple(mean), tuple(std)


def channel_histogram(images: Tensor) -> Tensor:
    """Count the values of each channel, which needs no float copy of the images: int64 (c, 256)."""
    return torch.stack([torch.bincount(images[:, c].flatten(), minlength=256) for c in range(images.shape[1])])


def mean_std(histogram: Tensor) -> Statistics:
    """Return mean and standard deviation per channel, rounded to 4 decimals, from `channel_histogram`."""
    values = torch.arange(256, dtype=torch.float64) / 255
    density = histogram / histogram.sum(1, dtype=torch.float64, keepdim=True)
    mean = (density * values).sum(1, keepdim=True)
    std = (density * (values - mean) ** 2).sum(1).sqrt()
    return tuple(round(x, 4) for x in mean.flatten().tolist()), tuple(max(round(x, 4), 1e-4) for x in std.tolist())
