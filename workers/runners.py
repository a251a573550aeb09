"""Tasks that take batches from the intake for as long as requests wait, and tasks that refuse what it sheds."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from workers.ending import or_end_process
from workers.intake import Entry, Intake

LOOK_EVERY_S = 0.02  # for who cannot be in time any more, while every slot is taken by slow batches
REFUSED_AT_ONCE = 256

Work = Callable[[Sequence[Entry]], Awaitable[None]]


class Runners:
    """Runs `answer` on batches of the intake and `refuse` on what it sheds; both must finish each record.

    What a drain has given up is left alone: it will be polled again. An exception ends the process without a commit.
    """

    def __init__(self, intake: Intake, answer: Work, refuse: Work) -> None:
        self.intake = intake
        self._answer = answer
        self._refuse = refuse
        self._tasks: set[asyncio.Task[None]] = set()
        self._watch: asyncio.Task[None] | None = None

    def put(self, entries: Sequence[Entry]) -> None:
        """Let them wait for their turn, which may be now."""
        self.intake.put(entries)
        self.pump()

    def pump(self) -> None:
        """Have refused who cannot be in time any more, and batches answered while there are slots."""
        self._shed()
        while self.intake.has_slot and (entries := self.intake.take()):
            self.spawn(self._run(entries))
        if len(self.intake) and (self._watch is None or self._watch.done()):
            self._watch = self.spawn(self._keep_shedding())

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that is kept until it ends; if it raises, the process ends without a commit."""
        task = asyncio.create_task(or_end_process(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run(self, entries: list[Entry]) -> None:
        """One batch after another, until nobody waits."""
        while entries:
            began_s = time.perf_counter()
            started = _started(entries)
            if started:
                await self._answer(started)
            self.intake.finished((time.perf_counter() - began_s) * 1000 if started else None)
            self._shed()
            entries = self.intake.take()

    def _shed(self) -> None:
        hopeless = self.intake.shed()
        for start in range(0, len(hopeless), REFUSED_AT_ONCE):
            self.spawn(self._give_up(hopeless[start : start + REFUSED_AT_ONCE]))

    async def _give_up(self, entries: list[Entry]) -> None:
        if started := _started(entries):
            await self._refuse(started)
        self.intake.refused(len(entries))

    async def _keep_shedding(self) -> None:
        while len(self.intake):
            await asyncio.sleep(LOOK_EVERY_S)
            self._shed()


def _started(entries: Sequence[Entry]) -> list[Entry]:
    """Those that are still this worker's."""
    return [entry for entry in entries if entry.batch.start(entry.record)]
