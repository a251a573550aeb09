"""Try again until it works: for the work that must not be lost and may be repeated."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from workers.errors import DependencyError

T = TypeVar("T")

FIRST_DELAY_S = 0.05
LONGEST_DELAY_S = 5.0

log = structlog.get_logger()


async def until_done(work: Callable[[], Awaitable[T]], failed: Callable[[DependencyError], None]) -> T:
    """Run `work` until it raises no DependencyError, waiting longer each time, with jitter. `work` must be idempotent.

    Ends only by success, by another exception, or by cancellation (a worker that stops leaves its offsets uncommitted).
    """
    delay_s = FIRST_DELAY_S
    while True:
        try:
            return await work()
        except DependencyError as error:
            failed(error)
            log.warning(
                "dependency failed, trying again", dependency=error.dependency, error=str(error), delay_s=delay_s
            )
        await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311  # jitter, not a secret
        delay_s = min(delay_s * 2, LONGEST_DELAY_S)
