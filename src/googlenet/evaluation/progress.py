"""Progress of long computations on standard error: a bar on a terminal, otherwise a line from time to time."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")
# Called with the amount of work that was completed.
ProgressCallback = Callable[[float], object]
# Without a terminal, the seconds between two lines.
LOG_INTERVAL_S = 30.0
# Shorter work shows nothing.
DELAY_S = 2.0


def no_progress(_: float) -> None:
    """Ignore completed work: the `ProgressCallback` of callers without a display."""


class ProgressDisplay:
    """Show how much of `total` (in any unit) is completed, and the remaining time; nothing unless `enabled`."""

    def __init__(self, total: float, completed: float = 0.0, enabled: bool = True):
        console = Console(stderr=True)
        self._total, self._completed, self._enabled = total, completed, enabled
        self._description, self._has_bar = "", console.is_terminal
        columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
        # Standard output is for results: it is not redirected to the console, which is that of standard error.
        self._bar = Progress(
            *columns, console=console, transient=True, disable=not (enabled and self._has_bar), redirect_stdout=False
        )
        self._task = self._bar.add_task("", total=total)
        self._bar.update(self._task, completed=completed)
        self._begun = self._bar.get_time()
        self._mark()

    def __enter__(self) -> "ProgressDisplay":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def describe(self, description: str) -> None:
        """Set the text that is shown with the progress."""
        self._description = description
        self._bar.update(self._task, description=description)

    def set_total(self, total: float) -> None:
        """Change the amount of work."""
        self._total = total
        self._bar.update(self._task, total=total)

    def advance(self, work: float) -> None:
        """Count completed work, and print a line if the last one is `LOG_INTERVAL_S` ago and there is no terminal."""
        self._completed += work
        if self._has_bar and self._bar.get_time() - self._begun > DELAY_S:
            self._bar.start()
        self._bar.update(self._task, completed=self._completed)
        elapsed = time.monotonic() - self._last_log
        if self._enabled and not self._has_bar and elapsed > LOG_INTERVAL_S:
            # The speed since the last line: the parts of the work may differ in cost.
            remaining = elapsed * (self._total - self._completed) / (self._completed - self._logged)
            self.log(f"{self._description}: {self._completed / self._total:.0%}, {remaining:.0f} s left")

    def log(self, line: str) -> None:
        """Print a line above the bar."""
        if self._enabled:
            self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
            self._mark()

    def _mark(self) -> None:
        self._last_log, self._logged = time.monotonic(), self._completed


def track(items: Iterable[Item], total: int, description: str, enabled: bool | None = None) -> Iterator[Item]:
    """Yield the items, and show how many of `total` have been processed.

    `enabled` None shows nothing if standard output is a terminal: results printed there one by one are the progress.
    """
    with ProgressDisplay(total, enabled=not sys.stdout.isatty() if enabled is None else enabled) as progress:
        progress.describe(description)
        for item in items:
            yield item
            progress.advance(1)
