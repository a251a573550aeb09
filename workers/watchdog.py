"""Ends a worker that is stuck, so that somebody starts it again: nobody else may be looking.

A thread of its own watches that the event loop turns. On the loop, a task watches that polls go on and that batches
end. Both count their own turns and never read a clock: a process that was stopped, or whose machine slept, has not been
stuck for that long.
"""

import asyncio
import faulthandler
import os
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import NoReturn

import structlog

TURN_S = 1.0
LAST_WORDS_S = 5.0

log = structlog.get_logger()


class Unchanged:
    """For how many looks in a row something has been the same."""

    def __init__(self) -> None:
        self._last: Hashable = object()
        self._looks = 0

    def look(self, found: Hashable) -> int:
        """See what it is now; None = there is nothing to be stuck with."""
        if found is None or found != self._last:
            self._last, self._looks = found, 0
        else:
            self._looks += 1
        return self._looks


class Watched:
    """Something that must not stay the same for `limit_s`. `look` tells what it is now; None = nothing to watch."""

    def __init__(self, line: str, limit_s: float, look: Callable[[], Hashable]) -> None:
        self._line = line
        self._limit_s = limit_s
        self._look = look
        self._unchanged = Unchanged()

    def stuck(self) -> str | None:
        """To be asked once a turn: one line when it has been the same for too long."""
        if self._unchanged.look(self._look()) * TURN_S >= self._limit_s:
            return f"{self._line} for {self._limit_s:g} s"
        return None


class Watchdog:
    """That of one process; `run` is its part on the loop, the thread lives while it runs."""

    def __init__(self, limit_s: float, watched: Sequence[Watched] = ()) -> None:
        self._watched = watched
        self._turns = 0
        self._over = threading.Event()
        self._loop = Watched("the event loop has not turned", limit_s, lambda: self._turns)

    async def run(self) -> None:
        """Watch until cancelled."""
        threading.Thread(target=self._watch_loop, name="watchdog", daemon=True).start()
        try:
            while True:
                self._turns += 1
                for watched in self._watched:
                    _end_if(watched.stuck())
                await asyncio.sleep(TURN_S)
        finally:
            self._over.set()

    def _watch_loop(self) -> None:
        while not self._over.wait(TURN_S):
            _end_if(self._loop.stuck())


def _end_if(line: str | None) -> None:
    if line is not None:
        end_stuck(line)


def end_stuck(line: str) -> NoReturn:
    """End at once with code 1 and offsets uncommitted, saying why and where every thread stands."""
    faulthandler.dump_traceback_later(LAST_WORDS_S, exit=True)  # whoever is stuck may hold the lock of the log
    log.error("worker is stuck, ending it without a commit", why=line)
    faulthandler.dump_traceback(all_threads=True)
    os._exit(1)
