"""A task ends, also where a library loses a cancellation, and a fetcher that is to stop polls no more."""

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any

from workers.cancelling import cancel
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
