"""Dynamic batching: items that wait at the same time are computed together, one batch at a time, in one thread."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple

log = logging.getLogger("googlenet.serve")
BatchFunction = Callable[[list[Any]], Sequence[Any]]


class BatchResult(NamedTuple):
    """The `value` of one item, the size of its batch, and the seconds it was queued and computed."""

    value: Any
    batch_size: int
    queue_seconds: float
    compute_seconds: float


class _Item(NamedTuple):
    value: Any
    future: "asyncio.Future[BatchResult]"
    enqueued: float


class _Queue(NamedTuple):
    """Items with the same key, oldest first."""

    run: BatchFunction
    max_batch_size: int
    items: deque[_Item]


class MicroBatcher:
    """Joins items with the same key into batches and computes one batch after the other.

    A batch is ready if it is full or if its oldest item has waited for `max_delay` seconds. When the thread is free,
    the ready batch with the oldest item is computed. `initialize` is called in the thread when it starts, and
    `on_batch(size)` after every batch. All methods are called from one event loop.
    """

    def __init__(
        self, max_delay: float, initialize: Callable[[], None] | None = None,
        on_batch: Callable[[int], None] = lambda size: None,
    ):  # fmt: skip
        self.max_delay, self._on_batch = max_delay, on_batch
        self._queues: dict[Hashable, _Queue] = {}
        self._wake = asyncio.Event()
        self._pool = ThreadPoolExecutor(1, "compute", initialize)
        self._task: asyncio.Task[None] | None = None

    @property
    def num_queued(self) -> int:
        """Number of items that are not yet part of a batch."""
        return sum(len(queue.items) for queue in self._queues.values())

    async def start(self) -> None:
        """Start to compute batches."""
        self._task = asyncio.create_task(self._loop())

    async def stop(self) -> None:
        """Stop after the current batch and cancel the queued items."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await self._task
        for queue in self._queues.values():
            for item in queue.items:
                item.future.cancel()
        self._queues.clear()
        self._pool.shutdown(wait=True)

    async def submit(self, key: Hashable, run: BatchFunction, value: Any, max_batch_size: int) -> BatchResult:
        """Compute ``run([value])[0]`` in a batch with other items of the same `key`.

        An exception of `run` is raised for every item of the batch. Canceling the waiting task removes the item.
        """
        if self._task is not None and self._task.done():
            raise RuntimeError("batching has stopped")
        future: asyncio.Future[BatchResult] = asyncio.get_running_loop().create_future()
        queue = self._queues.setdefault(key, _Queue(run, max_batch_size, deque()))
        queue.items.append(_Item(value, future, time.perf_counter()))
        self._wake.set()
        return await future

    @property
    def running(self) -> bool:
        """Whether batches are computed: the loop has been started and has not ended by an error."""
        return self._task is not None and not self._task.done()

    async def _loop(self) -> None:
        try:
            await self._run_batches()
        except Exception:
            # Nothing is expected to raise outside of a batch. If it does, health checks report it through `running`,
            # and clients get an error instead of waiting.
            log.exception("batching has stopped; restart the server")
            for queue in self._queues.values():
                for item in queue.items:
                    if not item.future.done():
                        item.future.set_exception(RuntimeError("batching has stopped"))
            raise

    async def _run_batches(self) -> None:
        while True:
            self._wake.clear()
            batch, run, timeout = self._next_batch()
            if batch:
                await self._compute(batch, run)
            else:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), timeout)

    async def _compute(self, batch: list[_Item], run: BatchFunction) -> None:
        start = time.perf_counter()
        loop = asyncio.get_running_loop()
        try:
            values = await loop.run_in_executor(self._pool, run, [item.value for item in batch])
            seconds = time.perf_counter() - start
            for item, value in zip(batch, values, strict=True):
                if not item.future.done():
                    item.future.set_result(BatchResult(value, len(batch), start - item.enqueued, seconds))
            self._on_batch(len(batch))
        except Exception as error:
            for item in batch:
                if not item.future.done():
                    item.future.set_exception(error)

    def _next_batch(self) -> tuple[list[_Item], BatchFunction, float | None]:
        """Take the next batch. If none is ready, it is empty, with the seconds until one is (None: no items)."""
        now = time.perf_counter()
        for key, queue in list(self._queues.items()):
            while queue.items and queue.items[0].future.done():
                queue.items.popleft()
            if not queue.items:
                del self._queues[key]
        ready = [
            queue
            for queue in self._queues.values()
            if len(queue.items) >= queue.max_batch_size or now - queue.items[0].enqueued >= self.max_delay
        ]
        if not ready:
            oldest = min((queue.items[0].enqueued for queue in self._queues.values()), default=None)
            return [], list, None if oldest is None else max(0.0, oldest + self.max_delay - now)
        queue = min(ready, key=lambda queue: queue.items[0].enqueued)
        batch: list[_Item] = []
        while queue.items and len(batch) < queue.max_batch_size:
            item = queue.items.popleft()
            if not item.future.done():
                batch.append(item)
        return batch, queue.run, None
