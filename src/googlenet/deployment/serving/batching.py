"""Requests that wait together are computed together: one batch at a time, in a thread of its own."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple

Run = Callable[[list[Any]], Sequence[Any]]


class Done(NamedTuple):
    """The `value` for one item, the size of its `batch`, and the seconds that it was `queued` and `computed`."""

    value: Any
    batch: int
    queued: float
    computed: float


class _Waiting(NamedTuple):
    item: Any
    future: "asyncio.Future[Done]"
    since: float


class _Line(NamedTuple):
    """Items that may be computed together, oldest first, at most `most` at a time."""

    run: Run
    most: int
    waiting: deque[_Waiting]


class Batcher:
    """Joins items of one key into batches, and computes them one batch after the other.

    A batch starts when the thread is free and it is full, or its oldest item has waited for `max_wait` seconds; of
    several that could start, the one with the oldest item. `on_batch` is told of every batch: its size and seconds.
    All is called from one event loop, in which `start` and `stop` are awaited too.
    """

    def __init__(
        self,
        max_wait: float,
        prepare_thread: Callable[[], None] | None = None,
        on_batch: Callable[[int, float], None] | None = None,
    ):
        self.max_wait = max_wait
        self._prepare = prepare_thread
        self._on_batch = on_batch
        self._lines: dict[Hashable, _Line] = {}
        self._wake = asyncio.Event()
        self._pool: ThreadPoolExecutor | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Items that no batch has taken yet."""
        return sum(len(line.waiting) for line in self._lines.values())

    async def start(self) -> None:
        """Begin to compute."""
        self._pool = ThreadPoolExecutor(1, "compute", self._prepare or (lambda: None))
        self._task = asyncio.create_task(self._compute())

    async def stop(self) -> None:
        """Compute no further batch; what still waits is cancelled."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        for line in self._lines.values():
            for one in line.waiting:
                one.future.cancel()
        self._lines.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    async def answer(self, key: Hashable, run: Run, item: Any, most: int) -> Done:
        """What `run` returns for `item`, computed with up to `most` - 1 others of the same `key`.

        `run` takes a list of items and returns as many values. What it raises is raised here, for each of the batch.
        An awaiting task that is cancelled takes its item out of the line.
        """
        future: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        line = self._lines.setdefault(key, _Line(run, most, deque()))
        line.waiting.append(_Waiting(item, future, time.perf_counter()))
        self._wake.set()
        return await future

    async def _compute(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            batch, run, patience = self._due()
            if not batch:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), patience)
                continue
            started = time.perf_counter()
            try:
                assert self._pool is not None
                values = await loop.run_in_executor(self._pool, run, [one.item for one in batch])
                computed = time.perf_counter() - started
                for one, value in zip(batch, values, strict=True):
                    if not one.future.done():
                        one.future.set_result(Done(value, len(batch), started - one.since, computed))
                if self._on_batch is not None:
                    self._on_batch(len(batch), computed)
            except Exception as error:
                for one in batch:
                    if not one.future.done():
                        one.future.set_exception(error)

    def _due(self) -> tuple[list[_Waiting], Run, float | None]:
        """The batch to compute now; or none, and the seconds until one is due (None: not before something comes)."""
        now = time.perf_counter()
        for key in list(self._lines):
            waiting = self._lines[key].waiting
            while waiting and waiting[0].future.done():
                waiting.popleft()
            if not waiting:
                del self._lines[key]
        due = {
            key: line.waiting[0].since
            for key, line in self._lines.items()
            if len(line.waiting) >= line.most or now - line.waiting[0].since >= self.max_wait
        }
        if not due:
            oldest = min((line.waiting[0].since for line in self._lines.values()), default=None)
            return [], list, None if oldest is None else max(0.0, oldest + self.max_wait - now)
        line = self._lines[min(due, key=lambda key: due[key])]
        batch: list[_Waiting] = []
        while line.waiting and len(batch) < line.most:
            one = line.waiting.popleft()
            if not one.future.done():
                batch.append(one)
        return batch, line.run, None
