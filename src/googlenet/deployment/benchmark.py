"""How quick a network is in each engine, beside the peers that a user would pick.

Each side is a process of its own; all are asked in turn, round after round, so that what else the machine does falls
on all alike. The figures are of all rounds together.
"""

import io
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from .contestants import SIDE

PRODUCT = "matrix product"


class Side(NamedTuple):
    """One contestant: `spec` for its process, `macs` multiply-adds of a picture by size, bytes of its file(s).

    `peer` are others' networks; `precision` is float32 or int8.
    """

    name: str
    spec: Mapping[str, Any]
    macs: Mapping[int, int]
    file_bytes: int | None = None
    top1: float | None = None
    peer: bool = False
    precision: str = "float32"


class Row(NamedTuple):
    """One line of the table. Times are seconds, memory and files bytes; rates and shares fractions.

    `latency` is the median of a batch's answer, `p95` its 95th percentile; `first` opening the file and the first
    answer; `memory` the most that the process took beyond its imports; `share` of a float32 matrix product's speed.
    """

    name: str
    peer: bool
    precision: str
    size: int
    batch: int
    threads: int
    latency: float
    p95: float
    images_per_second: float
    first: float
    memory: int
    file_bytes: int | None
    share: float | None
    top1: float | None


class Process:
    """A contestant at work, in a number of threads."""

    def __init__(self, side: Side, threads: int, cases: Sequence[tuple[int, int]]):
        self.side, self.threads = side, threads
        self.found: dict[tuple[int, int], list[float]] = {case: [] for case in cases}
        self.memory = 0
        spec = json.dumps({**side.spec, "threads": threads, "cases": cases})
        command = [sys.executable, "-m", "googlenet.deployment.contestants", spec]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.first = self._line()["first"]

    def ask(self, size: int, batch: int, seconds: float) -> None:
        """Let it compute for so long, and keep its times."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"size": size, "batch": batch, "seconds": seconds}) + "\n")
        self.process.stdin.flush()
        answer = self._line()
        self.found[size, batch] += answer["seconds"]
        self.memory = answer["memory"]

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise ChildProcessError(f"{self.side.name} ended with exit code {self.process.wait()}; see above")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End it."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def measure(
    sides: Sequence[Side],
    cases: Sequence[tuple[int, int]],
    threads: Sequence[int],
    seconds: float,
    rounds: int,
) -> list[Row]:
    """Every side at every (size, batch) of `cases` in every number of threads: `seconds` for each, over `rounds`."""
    limit = Side(PRODUCT, {"kind": "product"}, {})
    rows = []
    for count in threads:
        with ExitStack() as stack:
            at_work = []
            for side in (limit, *sides):
                print(f"opening {side.name}, {count} threads", file=sys.stderr)
                process = Process(side, count, cases if side is not limit else [(0, 0)])
                stack.callback(process.close)
                at_work.append(process)
            for number in range(rounds):
                print(f"round {number + 1} of {rounds}", file=sys.stderr)
                at_work[0].ask(0, 0, seconds / rounds)
                for size, batch in cases:
                    for process in at_work[1:]:
                        process.ask(size, batch, seconds / rounds)
            speed = 2 * SIDE**3 / statistics.median(at_work[0].found[0, 0])
            rows += [_row(process, case, speed) for case in cases for process in at_work[1:]]
    return rows


def _row(process: Process, case: tuple[int, int], speed: float) -> Row:
    (size, batch), side, found = case, process.side, sorted(process.found[case])
    latency = statistics.median(found)
    macs = side.macs.get(size)
    return Row(
        side.name,
        side.peer,
        side.precision,
        size,
        batch,
        process.threads,
        latency,
        found[min(len(found) - 1, int(0.95 * len(found)))],
        batch / latency,
        process.first,
        process.memory,
        side.file_bytes,
        2 * macs * batch / speed / latency if macs else None,
        side.top1,
    )


# The table's columns: the head, its width, and what stands in a row.
COLUMNS: tuple[tuple[str, int, Callable[[Row], str]], ...] = (
    ("size", 5, lambda row: str(row.size)),
    ("batch", 6, lambda row: str(row.batch)),
    ("threads", 8, lambda row: str(row.threads)),
    ("median ms", 11, lambda row: f"{1e3 * row.latency:.2f}"),
    ("p95 ms", 9, lambda row: f"{1e3 * row.p95:.2f}"),
    ("images/s", 10, lambda row: f"{row.images_per_second:.1f}"),
    ("first ms", 10, lambda row: f"{1e3 * row.first:.0f}"),
    ("memory MB", 11, lambda row: f"{row.memory / 1e6:.0f}"),
    ("file MB", 9, lambda row: "" if row.file_bytes is None else f"{row.file_bytes / 1e6:.1f}"),
    ("of product", 12, lambda row: "" if row.share is None else f"{row.share:.0%}"),
    ("top-1", 8, lambda row: "" if row.top1 is None else f"{row.top1:.4f}"),
)
NAMES = 34


def table(rows: Iterable[Row]) -> list[str]:
    """Lines for a person."""
    head = " " * NAMES + "".join(f"{name:>{width}}" for name, width, _ in COLUMNS)
    lines = [f"{row.name:<{NAMES}}" + "".join(f"{cell(row):>{width}}" for _, width, cell in COLUMNS) for row in rows]
    return [head, *lines]


def plot(rows: Sequence[Row], title: str) -> bytes:
    """A PNG picture: the latency of each side, a group for each size, batch and number of threads."""
    cases = list(dict.fromkeys((row.size, row.batch, row.threads) for row in rows))
    names = list(dict.fromkeys(row.name for row in rows))
    height = 1.2 + 0.28 * len(names)
    figure = Figure(figsize=(max(6.0, 3.6 * len(cases)), height + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(1, len(cases), squeeze=False)[0]
    for axis, (size, batch, threads) in zip(axes, cases, strict=True):
        here = {row.name: row for row in rows if (row.size, row.batch, row.threads) == (size, batch, threads)}
        for place, name in enumerate(names):
            row = here[name]
            colour = "#999999" if row.peer else "#009E73" if row.precision == "int8" else "#0072B2"
            speed = row.images_per_second
            axis.barh(place, speed, color=colour)
            axis.text(speed, place, f" {speed:.0f}", va="center", fontsize=7)
        axis.set_yticks(range(len(names)), names if axis is axes[0] else [""] * len(names), fontsize=8)
        axis.invert_yaxis()
        axis.margins(x=0.18)
        axis.set_xlabel("pictures per second")
        axis.set_title(f"{size} px, batch {batch}, {threads} thread{'s' if threads > 1 else ''}", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
