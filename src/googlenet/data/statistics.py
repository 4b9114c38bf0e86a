"""Mean and deviation of a data set's pixels, per channel."""

import json

import torch
from torch import Tensor

from .checked import picture_stamps
from .records import remembered
from .stream import Stream, rows_in_parts

# Of a stream so many pictures are read, evenly spaced: enough for a mean with a standard error under 1/200 of the
# pixel range, whatever the pictures are.
SAMPLE = 10_000
BATCH = 100

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def pixel_statistics(images: Tensor | Stream) -> Statistics:
    """Mean and standard deviation per channel of uint8 (n, c, h, w), as fractions of the pixel range.

    Counted from the histogram, so that no float copy of the data set is made. Of a stream, `SAMPLE` pictures count,
    always the same, and the result is remembered in the cache.
    """
    if isinstance(images, Tensor):
        return _of_histogram(_histogram(images))
    sample = images.to(torch.device("cpu"))
    if len(images) > SAMPLE:
        sample = sample.select(torch.arange(SAMPLE) * len(images) // SAMPLE)
    about = picture_stamps(sample.places).tobytes() + json.dumps(sample.geometry.to_dict()).encode()

    def count() -> Statistics:
        parts = rows_in_parts(len(sample), BATCH)
        return _of_histogram(sum((_histogram(pixels) for pixels in sample.batches(parts)), torch.tensor(0)))

    mean, std = remembered("statistics", about, count)
    return tuple(mean), tuple(std)


def _histogram(images: Tensor) -> Tensor:
    """How often each channel has each value: int64 (c, 256)."""
    return torch.stack([torch.bincount(images[:, c].flatten(), minlength=256) for c in range(images.shape[1])])


def _of_histogram(counts: Tensor) -> Statistics:
    mean, std = [], []
    values = torch.arange(256, dtype=torch.float64) / 255
    for count in counts.double():
        share = count / count.sum()
        centre = (share * values).sum()
        mean.append(round(centre.item(), 4))
        std.append(max(round((share * (values - centre) ** 2).sum().sqrt().item(), 4), 1e-4))
    return tuple(mean), tuple(std)
