"""Measure targets, each in its own process; they take turns, so that the machine's load affects all of them equally."""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from typing import Any, NamedTuple

from ..evaluation.plots import new_figure, to_png
from ..palette import BLUE, GRAY, GREEN
from .worker import MATMUL_SIZE

DEFAULT = "default"
SETTINGS = (DEFAULT, "float32")


class BenchmarkTarget(NamedTuple):
    """A network in an engine: the `spec` of its `worker`, and its multiply-adds per image by size in pixels.

    `settings` are ``default``, or ``float32`` with the benchmark's number of threads.
    """

    name: str
    spec: Mapping[str, Any]
    macs: Mapping[int, int]
    file_bytes: int | None = None
    top1: float | None = None
    is_peer: bool = False
    settings: str = DEFAULT


class BenchmarkRow(NamedTuple):
    """The results of a target at one size (pixels), batch and number of threads; 0 is the library's default.

    `rounds` are the medians of each round. `latency` (median) and `p95` are seconds per batch, `cold_start` those to
    open the file and predict the first batch, `memory` is the increase of the peak of resident bytes,
    `matmul_utilization` relates to a float32 matrix product.
    """

    name: str
    is_peer: bool
    settings: str
    precision: str
    size: int
    batch: int
    threads: int
    latency: float
    rounds: tuple[float, ...]
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
        self.target, self.threads = target, 0 if target.settings == DEFAULT else threads
        print(f"opening {target.name}, {self.threads or 'default'} threads", file=sys.stderr)
        self.rounds: dict[tuple[int, int], list[list[float]]] = {case: [] for case in cases}
        self.memory = 0
        spec = {**target.spec, "threads": self.threads or None, "cases": cases}
        command = [sys.executable, "-m", "googlenet.benchmark.worker", json.dumps(spec)]
        pipe = subprocess.PIPE
        self.process = stack.enter_context(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True))
        reply = self._read_reply()
        self.cold_start, self.precision = reply["cold_start"], reply["precision"]

    def measure(self, case: tuple[int, int], seconds: float) -> None:
        """Measure one (size, batch) for some seconds and add the results to `rounds`."""
        assert self.process.stdin
        print(json.dumps({"case": case, "seconds": seconds}), file=self.process.stdin, flush=True)
        reply = self._read_reply()
        self.rounds[case].append(reply["seconds"])
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
    """Measure all targets at all `cases` (size, batch): `seconds` each, over `rounds`.

    Those with default settings are measured once, the others with each number of `threads`.
    """
    matmul = BenchmarkTarget("matrix product", {"kind": "matmul"}, {}, settings="float32")
    rows, later = list[BenchmarkRow](), [target for target in targets if target.settings != DEFAULT]
    for count in threads:
        with ExitStack() as stack:
            peak = WorkerProcess(matmul, count, [(0, 0)], stack)
            workers = [WorkerProcess(target, count, cases, stack) for target in (later if rows else targets)]
            for i in range(rounds):
                print(f"round {i + 1} of {rounds}", file=sys.stderr)
                peak.measure((0, 0), seconds / rounds)
                for case in cases:
                    for worker in workers:
                        worker.measure(case, seconds / rounds)
            peak_flops = 2 * MATMUL_SIZE**3 / statistics.median(chain.from_iterable(peak.rounds[0, 0]))
            rows += [benchmark_row(worker, case, peak_flops) for case in cases for worker in workers]
    return rows


def benchmark_row(worker: WorkerProcess, case: tuple[int, int], peak_flops: float) -> BenchmarkRow:
    """Summarize the measurements of one (size, batch). `peak_flops` are those of the matrix product."""
    (size, batch), target, rounds = case, worker.target, worker.rounds[case]
    seconds = sorted(chain.from_iterable(rounds))
    latency = statistics.median(seconds)
    macs = target.macs.get(size)
    p95 = seconds[min(len(seconds) - 1, int(0.95 * len(seconds)))]
    utilization = 2 * macs * batch / peak_flops / latency if macs else None
    return BenchmarkRow(
        target.name, target.is_peer, target.settings, worker.precision, size, batch, worker.threads, latency,
        tuple(map(statistics.median, rounds)), p95, batch / latency, worker.cold_start, worker.memory,
        target.file_bytes, utilization, target.top1,
    )  # fmt: skip


class Speedup(NamedTuple):
    """How many times as fast `name` is as `peer` at one size and batch: median, minimum and maximum over the rounds."""

    name: str
    peer: str
    size: int
    batch: int
    ratio: float
    low: float
    high: float


