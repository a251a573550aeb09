"""Try again until it works: for the work that must not be lost and may be repeated."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from workers.dependencies import Dependencies
from workers.errors import DependencyError

T = TypeVar("T")

FIRST_DELAY_S = 0.05
LONGEST_DELAY_S = 5.0


def pauses() -> Iterator[float]:
    """Seconds to wait before each next try: twice as long each time, up to a bound, and different for everybody."""
    delay_s = FIRST_DELAY_S
    while True:
        yield delay_s * random.uniform(0.5, 1.0)  # noqa: S311  # jitter, not a secret
        delay_s = min(delay_s * 2, LONGEST_DELAY_S)


async def until_done(work: Callable[[], Awaitable[T]], dependencies: Dependencies) -> T:
    """Run `work` until it raises no DependencyError, waiting longer each time, with jitter. `work` must be idempotent.

    Ends only by success, by another exception, or by cancellation (a worker that stops leaves its offsets uncommitted).
    """
    failed: set[str] = set()
    for pause_s in pauses():
        try:
            result = await work()
        except DependencyError as error:
            dependencies.failed(error)
            failed.add(error.dependency)
            await asyncio.sleep(pause_s)
        else:
            for name in failed:
                dependencies.worked(name)
            return result
    raise AssertionError("pauses never end")
