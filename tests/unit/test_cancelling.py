"""A task ends, also where a library loses a cancellation, and a fetcher that is to stop polls no more."""

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from workers.cancelling import cancel, within
from workers.transport import Consumer


async def test_a_task_that_forgets_a_cancellation_is_cancelled_again() -> None:
    kept = []

    async def forgetful() -> None:
        for _ in range(2):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            kept.append(1)
        await asyncio.Event().wait()

    task = asyncio.create_task(forgetful())
    await asyncio.sleep(0)
    await cancel(task)
    assert task.cancelled()
    assert len(kept) == 2


async def test_what_a_task_raises_stays_in_it() -> None:
    async def failing() -> None:
        raise ValueError("broken")

    done = asyncio.create_task(asyncio.sleep(0))
    task = asyncio.create_task(failing())
    await cancel(done, task)
    assert done.done()
    await cancel()


async def test_a_fetcher_that_was_stopped_while_positions_settled_polls_no_more() -> None:
    """Its cancellation may have got lost in Redis' client; the flow has stopped, and nobody would resume it."""
    fetcher = SimpleNamespace(should_stop=False)
    turns = []

    async def settle() -> bool:
        fetcher.should_stop = True
        return True

    async def turn() -> None:
        turns.append(1)

    async def poll() -> None:
        raise AssertionError("polled")

    consumer: Any = SimpleNamespace(
        should_stop=False,
        _resumed=True,
        turns=0,
        positions=SimpleNamespace(settle=settle),
        wants_poll=lambda: True,
        consumer_stopped_errors=(),
        _poll=poll,
        _deliver=turn,
    )
    async with asyncio.timeout(10):
        await Consumer._drain_messages(consumer, fetcher)
    assert turns == [1]


async def test_work_is_waited_for_as_long_as_it_may_take() -> None:
    async def answer() -> int:
        await asyncio.sleep(0)
        return 7

    async def fail() -> int:
        raise ValueError("broken")

    assert await within(10, answer()) == 7
    with pytest.raises(ValueError, match="broken"):
        await within(10, fail())


@pytest.mark.parametrize("forgets", [True, False])
async def test_work_that_takes_too_long_is_cancelled_and_not_waited_for(forgets: bool) -> None:
    begun, cancelled, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            if not forgets:
                raise
        await ended.wait()
        raise ValueError("nobody hears it")

    with pytest.raises(TimeoutError):
        await within(0.01, hang())
    async with asyncio.timeout(10):
        await begun.wait()
        await cancelled.wait()
    ended.set()


async def test_who_is_cancelled_takes_the_work_along() -> None:
    cancelled = asyncio.Event()

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    waiting = asyncio.create_task(within(60, hang()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await cancel(waiting)
    assert waiting.cancelled()
    async with asyncio.timeout(10):
        await cancelled.wait()