def speedups(rows: Sequence[BenchmarkRow]) -> list[Speedup]:
    """Compare ``auto`` and the fastest int8 file with the fastest peer with default settings, at each size and batch.

    The ratio is computed in each round, because the load of the machine is then the same for both.
    """
    results = []
    for case in dict.fromkeys((row.size, row.batch) for row in rows):
        default = [row for row in rows if (row.size, row.batch) == case and row.settings == DEFAULT]
        own = [row for row in default if not row.is_peer]
        auto, int8 = ([row for row in own if row.name.endswith(suffix)] for suffix in (", auto", " int8"))
        peers = [row for row in default if row.is_peer]
        for candidates in (auto, int8):
            if candidates and peers:
                best, peer = (min(group, key=lambda row: row.latency) for group in (candidates, peers))
                ratios = sorted(theirs / ours for theirs, ours in zip(peer.rounds, best.rounds, strict=True))
                name = f"{best.name} ({best.precision})" if candidates is auto else best.name
                peer_name = f"{peer.name} ({peer.precision})"
                results.append(Speedup(name, peer_name, *case, statistics.median(ratios), ratios[0], ratios[-1]))
    return results


# Title, width and content of each column of the table.
COLUMNS: tuple[tuple[str, int, Callable[[BenchmarkRow], str]], ...] = (
    ("size", 5, lambda row: str(row.size)),
    ("batch", 6, lambda row: str(row.batch)),
    ("threads", 9, lambda row: str(row.threads or DEFAULT)),
    ("precision", 21, lambda row: row.precision),
    ("median ms", 11, lambda row: f"{1e3 * row.latency:.2f}"),
    ("p95 ms", 9, lambda row: f"{1e3 * row.p95:.2f}"),
    ("images/s", 10, lambda row: f"{row.images_per_second:.1f}"),
    ("cold start ms", 15, lambda row: f"{1e3 * row.cold_start:.0f}"),
    ("memory MB", 11, lambda row: f"{row.memory / 1e6:.0f}"),
    ("file MB", 9, lambda row: "" if row.file_bytes is None else f"{row.file_bytes / 1e6:.1f}"),
    ("of peak", 9, lambda row: "" if row.matmul_utilization is None else f"{row.matmul_utilization:.0%}"),
    ("top-1", 8, lambda row: "" if row.top1 is None else f"{row.top1:.4f}"),
)
NAME_WIDTH = 36


def format_rows(rows: Iterable[BenchmarkRow]) -> list[str]:
    """Format a table with one line per row. "of peak" is the speed as a fraction of a float32 matrix product's."""
    titles = [("", [name for name, _, _ in COLUMNS])]
    table = titles + [(row.name, [cell(row) for _, _, cell in COLUMNS]) for row in rows]
    widths = [width for _, width, _ in COLUMNS]
    return [f"{name:<{NAME_WIDTH}}" + "".join(map(str.rjust, cells, widths)) for name, cells in table]


def plot(rows: Sequence[BenchmarkRow], title: str) -> bytes:
    """Draw the images per second of each target, a panel for each size, batch and number of threads (PNG)."""
    cases = list(dict.fromkeys((row.size, row.batch, row.threads, row.settings) for row in rows))
    names = list(dict.fromkeys(row.name for row in rows))
    figure = new_figure(max(6.0, 3.6 * len(cases)), 1.8 + 0.28 * len(names))
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(1, len(cases), squeeze=False)[0]
    for axis, case in zip(axes, cases, strict=True):
        (size, batch, threads, settings) = case
        by_name = {row.name: row for row in rows if (row.size, row.batch, row.threads, row.settings) == case}
        for i, row in ((i, by_name[name]) for i, name in enumerate(names) if name in by_name):
            speed = row.images_per_second
            axis.barh(i, speed, color=GRAY if row.is_peer else GREEN if "int8" in row.precision else BLUE)
            axis.text(speed, i, f" {speed:.0f}", va="center", fontsize=7)
        axis.set_yticks(range(len(names)), names if axis is axes[0] else [""] * len(names), fontsize=8)
        axis.invert_yaxis()
        axis.margins(x=0.18)
        axis.set_xlabel("images per second")
        details = f"{threads} thread{'s' if threads > 1 else ''}, float32" if threads else f"{settings} settings"
        axis.set_title(f"{size} px, batch {batch}, {details}", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    return to_png(figure)
