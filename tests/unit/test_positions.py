"""Where partitions are read from, and when one that was read again is marked as complete."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaTimeoutError

from workers import positions as module
from workers.dependencies import Dependencies
from workers.inflight import BatchPolicy, InFlight
from workers.metrics import Metrics
from workers.positions import Positions
from workers.refill import Refill

PLACE, OTHER = TopicPartition("t", 0), TopicPartition("t", 1)
END = 100


class Engine:
    """A consumer, and aiokafka's inside it, that has polled everything.

    `allowed` is what whoever keeps the effects says before a commit.
    """

    def __init__(self, *assigned: TopicPartition) -> None:
        self.assigned, self.leaders = set(assigned), dict.fromkeys(assigned, 1)
        self.committed: dict[Any, int] = {}
        self.sought: dict[Any, int | str] = {}
        self.allowed, self.marked = True, list[int]()
        self.failing: list[Exception] = []
        self.hangs = False
        self.flight = InFlight(BatchPolicy(max_batch=END))
        self._thread = self
        self._read_offset: dict[Any, int | None] = {}
        self._client = SimpleNamespace(cluster=SimpleNamespace(leader_for_partition=self.leaders.get))
        self._coordinator = SimpleNamespace(fetch_committed_offsets=self.fetch)
        self._fetcher, self._request_timeout_ms = self, 1000
        self.id = "markers"

    def assignment(self) -> set[Any]:
        return set(self.assigned)

    async def fetch(self, _: Any) -> dict[Any, Any]:
        if self.failing:
            raise self.failing.pop()
        return {place: SimpleNamespace(offset=offset) for place, offset in self.committed.items()}

    async def beginning_offsets(self, places: Any) -> dict[Any, int]:
        return dict.fromkeys(places, 0)

    async def end_offsets(self, places: Any, _: int = 0) -> dict[Any, int]:
        assert None not in map(self.leaders.get, places), "there is nobody to ask"
        return dict.fromkeys(places, END)

    async def position(self, _: Any) -> int:
        return END

    def seek(self, place: Any, offset: int) -> None:
        self.sought[place] = offset

    async def seek_to_beginning(self, *places: Any) -> None:
        self.sought |= dict.fromkeys(places, "beginning")
        if self.hangs:
            await asyncio.Event().wait()

    async def seek_wait(self, offsets: dict[Any, int]) -> None:
        self.sought |= offsets

    async def _may_commit(self) -> bool:
        return self.allowed

    async def call_thread(self, method: Any, *arguments: Any) -> Any:
        return await method(*arguments)

    def _ensure_consumer(self) -> Any:
        return self

    def partitions_for_topic(self, _: str) -> set[int]:
        return {0, 1}

    async def open(self, _: int) -> dict[int, str]:
        return {}

    async def mark(self, partition: int, _: str) -> bool:
        self.marked.append(partition)
        return True


def refill_of(engine: Any) -> Refill:
    return Refill(engine, Dependencies("items", Metrics()))


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRY_AGAIN_S", 0.0)
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.0)


@pytest.mark.parametrize("allowed", [True, False])
async def test_a_partition_is_complete_only_in_the_redis_that_took_it(allowed: bool) -> None:
    engine: Any = Engine(PLACE)
    engine.allowed = allowed
    refill = refill_of(engine)
    positions = Positions(engine, refill)
    assert refill.missing() is not None
    assert await positions.settle()
    assert engine.marked == ([0] if allowed else [])
    assert (refill.missing() is None) is allowed
    if not allowed:
        engine.allowed = True
        await positions.settle()
        assert engine.marked == [0], "it is asked again"


async def test_without_a_refill_it_is_what_is_committed_or_the_beginning() -> None:
    engine: Any = Engine(PLACE, OTHER)
    engine.committed = {PLACE: 7, OTHER: -1}
    positions = Positions(engine, None)
    assert await positions.settle()
    assert engine.sought == {PLACE: 7, OTHER: "beginning"}
    assert engine._read_offset == {PLACE: 7, OTHER: None}
    engine.sought.clear()
    assert await positions.settle()
    assert engine.sought == {}, "once"
    positions.put_back()
    assert engine._read_offset == {}
    assert await positions.settle()
    assert engine.sought == {PLACE: 7, OTHER: "beginning"}, "once more for another assignment"


async def test_what_is_committed_behind_the_end_is_of_another_log() -> None:
    engine: Any = Engine(PLACE, OTHER)
    engine.committed = {PLACE: END + 1, OTHER: END}
    assert await Positions(engine, None).settle()
    assert engine.sought == {PLACE: "beginning", OTHER: END}


@pytest.mark.parametrize("refilled", [True, False])
async def test_it_is_asked_until_there_is_an_answer(refilled: bool) -> None:
    engine: Any = Engine(PLACE)
    engine.committed = {PLACE: 7}
    engine.failing = [KafkaTimeoutError(), TimeoutError()]
    positions = Positions(engine, refill_of(engine) if refilled else None)
    for _ in range(2):
        assert not await positions.settle()
        assert not positions.placed
    assert await positions.settle()
    assert positions.placed


async def test_an_answer_for_an_assignment_that_is_over_moves_nothing() -> None:
    engine: Any = Engine(PLACE)
    positions = Positions(engine, None)

    async def overtaken(_: Any) -> dict[Any, Any]:
        positions.put_back()
        return {PLACE: SimpleNamespace(offset=7)}

    asked, engine._coordinator.fetch_committed_offsets = engine._coordinator.fetch_committed_offsets, overtaken
    assert not await positions.settle()
    assert (engine.sought, engine._read_offset, positions.placed) == ({}, {}, False)
    engine._coordinator.fetch_committed_offsets, engine.committed = asked, {PLACE: 8}
    assert await positions.settle()
    assert engine.sought == {PLACE: 8}


async def test_a_partition_without_a_leader_keeps_no_other_one_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POSITION_WITHIN_S", 0.01)
    engine: Any = Engine(PLACE, OTHER)
    engine.leaders[OTHER], engine.hangs = None, True
    engine.committed = {PLACE: 7, OTHER: 9}
    plain = Positions(engine, None)
    assert await plain.settle()
    assert engine.sought == {PLACE: 7, OTHER: 9}
    engine.committed = {PLACE: 7}
    plain.put_back()
    assert await plain.settle()
    assert engine.sought == {PLACE: 7, OTHER: "beginning"}, "which aiokafka does once it can"

    refill = refill_of(engine)
    positions = Positions(engine, refill)
    assert await positions.settle()
    assert engine.sought[PLACE] == 0, "Redis has nothing"
    assert (positions.may_deliver(PLACE), positions.may_deliver(OTHER)) == (True, False)
    assert refill.missing() == "where its partitions begin"
    engine.leaders[OTHER] = 2
    assert await positions.settle()
    assert engine.sought[OTHER] == 0
    assert positions.may_deliver(OTHER)
    await positions.settle()
    assert refill.missing() is None
    assert engine.marked == [0, 1]


async def test_what_was_committed_in_a_longer_log_is_found_out_once_there_is_a_leader() -> None:
    """Else all of the new one would count as read again, and its dead letters as written."""
    engine: Any = Engine(PLACE)
    engine.leaders[PLACE], engine.committed = None, {PLACE: END + 1}
    positions = Positions(engine, refill_of(engine))
    assert not await positions.settle()
    engine.leaders[PLACE] = 1
    assert await positions.settle()
    assert engine.flight.repeats_before == {}
    engine.committed = {PLACE: END}
    positions.put_back()
    assert await positions.settle()
    assert engine.flight.repeats_before == {("t", 0): END}


async def test_a_broker_that_does_not_answer_keeps_no_other_ones_partitions_waiting() -> None:
    engine: Any = Engine(PLACE, OTHER)
    engine.leaders[OTHER] = 2
    ends, silent = engine.beginning_offsets, True

    async def answers(places: Any) -> dict[Any, int]:
        if silent and OTHER in places:
            raise KafkaTimeoutError
        return dict(await ends(places))

    engine.beginning_offsets = answers
    refill = refill_of(engine)
    positions = Positions(engine, refill)
    assert await positions.settle()
    assert (positions.may_deliver(PLACE), positions.may_deliver(OTHER)) == (True, False)
    assert refill.missing() == "where its partitions begin"
    silent = False
    assert await positions.settle()
    assert positions.may_deliver(OTHER)


async def test_nothing_is_read_while_no_partition_has_a_leader() -> None:
    engine: Any = Engine(PLACE)
    engine.leaders[PLACE] = -1
    positions = Positions(engine, refill_of(engine))
    assert not await positions.settle()
    engine.leaders[PLACE] = 1
    assert await positions.settle()
