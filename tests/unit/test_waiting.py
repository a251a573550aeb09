"""Requests that wait for an event: who goes on when, and why."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from schemas.activity import UserActivity
from schemas.recall import RecallRequest
from schemas.records import MAX_HISTORY_ROWS, RecordFormatError, UserRecord, holds_event
from workers.clock import SystemClock
from workers.dependencies import Dependencies
from workers.errors import DependencyUnavailable
from workers.inflight import BatchPolicy, InFlight
from workers.intake import Entry, Intake
from workers.merge import merge
from workers.metrics import Metrics
from workers.pipelines.recall import Incoming
from workers.ports import Clock, UserChange
from workers.runners import Runners
from workers.stores.user_memory import MemoryUserTable
from workers.waiting import WaitingPolicy, WaitingRoom


@dataclass(frozen=True)
class Record:
    topic: str
    partition: int
    offset: int
    timestamp: int


class Table(MemoryUserTable):
    """Notes who was looked up; may fail as adapters fail, or never answer."""

    def __init__(self) -> None:
        super().__init__()
        self.looks: list[list[str]] = []
        self.fails = False
        self.hangs = False

    async def records(self, user_ids: Sequence[str]) -> list[bytes | None]:
        self.looks.append(list(user_ids))
        if self.fails:
            raise DependencyUnavailable("redis", "gone")
        if self.hangs:
            await asyncio.Event().wait()
        return await super().records(user_ids)

    async def happen(self, user: str, event_id: str = "wanted") -> None:
        record = merge(UserRecord(), [an_event(user, event_id)], frozenset()).record.with_token(b"12345678")
        await self.write([UserChange(user, b"", record.encode())])


class Room:
    """A waiting room before an intake whose batches are finished at once; who has come through."""

    def __init__(self, wait_ms: int = 60_000, capacity: int = 1000, clock: Clock | None = None) -> None:
        self.table = Table()
        self.open = True
        self.came: list[str] = []
        self.flight = InFlight(BatchPolicy())
        self.runners = Runners(Intake(SystemClock()), self._answer, self._answer)
        self._metrics = Metrics()
        self._entered = 0
        self._room = WaitingRoom(
            WaitingPolicy(wait_ms, capacity),
            lambda: self.table if self.open else None,
            self.runners,
            clock or SystemClock(),
            Dependencies("recall", self._metrics),
            self._metrics.event_waits,
        )

    async def _answer(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self.came.append(entry.incoming.request.user_id)
            entry.batch.done(entry.record)

    def enter(self, *users: str, timeout_ms: int = 60_000, **timeouts_ms: int) -> None:
        """One poll that brought one request of each; `timeouts_ms` are those of single users."""
        now_ms = SystemClock().now_ms()
        records = [Record("t", 0, self._entered + n, now_ms) for n in range(len(users))]
        self._entered += len(users)
        self.flight.add({("t", 0): records})
        batch = self.flight.take()
        assert batch is not None
        entries = []
        for record, user in zip(records, users, strict=True):
            batch.hold(record)
            left_ms = timeouts_ms.get(user, timeout_ms)
            request = RecallRequest(request_id="r", user_id=user, timeout_ms=left_ms, after_event_id="wanted")
            entries.append(Entry(record, batch, Incoming(request, now_ms)))
        self._room.enter(entries)

    def results(self) -> dict[str, int]:
        samples = next(iter(self._metrics.event_waits.collect())).samples
        return {s.labels["result"]: int(s.value) for s in samples if s.name.endswith("_total")}

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not holds():
                await asyncio.sleep(0.001)


def an_event(user: str, event_id: str, timestamp_ms: int = 1_700_000_000_000) -> UserActivity:
    return UserActivity(event_id=event_id, user_id=user, action="rate", item_id="i", timestamp_ms=timestamp_ms)


async def test_an_event_that_is_known_already_is_found_at_the_first_look() -> None:
    room = Room()
    await room.table.happen("a")
    room.enter("a")
    await room.until(lambda: room.came == ["a"])
    assert (room.table.looks, room.results()) == ([["a"]], {"found": 1})


async def test_a_request_waits_for_its_event_and_for_no_other() -> None:
    room = Room()
    await room.table.happen("b", "another")
    room.enter("a", "b")
    await room.until(lambda: len(room.table.looks) > 3)
    assert room.came == []
    await room.table.happen("a")
    await room.until(lambda: room.came == ["a"])
    looks = len(room.table.looks)
    await room.until(lambda: len(room.table.looks) > looks + 2)
    assert (room.came, room.results()) == (["a"], {"found": 1})
    assert room.table.looks[-1] == ["b"]


async def test_one_look_reads_all_who_wait_each_user_once() -> None:
    room = Room()
    room.enter("a", "b", "a")
    await room.until(lambda: len(room.table.looks) > 1)
    room.enter("c")
    await room.until(lambda: sorted(room.table.looks[-1]) == ["a", "b", "c"])


class Wrong:
    """The machine's clock, which may be set to another time."""

    shift_ms = 0

    def now_ms(self) -> int:
        return SystemClock().now_ms() + self.shift_ms


