"""Ending tasks for sure."""

import asyncio
from typing import Any

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
