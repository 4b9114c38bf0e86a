"""Dynamic batching: keys, batch size, delay, order, errors and cancellation."""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from googlenet.serving.batching import BatchResult, MicroBatcher
from googlenet.serving.service import DECODE_NICENESS, initialize_decoding_thread


def run_with_batcher(work: Callable[[MicroBatcher], Awaitable[Any]], max_delay: float = 0.05) -> Any:
    """Await `work` with a running batcher."""

    async def go() -> Any:
        batcher = MicroBatcher(max_delay)
        await batcher.start()
        try:
            return await work(batcher)
        finally:
            await batcher.stop()

    return asyncio.run(go())


def test_batches_by_key_up_to_the_maximum_size() -> None:
    batches: list[list[int]] = []

    def run(items: list[int]) -> list[int]:
        batches.append(items)
        return [item * item for item in items]

    async def work(batcher: MicroBatcher) -> list[BatchResult]:
        keys = "aaaaabb"
        return await asyncio.gather(*(batcher.submit(key, run, item, 3) for item, key in enumerate(keys)))

    results = run_with_batcher(work)
    assert [result.value for result in results] == [0, 1, 4, 9, 16, 25, 36]
    assert batches == [[0, 1, 2], [3, 4], [5, 6]]
    assert [result.batch_size for result in results] == [3, 3, 3, 2, 2, 2, 2]


def test_full_batch_does_not_wait() -> None:
    async def work(batcher: MicroBatcher) -> list[BatchResult]:
        return await asyncio.gather(*(batcher.submit("a", list, item, 4) for item in range(4)))

    # Otherwise it would wait for a day.
    assert [result.batch_size for result in run_with_batcher(work, max_delay=86_400)] == [4] * 4


def test_single_item_waits_for_the_maximum_delay() -> None:
    async def work(batcher: MicroBatcher) -> tuple[BatchResult, float]:
        start = time.perf_counter()
        result = await batcher.submit("a", list, 0, 4)
        return result, time.perf_counter() - start

    result, seconds = run_with_batcher(work, max_delay=0.3)
    assert result.batch_size == 1
    assert seconds >= 0.3, "too short for other items to join"


def test_items_submitted_during_a_batch_form_the_next_one() -> None:
    release, sizes = threading.Event(), []

    def run(items: list[int]) -> list[int]:
        sizes.append(len(items))
        release.wait(60)
        return items

    async def work(batcher: MicroBatcher) -> None:
        first = asyncio.create_task(batcher.submit("a", run, 0, 8))
        while not sizes:  # until the batch is being computed
            await asyncio.sleep(0.01)
        others = [asyncio.create_task(batcher.submit("a", run, item, 8)) for item in range(6)]
        while batcher.num_queued < 6:
            await asyncio.sleep(0.01)
        others.pop().cancel()
        await asyncio.sleep(0)
        release.set()
        await asyncio.gather(first, *others)

    run_with_batcher(work, max_delay=0.0)
    assert sizes == [1, 5], "an item that was canceled in the queue is not computed"


def test_error_is_raised_for_each_item_of_the_batch_only() -> None:
    def run(items: list[int]) -> list[int]:
        if 13 in items:
            raise ValueError("invalid item")
        return items

    async def work(batcher: MicroBatcher) -> list[Any]:
        submitted = [batcher.submit("a", run, item, 2) for item in (13, 1, 2, 3)]
        return await asyncio.gather(*submitted, return_exceptions=True)

    first, second, third, fourth = run_with_batcher(work)
    assert str(first) == str(second) == "invalid item"
    assert (third.value, fourth.value) == (2, 3)


def test_oldest_item_of_all_keys_is_first() -> None:
    order: list[str] = []

    async def work(batcher: MicroBatcher) -> None:
        def run(items: list[str]) -> list[str]:
            order.append(items[0])
            return items

        await asyncio.gather(*(batcher.submit(key, run, key, 2) for key in "abcab"))

    run_with_batcher(work)
    assert order == ["a", "b", "c"]


def test_stop_cancels_queued_items() -> None:
    async def go() -> None:
        batcher = MicroBatcher(86_400.0)
        await batcher.start()
        submitted = asyncio.create_task(batcher.submit("a", list, 0, 4))
        while not batcher.num_queued:
            await asyncio.sleep(0.01)
        await batcher.stop()
        with pytest.raises(asyncio.CancelledError):
            await submitted

    asyncio.run(go())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a priority for each thread")
def test_decoding_yields_to_computing() -> None:
    """The threads that decode have a lower priority than those that compute, which is that of the process."""

    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    with ThreadPoolExecutor(1, initializer=initialize_decoding_thread) as pool:
        assert pool.submit(niceness).result() == min(niceness() + DECODE_NICENESS, 19)
        assert pool.submit(torch.get_num_threads).result() == 1
