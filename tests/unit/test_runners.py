"""What leaves the intake: batches while there are slots, refusals even when there are none, nothing after a drain."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from schemas.recall import RecallRequest
from workers.clock import SystemClock
from workers.inflight import BatchPolicy, InFlight
from workers.intake import Entry, Intake, IntakePolicy
from workers.pipelines.recall import Incoming
from workers.ports import Clock
from workers.runners import Runners

POLICY = IntakePolicy(max_batch=4, margin_ms=0)


@dataclass(frozen=True)
class Record:
    topic: str
    partition: int
    offset: int
    timestamp: int


class Stopped:
    """A clock that a test moves on."""

    ms = 1_000_000

    def now_ms(self) -> int:
        return self.ms


class Line:
    """An intake and its runners; batches are held up until `go` is set."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.flight = InFlight(BatchPolicy())
        self.clock = clock or SystemClock()
        self.intake = Intake(self.clock, POLICY)
        self.runners = Runners(self.intake, self._answer, self._refuse)
        self.go = asyncio.Event()
        self.begun: list[list[int]] = []
        self.answered: list[int] = []
        self.refused: list[int] = []
        self._polled = 0

    def poll(self, count: int, timeout_ms: int = 60_000) -> list[Entry]:
        now_ms = self.clock.now_ms()
        records = [Record("t", 0, self._polled + n, now_ms) for n in range(count)]
        self._polled += count
        self.flight.add({("t", 0): records})
        batch = self.flight.take()
        assert batch is not None
        request = RecallRequest(request_id="r", user_id="u", timeout_ms=timeout_ms)
        for record in records:
            batch.hold(record)
        return [Entry(record, batch, Incoming(request, now_ms)) for record in records]

    async def _answer(self, entries: Sequence[Entry]) -> None:
        self.begun.append([entry.record.offset for entry in entries])
        await self.go.wait()
        self._finish(entries, self.answered)

    async def _refuse(self, entries: Sequence[Entry]) -> None:
        self._finish(entries, self.refused)

    def _finish(self, entries: Sequence[Entry], into: list[int]) -> None:
        for entry in entries:
            into.append(entry.record.offset)
            entry.batch.done(entry.record)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.001)


async def test_two_batches_run_and_the_next_begins_when_one_ends() -> None:
    line = Line()
    line.runners.put(line.poll(10))
    await until(lambda: len(line.begun) == 2)
    assert (line.begun, line.intake.running, len(line.intake)) == ([[0, 1, 2, 3], [4, 5, 6, 7]], 2, 2)
    line.go.set()
    await until(lambda: len(line.answered) == 10)
    assert (line.begun[2], line.intake.running) == ([8, 9], 0)
    assert line.intake.service_ms > 0
    assert line.flight.committable() == {("t", 0): 10}


async def test_who_cannot_be_in_time_is_refused_although_no_batch_ever_ends() -> None:
    line = Line(clock := Stopped())
    line.runners.put(line.poll(20, timeout_ms=200))
    await until(lambda: len(line.begun) == 2)
    clock.ms += 201
    await until(lambda: len(line.refused) == 12)
    assert (sorted(line.refused), line.answered) == (list(range(8, 20)), [])
    assert len(line.intake) == 0


async def test_what_a_drain_has_given_up_is_left_alone() -> None:
    line = Line()
    line.runners.put(line.poll(12))
    await until(lambda: len(line.begun) == 2)
    line.flight.drop_waiting()
    assert line.flight.unfinished()
    line.go.set()
    await until(lambda: line.intake.running == 0)
    assert sorted(line.answered) == list(range(8))
    assert not line.flight.unfinished()
    assert line.flight.committable() == {("t", 0): 8}
    line.flight = InFlight(BatchPolicy())
    line.runners.put(line.poll(2))
    await until(lambda: len(line.answered) == 10)
