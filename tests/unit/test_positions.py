"""When a partition that was read again is marked as complete."""

from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition

from workers.dependencies import Dependencies
from workers.inflight import BatchPolicy, InFlight
from workers.metrics import Metrics
from workers.positions import Positions
from workers.refill import Refill

PLACE = TopicPartition("t", 0)
END = 100


class Engine:
    """A consumer that has polled everything; `allowed` is what whoever keeps the effects says before a commit."""

    def __init__(self) -> None:
        self.allowed, self.marked = True, []
        self.flight = InFlight(BatchPolicy(max_batch=END))
        self._thread = self
        self._read_offset = {PLACE: None}
        self.id = "markers"

    def assignment(self) -> set[Any]:
        return {PLACE}

    async def _may_commit(self) -> bool:
        return self.allowed

    async def call_thread(self, method: Any, partitions: Any = ()) -> Any:
        return {PLACE: END} if partitions else None

    async def seek_wait(self, offsets: Any) -> None:
        assert offsets == {PLACE: 0}

    def _ensure_consumer(self) -> Any:
        return SimpleNamespace(partitions_for_topic=lambda _: {0})

    async def open(self, _: int) -> dict[int, str]:
        return {}

    async def mark(self, partition: int, _: str) -> bool:
        self.marked.append(partition)
        return True


@pytest.mark.parametrize("allowed", [True, False])
async def test_a_partition_is_complete_only_in_the_redis_that_took_it(
    allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: Any = Engine()
    engine.allowed = allowed
    refill = Refill(engine, Dependencies("items", Metrics()))

    async def first_and_last(*_: object) -> Any:
        return {PLACE: 0}, {PLACE: END}

    monkeypatch.setattr(engine, "call_thread", first_and_last)
    positions = Positions(engine, refill)
    assert await positions.settle()
    monkeypatch.undo()
    assert refill.missing() is not None
    await positions.settle()
    assert engine.marked == ([0] if allowed else [])
    assert (refill.missing() is None) is allowed
    if not allowed:
        engine.allowed, positions._look_at_s = True, 0.0
        await positions.settle()
        assert engine.marked == [0], "it is asked again"
