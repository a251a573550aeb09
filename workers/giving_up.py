"""Gives events up: a dead letter for each, at most so many a minute. At the cap the rest is held until a resume.

What is held is not committed, nor is anything behind it; a drain does not wait for it, and it comes again elsewhere.
"""

import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog

from schemas.codec import DecodeError
from workers.dead_letters import dead_letter
from workers.dependencies import SAY_EVERY_S, Dependencies
from workers.errors import InvalidInput
from workers.inflight import Backlog, Batch
from workers.metrics import Metrics
from workers.pause import Pause
from workers.ports import Clock
from workers.publisher import Outgoing, header_bytes
from workers.settings import AgentKind, Settings

WINDOW_S = 60.0
MAX_HELD_BYTES = 64_000_000

Problem = DecodeError | InvalidInput
Problems = Sequence[tuple[Any, Problem]]
"""Records, each with why it cannot be processed."""
Publish = Callable[[Sequence[Outgoing]], Awaitable[object]]

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
    """Writes the dead letters of one worker; `publish` must send them for sure, however long that takes."""

    def __init__(
        self,
        kind: AgentKind,
        settings: Settings,
        publish: Publish,
        metrics: Metrics,
        dependencies: Dependencies,
        clock: Clock,
    ) -> None:
        self._kind = kind
        self._publish = publish
        self._metrics = metrics
        self._clock = clock
        self._cap = LetterCap(settings.dead_letters_per_minute)
        self.pause = Pause(kind, settings, metrics, dependencies, self._cap.reset)
        self.held_bytes = 0
        self._unsaid: Counter[str] = Counter()  # dead letters by code, since the last line about them
        self._say_again_s = 0.0

    async def write(self, problems: Problems) -> Problems:
        """Write as many as the cap allows; returns the rest: hold their records, and `write_later`."""
        if not problems:
            return ()
        allowed, held = self._allowed(problems)
        await self._send(allowed)
        self.held_bytes += _size_bytes(held)
        for _, problem in held:  # a traceback keeps its frames, and they whatever was read beside what is held
            problem.__traceback__ = problem.__cause__ = problem.__context__ = None
        return held

    async def write_later(self, batch: Batch, held: Problems) -> None:
        """After the pause, write and finish records that their batch holds; what a drain gave up is left alone."""
        while held:
            await self.pause.over()
            now, later = self._allowed(held)
            started = [(record, problem) for record, problem in now if batch.start(record)]
            await self._send(started)
            for record, _ in started:
                batch.done(record)
            self.held_bytes -= _size_bytes(now)
            held = later

    async def write_some(self, problems: Problems) -> None:
        """For events that were answered: letters that the cap does not allow are left out."""
        if problems:
            await self._send(problems[: self._cap.take(len(problems))])

    def _allowed(self, problems: Problems) -> tuple[Problems, Problems]:
        """Those that may be written now, and those that wait; where some do, the pause begins."""
        allowed = 0 if self.pause.on else self._cap.take(len(problems))
        if allowed < len(problems):
            self.pause.begin(str(problems[allowed][1].code))
        return problems[:allowed], problems[allowed:]

    async def _send(self, problems: Problems) -> None:
        if not problems:
            return
        now_ms = self._clock.now_ms()
        await self._publish(
            [
                dead_letter(record, stage=self._kind, code=str(problem.code), message=str(problem), now_ms=now_ms)
                for record, problem in problems
            ]
        )
        codes = Counter(str(problem.code) for _, problem in problems)
        for code, letters_of_code in codes.items():
            self._metrics.dead_letters.labels(self._kind, code).inc(letters_of_code)
        self._say(codes, *problems[0])

    def _say(self, codes: Counter[str], record: Any, problem: Problem) -> None:
        """One line at first and one every ten seconds, however many come; each tells of one letter in full."""
        self._unsaid += codes
        if (now_s := time.monotonic()) >= self._say_again_s:
            place = {"partition": record.partition, "offset": record.offset}
            log.warning("dead letters", codes=dict(self._unsaid), example=str(problem), **place)
            self._unsaid.clear()
            self._say_again_s = now_s + SAY_EVERY_S


class Gate:
    """A backlog that wants no poll during a pause, or none once `read_on` records were taken in it."""

    def __init__(self, giving_up: GivingUp, inner: Backlog | None = None, read_on: int = 0) -> None:
        self._giving_up = giving_up
        self._inner = inner
        self._read_on = read_on
        self._taken = 0

    @property
    def running(self) -> int:
        """Batches of the agent's own making."""
        return 0 if self._inner is None else self._inner.running

    def wants_poll(self) -> bool:
        """Whether more may be taken, and is of use."""
        paused = self._giving_up.pause.on
        if not paused:
            self._taken = 0
        elif self._taken >= self._read_on or self._giving_up.held_bytes > MAX_HELD_BYTES:
            return False
        return self._inner is None or self._inner.wants_poll()

    def took(self, records: int) -> None:
        """So many records came."""
        self._taken += records


def _size_bytes(problems: Problems) -> int:
    return sum(
        len(record.key or b"") + len(record.value or b"") + sum(header_bytes(*header) for header in record.headers)
        for record, _ in problems
    )
