"""Split the batch of a step, for several processes and for gradient accumulation."""

from typing import NamedTuple

from torch import Tensor


class BatchSlice(NamedTuple):
    """Images start..stop of a batch of `total` images.

    Random numbers are drawn for the full batch and every slice takes its own, so the augmentation of an image does
    not depend on how the batch is split.
    """

    start: int
    stop: int
    total: int

    @property
    def num_images(self) -> int:
        """Return the number of images in the slice."""
        return self.stop - self.start

    def slice(self, values: Tensor, dim: int = 0) -> Tensor:
        """Return the view of `values` for this slice; `values` has `total` entries along `dim`."""
        return values.narrow(dim, self.start, self.num_images)


def full_batch(count: int) -> BatchSlice:
    """Return the slice of all `count` images of a batch."""
    return BatchSlice(0, count, count)


def split_step(count: int, num_microbatches: int, rank: int, world_size: int) -> list[BatchSlice]:
    """Return the slices that process `rank` computes of a batch of `count` images, one per micro-batch.

    The batch is split into micro-batches and each of these into one slice per process, as evenly as possible. A
    micro-batch has at least two images, which batch normalization needs, so a small last batch has fewer of them.
    With more processes than images a slice may be empty; its process still takes part in the step.
    """
    num_microbatches = max(1, min(num_microbatches, count // 2))
    microbatches = (_even_split(0, count, index, num_microbatches) for index in range(num_microbatches))
    return [BatchSlice(*_even_split(start, stop, rank, world_size), count) for start, stop in microbatches]


def split_batches(count: int, batch_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """Return the first and the last image, exclusive, of `count` that process `rank` evaluates; there may be none.

    The limits are those of batches, so every batch and its rounding are the same as with one process.
    """
    start, stop = _even_split(0, -(-count // batch_size), rank, world_size)
    return min(start * batch_size, count), min(stop * batch_size, count)


def _even_split(start: int, stop: int, index: int, num_parts: int) -> tuple[int, int]:
    """Return the limits of part `index` of start..stop split into `num_parts`; the first parts are larger by one."""
    size, remainder = divmod(stop - start, num_parts)
    begin = start + index * size + min(index, remainder)
    return begin, begin + size + (index < remainder)
