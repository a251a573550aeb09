"""Gives events up: a dead letter for each, at most so many a minute. At the cap the rest is held until a resume.

What is held is not committed, nor is anything behind it; a drain does not wait for it, and it comes again elsewhere.
So is what a partition of the dead-letter topic does not take: nothing but its own record waits for a letter.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import structlog

from schemas.codec import DecodeError
from workers.dead_letters import dead_letter
from workers.dependencies import SAY_EVERY_S, Dependencies
from workers.errors import InvalidInput
from workers.inflight import Backlog, Batch
from workers.metrics import Metrics
from workers.outbox import MAX_OWED_BYTES, Outbox
from workers.pause import Pause
from workers.ports import Clock
from workers.publisher import Outgoing, Told, record_bytes
from workers.settings import AgentKind, Settings

WINDOW_S = 60.0
LOOK_EVERY_S = 1.0
MAX_HELD_BYTES = 64_000_000

Problem = DecodeError | InvalidInput
Problems = Sequence[tuple[Any, Problem]]
"""Records, each with why it cannot be processed."""
Send = Callable[[Sequence[Outgoing], Told], Awaitable[None]]

log = structlog.get_logger()


class LetterCap:
    """How many letters may be written now: at most `per_minute` in any minute, 0 = without end. Pure."""

    def __init__(self, per_minute: int, now_s: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._now_s = now_s
        self._taken: deque[tuple[float, int]] = deque()
        self._sum = 0

    def take(self, wanted: int) -> int:
        """As many of them as may be written; they count from now on."""
        if not self._per_minute:
            return wanted
        now_s = self._now_s()
        while self._taken and now_s - self._taken[0][0] >= WINDOW_S:
            self._sum -= self._taken.popleft()[1]
        allowed = min(wanted, self._per_minute - self._sum)
        if allowed:
            self._taken.append((now_s, allowed))
            self._sum += allowed
        return allowed

    def reset(self) -> None:
        """Begin anew."""
        self._taken.clear()
        self._sum = 0


class GivingUp:
    """Writes the dead letters of one worker; `send` must send them for sure, and need not wait for it."""

    def __init__(
        self,
        kind: AgentKind,
        settings: Settings,
        send: Send,
        metrics: Metrics,
        dependencies: Dependencies,
        clock: Clock,
    ) -> None:
        self._kind = kind
        self._send_letters = send
        self._metrics = metrics
        self._clock = clock
        self._cap = LetterCap(settings.dead_letters_per_minute)
        self.pause = Pause(kind, settings, metrics, dependencies, self._cap.reset)
        self.held_bytes = 0
        self._unsaid: Counter[str] = Counter()  # dead letters by code, since the last line about them
        self._say_again_s = 0.0

    async def write(self, batch: Batch, problems: Problems) -> Problems:
        """Write as many as the cap allows and hold the records of the others; returns those to `write_later`."""
        if not problems:
            return ()
        for _, problem in problems:  # a traceback keeps its frames, and they whatever was read beside what has to wait
            problem.__traceback__ = problem.__cause__ = problem.__context__ = None
        allowed, held = self._allowed(problems)
        await self._send(batch, allowed)
        for record, _ in problems:
            batch.hold(record)  # whose letter is not written yet
        self.held_bytes += _size_bytes(held)
        return held

    async def write_later(self, batch: Batch, held: Problems) -> None:
        """After the pause, write and finish records that their batch holds; what a drain gave up is left alone."""
        while held:
            await self._pause_is_over(batch)
            if batch.given_up:
                self.held_bytes -= _size_bytes(held)
                return
            now, later = self._allowed(held)
            started = [(record, problem) for record, problem in now if batch.start(record)]
            await self._send(batch, started)
            self.held_bytes -= _size_bytes(now)
            held = later

    async def _pause_is_over(self, batch: Batch) -> None:
        """Or the batch is given up, as a rebalance does."""
        while self.pause.on and not batch.given_up:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.pause.over(), LOOK_EVERY_S)

    async def write_or_leave_out(self, batch: Batch, record: Any, problem: Problem) -> None:
        """For an event that was answered: a letter that the cap does not allow is left out."""
        if self._cap.take(1):
            await self._send(batch, [(record, problem)])
        else:
            batch.done(record)

    def _allowed(self, problems: Problems) -> tuple[Problems, Problems]:
        """Those that may be written now, and those that wait; where some do, the pause begins."""
        allowed = 0 if self.pause.on else self._cap.take(len(problems))
        if allowed < len(problems):
            self.pause.begin(str(problems[allowed][1].code))
        return problems[:allowed], problems[allowed:]

    async def _send(self, batch: Batch, problems: Problems) -> None:
        """Each record is finished when its own letter is written."""
        now_ms = self._clock.now_ms()
        left = dict(enumerate(problems))

        def told(positions: Sequence[int], _: bool) -> None:
            written = [left.pop(position) for position in positions]
            for record, _problem in written:
                batch.done(record)
            self._count(written)

        await self._send_letters(
            [
                dead_letter(record, stage=self._kind, code=str(problem.code), message=str(problem), now_ms=now_ms)
                for record, problem in problems
            ],
            told,
        )
        for record, _ in left.values():
            batch.owe(record)

    def _count(self, written: Problems) -> None:
        codes = Counter(str(problem.code) for _, problem in written)
        for code, letters_of_code in codes.items():
            self._metrics.dead_letters.labels(self._kind, code).inc(letters_of_code)
        self._say(codes, *written[0])

    def _say(self, codes: Counter[str], record: Any, problem: Problem) -> None:
        """One line at first and one every ten seconds, however many come; each tells of one letter in full."""
        self._unsaid += codes
        if (now_s := time.monotonic()) >= self._say_again_s:
            place = {"partition": record.partition, "offset": record.offset}
            log.warning("dead letters", codes=dict(self._unsaid), example=str(problem), **place)
            self._unsaid.clear()
            self._say_again_s = now_s + SAY_EVERY_S


class Gate:
    """A backlog that wants no poll during a pause, or none once `read_on` records were taken in it.

    Nor while too much is owed to partitions that take nothing.
    """

    def __init__(self, giving_up: GivingUp, outbox: Outbox, inner: Backlog | None = None, read_on: int = 0) -> None:
        self._giving_up = giving_up
        self._outbox = outbox
        self._inner = inner
        self._read_on = read_on
        self._taken = 0
        self._last: Batch | None = None

    @property
    def running(self) -> int:
        """Batches of the agent's own making."""
        return 0 if self._inner is None else self._inner.running

    def wants_poll(self) -> bool:
        """Whether more may be taken, and is of use."""
        paused = self._giving_up.pause.on
        if not paused or (self._last is not None and self._last.over):  # then it is read again
            self._taken = 0
        elif self._taken >= self._read_on or self._giving_up.held_bytes > MAX_HELD_BYTES:
            return False
        if self._outbox.owed_bytes > MAX_OWED_BYTES:
            return False
        return self._inner is None or self._inner.wants_poll()

    def took(self, batch: Batch) -> None:
        """One more has come."""
        self._taken += len(batch.records)
        self._last = batch


def _size_bytes(problems: Problems) -> int:
    return sum(record_bytes(record) for record, _ in problems)
