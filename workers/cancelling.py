"""Ending tasks for sure."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

AGAIN_S = 1.0  # what a task closes on its way out is not cut short


async def cancel(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel tasks, and again until they have ended; what they raise is not raised here.

    Once may not do: until Python 3.12 `asyncio.wait_for`, which redis-py waits with, forgets a cancellation that comes
    just as what it waits for is done.
    """
    while running := [task for task in tasks if not task.done()]:
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=AGAIN_S)
    await asyncio.gather(*tasks, return_exceptions=True)


async def within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """Its result. Raises TimeoutError after so long, also where the work has lost its cancellation as above.

    It is not waited for then: a call of redis-py ends by itself, at its own timeout.
    """
    task = asyncio.create_task(work)
    task.add_done_callback(_heard)
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        task.cancel()  # nothing happens when it is done
    if not task.done():
        raise TimeoutError
    return task.result()


def _heard(task: "asyncio.Task[Any]") -> None:
    """What it raises may be nobody's any more."""
    if not task.cancelled():
        task.exception()
