"""Calls to dependencies within the time that a batch has: a result, or None and the failure told."""

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

from workers.dependencies import Dependencies
from workers.errors import DependencyError, DependencyTimeout
from workers.ports import Clock

T = TypeVar("T")


class Attempts:
    """Those of one batch, which must be through at `deadline_ms`."""

    def __init__(self, dependencies: Dependencies, clock: Clock, deadline_ms: int) -> None:
        self._dependencies = dependencies
        self._end_s = time.perf_counter() + max(1, deadline_ms - clock.now_ms()) / 1000

    def left_s(self) -> float:
        """Seconds until the batch must be through; negative when it should be already."""
        return self._end_s - time.perf_counter()

    async def __call__(self, dependency: str, work: Awaitable[T], limit_ms: int) -> T | None:
        """The result, or None when the dependency failed, or took longer than its limit or than there is time."""
        allowed_s = max(0.001, min(limit_ms / 1000, self.left_s()))
        try:
            async with asyncio.timeout(allowed_s):
                result = await work
        except DependencyError as error:
            self._dependencies.failed(error)
            return None
        except TimeoutError:
            if allowed_s * 1000 >= limit_ms:  # else the deadline cut it short, which says nothing of the dependency
                self._dependencies.failed(DependencyTimeout(dependency, f"no answer in {limit_ms} ms"))
            return None
        self._dependencies.worked(dependency)
        return result
