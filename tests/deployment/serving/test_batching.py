"""How requests are joined: by key, up to the most, within the wait; and how each gets its own answer."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from googlenet.deployment.serving.batching import Batcher, Done


def during(work: Callable[[Batcher], Awaitable[Any]], max_wait: float = 0.05) -> Any:
    """What `work` gives with a batcher that runs."""

    async def go() -> Any:
        batcher = Batcher(max_wait)
        await batcher.start()
        try:
            return await work(batcher)
        finally:
            await batcher.stop()

    return asyncio.run(go())


def test_joined_by_key_and_up_to_the_most() -> None:
    seen: list[list[int]] = []

    def run(items: list[int]) -> list[int]:
        seen.append(items)
        return [item * item for item in items]

    async def work(batcher: Batcher) -> list[Done]:
        keys = "aaaaabb"
        return await asyncio.gather(*(batcher.answer(key, run, item, 3) for item, key in enumerate(keys)))

    answers = during(work)
    assert [done.value for done in answers] == [0, 1, 4, 9, 16, 25, 36]
    assert seen == [[0, 1, 2], [3, 4], [5, 6]]
    assert [done.batch for done in answers] == [3, 3, 3, 2, 2, 2, 2]


def test_a_full_batch_does_not_wait() -> None:
    async def work(batcher: Batcher) -> list[Done]:
        return await asyncio.gather(*(batcher.answer("a", list, item, 4) for item in range(4)))

    # It would wait for a day.
    assert [done.batch for done in during(work, max_wait=86_400)] == [4] * 4


def test_a_lone_item_waits_as_long_as_allowed_and_is_then_answered() -> None:
    async def work(batcher: Batcher) -> tuple[Done, float]:
        begun = time.perf_counter()
        done = await batcher.answer("a", list, 0, 4)
        return done, time.perf_counter() - begun

    done, waited = during(work, max_wait=0.3)
    assert done.batch == 1
    assert waited >= 0.3, "shorter, and others would have missed this batch"


def test_what_comes_during_a_batch_is_the_next_one() -> None:
    holding, sizes = threading.Event(), []

    def run(items: list[int]) -> list[int]:
        sizes.append(len(items))
        holding.wait(60)
        return items

    async def work(batcher: Batcher) -> None:
        first = asyncio.create_task(batcher.answer("a", run, 0, 8))
        while not sizes:  # until it is computed
            await asyncio.sleep(0.01)
        others = [asyncio.create_task(batcher.answer("a", run, item, 8)) for item in range(6)]
        while batcher.waiting < 6:
            await asyncio.sleep(0.01)
        others.pop().cancel()
        await asyncio.sleep(0)
        holding.set()
        await asyncio.gather(first, *others)

    during(work, max_wait=0.0)
    assert sizes == [1, 5], "what was cancelled while it waited is not computed"


def test_a_problem_is_each_askers_and_the_next_batch_goes_on() -> None:
    def run(items: list[int]) -> list[int]:
        if 13 in items:
            raise ValueError("no thirteens")
        return items

    async def work(batcher: Batcher) -> list[Any]:
        asked = [batcher.answer("a", run, item, 2) for item in (13, 1, 2, 3)]
        return await asyncio.gather(*asked, return_exceptions=True)

    first, second, third, fourth = during(work)
    assert str(first) == str(second) == "no thirteens"
    assert (third.value, fourth.value) == (2, 3)


def test_oldest_first_between_keys() -> None:
    order: list[str] = []

    async def work(batcher: Batcher) -> None:
        def run(items: list[str]) -> list[str]:
            order.append(items[0])
            return items

        asked = [asyncio.create_task(batcher.answer(key, run, key, 2)) for key in "abcab"]
        await asyncio.gather(*asked)

    during(work)
    assert order == ["a", "b", "c"]


def test_stopping_cancels_what_waits() -> None:
    async def go() -> None:
        batcher = Batcher(86_400.0)
        await batcher.start()
        asked = asyncio.create_task(batcher.answer("a", list, 0, 4))
        while not batcher.waiting:
            await asyncio.sleep(0.01)
        await batcher.stop()
        with pytest.raises(asyncio.CancelledError):
            await asked

    asyncio.run(go())
