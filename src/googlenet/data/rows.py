"""A step's batch, cut into parts: for several processes, and for batches that do not fit into memory at once."""

from typing import NamedTuple

from torch import Tensor


class Rows(NamedTuple):
    """Rows start..stop of a batch of `total` pictures.

    Random numbers are drawn for the whole batch and each part takes its own: a picture's changes are the same whoever
    makes them.
    """

    start: int
    stop: int
    total: int

    @property
    def pictures(self) -> int:
        """How many rows these are."""
        return self.stop - self.start

    def of(self, values: Tensor, dim: int = 0) -> Tensor:
        """These rows of `values`, which has `total` along `dim`; a view."""
        return values.narrow(dim, self.start, self.pictures)


def whole(count: int) -> Rows:
    """All rows of a batch."""
    return Rows(0, count, count)


def rows_of_step(count: int, accumulate: int, process: int, processes: int) -> list[Rows]:
    """What `process` (counted from 0) of `processes` does of a batch of `count` pictures, micro-batch by micro-batch.

    The batch is cut into `accumulate` micro-batches and each of these into one part for every process, as evenly as
    may be. A micro-batch keeps two pictures at least, which batch normalisation needs, so a small last batch has
    fewer. A part may be empty where there are more processes than pictures; its process takes part all the same.
    """
    micro_batches = max(1, min(accumulate, count // 2))
    parts = []
    for number in range(micro_batches):
        start, stop = _share(0, count, number, micro_batches)
        parts.append(Rows(*_share(start, stop, process, processes), count))
    return parts


def _share(start: int, stop: int, number: int, of: int) -> tuple[int, int]:
    """The limits of part `number` of start..stop cut into `of` parts; the first ones are larger by one at most."""
    size, larger = divmod(stop - start, of)
    begin = start + number * size + min(number, larger)
    return begin, begin + size + (number < larger)