@pytest.mark.parametrize("shift_ms", [-3_600_000, 3_600_000])
async def test_a_clock_that_is_set_keeps_nobody_waiting(shift_ms: int) -> None:
    clock = Wrong()
    room = Room(wait_ms=200, clock=clock)
    room.enter("a")
    await room.until(lambda: len(room.table.looks) > 0)
    clock.shift_ms = shift_ms
    await room.until(lambda: room.came == ["a"])
    assert room.results() == {"timed_out": 1}


async def test_time_ends_the_waiting() -> None:
    room = Room(wait_ms=30)
    room.enter("a")
    await room.until(lambda: room.came == ["a"])
    assert room.results() == {"timed_out": 1}
    await room.until(lambda: not room.runners._tasks)  # nobody waits: nobody looks


async def test_looks_become_rarer_the_longer_nobody_comes() -> None:
    room = Room(wait_ms=600)
    room.enter("a")
    await room.until(lambda: room.came == ["a"])
    assert 2 <= len(room.table.looks) <= 40, "every 10 ms would be 60"


async def test_the_deadline_ends_it_earlier() -> None:
    room = Room()
    room.runners.intake.service_ms = 100.0
    began_ms = SystemClock().now_ms()
    room.enter("a", timeout_ms=300)
    await room.until(lambda: room.came == ["a"])
    assert room.results() == {"timed_out": 1}
    assert SystemClock().now_ms() - began_ms >= 40, "300 less 50 of margin and two batches"


async def test_no_more_wait_than_there_is_room_for() -> None:
    room = Room(capacity=2)
    room.enter("a", "b", "c", "d")
    room.enter("e")
    await room.until(lambda: len(room.came) == 3)
    assert (sorted(room.came), room.results()) == (["c", "d", "e"], {"full": 3})


@pytest.mark.parametrize("when", ["at once", "later"])
async def test_all_go_on_when_records_cannot_be_read(when: str) -> None:
    room = Room()
    room.table.fails = when == "at once"
    room.enter("a", "b")
    await room.until(lambda: len(room.table.looks) > 0)
    room.table.fails = True
    await room.until(lambda: len(room.came) == 2)
    assert room.results() == {"unavailable": 2}


async def test_a_table_that_never_answers_keeps_nobody_longer_than_its_time() -> None:
    room = Room(wait_ms=100)
    room.table.hangs = True
    room.enter("a")
    await room.until(lambda: room.came == ["a"])
    assert room.results() == {"timed_out": 1}


async def test_a_look_that_hangs_keeps_nobody_who_came_meanwhile_longer_than_their_time() -> None:
    room = Room()
    room.enter("patient")
    await room.until(lambda: len(room.table.looks) > 1)
    room.table.hangs = True
    looks = len(room.table.looks)
    await room.until(lambda: len(room.table.looks) > looks)
    room.enter("b", "c", b=250, c=320)  # one first look for both, which the one with less time ends
    await room.until(lambda: room.came == ["b", "c"])
    assert room.table.looks[looks:] == [["patient"], ["b", "c"]], "the patient one's look is still under way"


async def test_nobody_waits_while_requests_reach_no_table() -> None:
    room = Room()
    room.open = False
    room.enter("a")
    await room.until(lambda: room.came == ["a"])
    assert (room.table.looks, room.results()) == ([], {"unavailable": 1})


async def test_a_record_that_cannot_be_read_is_not_waited_for() -> None:
    room = Room()
    await room.table.write([UserChange("a", b"", b"\xff" * 60)])
    room.enter("a")
    await room.until(lambda: room.came == ["a"])
    assert room.results() == {"unavailable": 1}


async def test_a_drain_waits_for_those_who_wait() -> None:
    room = Room(wait_ms=50)
    room.enter("a")
    room.flight.drop_waiting()
    assert room.flight.unfinished(), "the drain waits for it"
    await room.until(lambda: room.came == ["a"])
    assert not room.flight.unfinished()
    assert room.flight.committable() == {("t", 0): 1}


def test_an_event_that_newer_ones_have_pushed_out_is_not_found() -> None:
    events = [an_event("a", f"e{n}", 1_700_000_000_000 + n) for n in range(MAX_HISTORY_ROWS + 1)]
    data = merge(UserRecord(), events, frozenset()).record.encode()
    assert [holds_event(data, f"e{n}") for n in (0, 1, MAX_HISTORY_ROWS)] == [False, True, True]
    assert not holds_event(None, "e1")
    with pytest.raises(RecordFormatError):
        holds_event(b"\xff" * 60, "e1")
