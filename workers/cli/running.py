"""Runs what a command does in an event loop, so that Ctrl-C ends it for sure."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from workers.cancelling import cancel

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """As asyncio.run, which cancels once at Ctrl-C: a library that loses that would go on to its timeouts."""
    return asyncio.run(_ended_for_sure(work))


async def _ended_for_sure(work: Coroutine[Any, Any, T]) -> T:
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await cancel(task)
        raise
