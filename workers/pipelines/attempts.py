"""Calls to dependencies within the time that a batch has: a result, or None and the failure told."""

import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from workers.cancelling import within
from workers.dependencies import Dependencies
from workers.errors import DependencyError, DependencyTimeout, RowRefused
from workers.ports import Clock

T = TypeVar("T")


class Attempts:
    """Those of one batch, which must be through at `deadline_ms`. A dependency whose breaker is open is not asked."""

    def __init__(self, dependencies: Dependencies, clock: Clock, deadline_ms: int) -> None:
        self._dependencies = dependencies
        self._began_s = dependencies.now_s()
        self._end_s = time.perf_counter() + max(1, deadline_ms - clock.now_ms()) / 1000

    def left_s(self) -> float:
        """Seconds until the batch must be through; negative when it should be already."""
        return self._end_s - time.perf_counter()

    async def __call__(self, dependency: str, work: Coroutine[Any, Any, T], limit_ms: int) -> T | None:
        """The result, or None when the dependency failed, or took longer than its limit or than there is time."""
        breaker = self._dependencies.breaker(dependency)
        was_open = breaker.open_since_s is not None
        if not breaker.lets_through():
            work.close()
            return None
        began_s = self._dependencies.now_s() if was_open else self._began_s
        limit_s = limit_ms / 1000
        allowed_s = max(0.001, min(limit_s, self.left_s()))
        try:
            result = await within(allowed_s, work)
        except RowRefused as error:
            self._dependencies.failed(error)
            breaker.worked()  # it answers
            return None
        except DependencyError as error:
            self._dependencies.failed(error)
            if error.dependency == dependency:
                breaker.failed(began_s)
            else:  # one that the work needed besides
                breaker.unasked()
            return None
        except TimeoutError:
            if allowed_s >= limit_s:  # else the deadline cut it short, which says nothing of the dependency
                self._dependencies.failed(DependencyTimeout(dependency, f"no answer in {limit_ms} ms"))
                breaker.failed(began_s)
            elif was_open or breaker.is_silent:  # unless something else speaks against it
                breaker.failed(began_s)
            return None
        self._dependencies.worked(dependency)
        return result
