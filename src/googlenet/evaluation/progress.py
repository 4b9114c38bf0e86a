"""How far a long evaluation is, and how long it takes yet: on standard error."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

# Told of every part of the work that is done, in the unit of the whole.
Advance = Callable[[float], object]

# Without a terminal, seconds between two lines.
QUIET_SECONDS = 30.0

T = TypeVar("T", bound=tuple[Any, ...])


def unseen(_: float) -> None:
    """An `Advance` for a caller who does not ask."""


class Progress:
    """A bar on a terminal, which goes when the work is done; elsewhere a line every `QUIET_SECONDS`.

    `total` is the work to do, in any unit.
    """

    def __init__(self, total: float):
        console = Console(stderr=True)
        self._total, self._done = total, 0.0
        self._what = ""
        self._shown = console.is_terminal
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not self._shown,
        )
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> "Progress":
        self._said, self._done_then = time.monotonic(), 0.0
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def at(self, what: str) -> None:
        """Name the part that is under way."""
        self._what = what
        self._bar.update(self._task, description=what)

    def advance(self, work: float) -> None:
        """Count work that is done."""
        self._done += work
        self._bar.update(self._task, completed=self._done)
        passed = time.monotonic() - self._said
        if not self._shown and passed > QUIET_SECONDS:
            # By the speed of late: the parts of a work differ.
            left = passed * (self._total - self._done) / (self._done - self._done_then)
            print(f"{self._what}: {self._done / self._total:.0%}, {left:.0f} s left", file=sys.stderr)
            self._said, self._done_then = time.monotonic(), self._done


def counted(batches: Iterable[T], advance: Advance, each: float = 1.0) -> Iterator[T]:
    """The batches, whose last part is (n,) labels; `advance` is told of n times `each` when one was used."""
    for batch in batches:
        yield batch
        advance(len(batch[-1]) * each)
