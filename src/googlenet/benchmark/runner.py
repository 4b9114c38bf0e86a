"""Measure targets, each in its own process; they take turns, so that the machine's load affects all of them equally."""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from ..evaluation.plots import new_figure, to_png
from ..palette import BLUE, GRAY, GREEN
from .worker import MATMUL_SIZE


class BenchmarkTarget(NamedTuple):
    """A network in an engine: the `spec` of its `worker`, and its multiply-adds per image by size in pixels."""

    name: str
    spec: Mapping[str, Any]
    macs: Mapping[int, int]
    file_bytes: int | None = None
    top1: float | None = None
    baseline: bool = False
    precision: str = "float32"


class BenchmarkRow(NamedTuple):
    """The results of a target at one size (pixels), batch and number of threads.

    `latency` (median) and `p95` are seconds per batch, `cold_start` those to open the file and predict the first batch,
    `memory` is the increase of the peak of resident bytes, `matmul_utilization` relates to a float32 matrix product.
    """

    name: str
    baseline: bool
    precision: str
    size: int
    batch: int
    threads: int
    latency: float
    p95: float
    images_per_second: float
    cold_start: float
    memory: int
    file_bytes: int | None
    matmul_utilization: float | None
    top1: float | None


class WorkerProcess:
    """The process of a target, with a number of threads; it ends when `stack` is closed."""

    def __init__(self, target: BenchmarkTarget, threads: int, cases: Sequence[tuple[int, int]], stack: ExitStack):
        print(f"opening {target.name}, {threads} threads", file=sys.stderr)
        self.target, self.threads = target, threads
        self.seconds: dict[tuple[int, int], list[float]] = {case: [] for case in cases}
        self.memory = 0
        spec = {**target.spec, "threads": threads, "cases": cases}
        command = [sys.executable, "-m", "googlenet.benchmark.worker", json.dumps(spec)]
        pipe = subprocess.PIPE
        self.process = stack.enter_context(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True))
        self.cold_start = self._read_reply()["cold_start"]

    def measure(self, case: tuple[int, int], seconds: float) -> None:
        """Measure one (size, batch) for some seconds and add the results to `seconds`."""
        assert self.process.stdin
        print(json.dumps({"case": case, "seconds": seconds}), file=self.process.stdin, flush=True)
        reply = self._read_reply()
        self.seconds[case] += reply["seconds"]
        self.memory = reply["memory"]

    def _read_reply(self) -> dict[str, Any]:
        assert self.process.stdout
        if line := self.process.stdout.readline():
            return dict(json.loads(line))
        raise ChildProcessError(f"{self.target.name} ended with exit code {self.process.wait()}; see above")


def measure(
    targets: Sequence[BenchmarkTarget], cases: Sequence[tuple[int, int]], threads: Sequence[int], seconds: float,
    rounds: int,
) -> list[BenchmarkRow]:  # fmt: skip
    """Measure all targets at all `cases` (size, batch) and numbers of threads: `seconds` each, over `rounds`."""
    matmul = BenchmarkTarget("matrix product", {"kind": "matmul"}, {})
    rows = []
    for count in threads:
        with ExitStack() as stack:
            peak = WorkerProcess(matmul, count, [(0, 0)], stack)
            workers = [WorkerProcess(target, count, cases, stack) for target in targets]
            for i in range(rounds):
                print(f"round {i + 1} of {rounds}", file=sys.stderr)
                peak.measure((0, 0), seconds / rounds)
                for case in cases:
                    for worker in workers:
                        worker.measure(case, seconds / rounds)
            peak_flops = 2 * MATMUL_SIZE**3 / statistics.median(peak.seconds[0, 0])
            rows += [benchmark_row(worker, case, peak_flops) for case in cases for worker in workers]
    return rows


def benchmark_row(worker: WorkerProcess, case: tuple[int, int], peak_flops: float) -> BenchmarkRow:
    """Summarize the measurements of one (size, batch). `peak_flops` are those of the matrix product."""
    (size, batch), target, seconds = case, worker.target, sorted(worker.seconds[case])
    latency = statistics.median(seconds)
    macs = target.macs.get(size)
    p95 = seconds[min(len(seconds) - 1, int(0.95 * len(seconds)))]
    utilization = 2 * macs * batch / peak_flops / latency if macs else None
    return BenchmarkRow(
        target.name, target.baseline, target.precision, size, batch, worker.threads, latency, p95, batch / latency,
        worker.cold_start, worker.memory, target.file_bytes, utilization, target.top1,
    )  # fmt: skip


# Title, width and content of each column of the table.
COLUMNS: tuple[tuple[str, int, Callable[[BenchmarkRow], str]], ...] = (
    ("size", 5, lambda row: str(row.size)),
    ("batch", 6, lambda row: str(row.batch)),
    ("threads", 8, lambda row: str(row.threads)),
    ("median ms", 11, lambda row: f"{1e3 * row.latency:.2f}"),
    ("p95 ms", 9, lambda row: f"{1e3 * row.p95:.2f}"),
    ("images/s", 10, lambda row: f"{row.images_per_second:.1f}"),
    ("cold start ms", 15, lambda row: f"{1e3 * row.cold_start:.0f}"),
    ("memory MB", 11, lambda row: f"{row.memory / 1e6:.0f}"),
    ("file MB", 9, lambda row: "" if row.file_bytes is None else f"{row.file_bytes / 1e6:.1f}"),
    ("of peak", 9, lambda row: "" if row.matmul_utilization is None else f"{row.matmul_utilization:.0%}"),
    ("top-1", 8, lambda row: "" if row.top1 is None else f"{row.top1:.4f}"),
)
NAME_WIDTH = 34


def format_rows(rows: Iterable[BenchmarkRow]) -> list[str]:
    """Format a table with one line per row. "of peak" is the speed as a fraction of a float32 matrix product's."""
    titles = [("", [name for name, _, _ in COLUMNS])]
    table = titles + [(row.name, [cell(row) for _, _, cell in COLUMNS]) for row in rows]
    widths = [width for _, width, _ in COLUMNS]
    return [f"{name:<{NAME_WIDTH}}" + "".join(map(str.rjust, cells, widths)) for name, cells in table]


def plot(rows: Sequence[BenchmarkRow], title: str) -> bytes:
    """Draw the images per second of each target, a panel for each size, batch and number of threads (PNG)."""
    cases = list(dict.fromkeys((row.size, row.batch, row.threads) for row in rows))
    names = list(dict.fromkeys(row.name for row in rows))
    figure = new_figure(max(6.0, 3.6 * len(cases)), 1.8 + 0.28 * len(names))
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(1, len(cases), squeeze=False)[0]
    for axis, (size, batch, threads) in zip(axes, cases, strict=True):
        by_name = {row.name: row for row in rows if (row.size, row.batch, row.threads) == (size, batch, threads)}
        for i, name in enumerate(names):
            row, speed = by_name[name], by_name[name].images_per_second
            axis.barh(i, speed, color=GRAY if row.baseline else GREEN if row.precision == "int8" else BLUE)
            axis.text(speed, i, f" {speed:.0f}", va="center", fontsize=7)
        axis.set_yticks(range(len(names)), names if axis is axes[0] else [""] * len(names), fontsize=8)
        axis.invert_yaxis()
        axis.margins(x=0.18)
        axis.set_xlabel("images per second")
        axis.set_title(f"{size} px, batch {batch}, {threads} thread{'s' if threads > 1 else ''}", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    return to_png(figure)
