"""A partition that takes nothing: the others go on, nothing is sent twice, and it has everything once it is back."""

import asyncio
import gc
import time
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
from aiokafka.errors import NotEnoughReplicasError
from aiokafka.structs import ConsumerRecord

from schemas import codec
from schemas.codec import DecodeError, ErrorCode
from schemas.recall import CandidateList, Reason, RecallRequest, Status
from tests.leaders import Leaders, leading, until
from workers import outbox, retry
from workers.agents import Context, EventAgent, RecallAgent
from workers.clock import SystemClock
from workers.dependencies import Dependencies
from workers.inflight import BatchPolicy, InFlight
from workers.metrics import Metrics
from workers.outbox import PATIENCE_S, Outbox
from workers.pipelines.admission import Incoming, without_items
from workers.publisher import Outgoing, Publisher
from workers.settings import Settings

ANSWERS, REQUESTS, LETTERS, ACTIVITY = "recall-candidates", "recall-requests", "recall-dead-letters", "user-activity"
STUCK = (ANSWERS, 1)


def outgoing(name: str, *partitions: int) -> list[Outgoing]:
    return [Outgoing(b"u", f"{name}.{partition}".encode(), (), partition) for partition in partitions]


def no_matter(positions: Sequence[int], acknowledged: bool) -> None:
    """For who asks the partitions."""


async def test_one_partition_without_a_leader_delays_no_message_to_the_others() -> None:
    async with leading() as (leaders, publisher):
        leaders.leaderless = {STUCK}
        sends = [
            asyncio.create_task(publisher.send(ANSWERS, outgoing(name, *partitions)))
            for name, partitions in (("a", (0, 1, 2)), ("b", (1, 0, 2, 3)))
        ]
        await until(lambda: len(leaders.taken) == 5)
        leaders.leaderless.clear()
        assert await asyncio.gather(*sends) == [[], []]
    assert leaders.values(ANSWERS, 1) == [b"a.1", b"b.1"]


async def test_whoever_sends_is_kept_for_half_a_second_at_most_and_the_next_not_at_all() -> None:
    async with leading() as (leaders, publisher):
        leaders.leaderless = {STUCK}
        box = Outbox(publisher, Dependencies("recall", Metrics()))
        acknowledged: list[int] = []
        began_s = time.monotonic()
        await box.send(ANSWERS, outgoing("first", 0, 1, 2), lambda positions, _: acknowledged.extend(positions))
        assert PATIENCE_S <= time.monotonic() - began_s < 20
        assert sorted(acknowledged) == [0, 2]
        began_s = time.monotonic()
        for n in range(100):
            await box.send(ANSWERS, outgoing(f"{n}", 0, 1), no_matter)
        assert time.monotonic() - began_s < 100 * PATIENCE_S / 2
        assert box.owed_bytes >= 101 * 64
        leaders.leaderless.clear()
        await until(lambda: not box.owed_bytes)
        assert sorted(acknowledged) == [0, 1, 2]
        assert leaders.values(ANSWERS, 1) == [b"first.1", *(b"%d.1" % n for n in range(100))], "once, and in order"
        await box.send(ANSWERS, outgoing("last", 1), no_matter)
        assert leaders.values(ANSWERS, 1)[-1] == b"last.1", "nobody is late any more: it was waited for"


async def test_what_the_producer_has_taken_is_not_sent_again_by_whoever_tries_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outbox, "SAY_EVERY_S", 0.02)
    async with leading() as (leaders, publisher):
        leaders.leaderless = {STUCK}
        dependencies = Dependencies("recall", Metrics())
        box = Outbox(publisher, dependencies)
        await box.send(ANSWERS, outgoing("a", 1, 0), no_matter)
        await until(lambda: dependencies.missing() is not None)
        leaders.leaderless.clear()
        await until(lambda: not box.owed_bytes)
        await until(lambda: dependencies.missing() is None)
    assert sorted(leaders.values(ANSWERS)) == [b"a.0", b"a.1"]


async def test_a_partition_that_is_back_has_everything_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it was away: pauses between tries have grown meanwhile."""
    monkeypatch.setattr(outbox, "SAY_EVERY_S", 0.02)
    monkeypatch.setattr(retry, "FIRST_DELAY_S", 3600.0)
    async with leading() as (leaders, publisher):
        leaders.leaderless = {STUCK}
        dependencies = Dependencies("recall", Metrics())
        box = Outbox(publisher, dependencies)
        for name in ("a", "b", "c"):
            await box.send(ANSWERS, outgoing(name, 1), no_matter)
        await until(lambda: dependencies.missing() is not None)
        leaders.leaderless.clear()
        await until(lambda: not box.owed_bytes)
    assert leaders.values(ANSWERS, 1) == [b"a.1", b"b.1", b"c.1"]


async def test_what_is_refused_is_sent_again_and_nothing_else() -> None:
    async with leading() as (leaders, publisher):
        leaders.refuse_once = {STUCK: NotEnoughReplicasError()}
        await Outbox(publisher, Dependencies("recall", Metrics())).send_all(ANSWERS, outgoing("a", 0, 1, 2))
    assert sorted(leaders.values(ANSWERS)) == [b"a.0", b"a.1", b"a.2"]


class Worker:
    """A recall agent whose pipeline knows one answer; a partition of requests has its answers in that of its number."""

    def __init__(self, publisher: Publisher, kind: Any = "recall") -> None:
        metrics, settings = Metrics(), Settings(redis_durability_ms=0)
        self.context = Context(kind, settings, publisher, metrics, Dependencies(kind, metrics), SystemClock())
        self.flight = InFlight(BatchPolicy(max_batch=1024, in_flight=1))
        self.agent: Any = RecallAgent(self.context, self, lambda: 4)
        self._next: dict[int, int] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self, batch: Sequence[Incoming]) -> list[CandidateList]:
        return [without_items(each, 0, Status.DEGRADED, Reason.INDEX_UNAVAILABLE, None) for each in batch]

    def poll(self, topic: str, values: dict[int, list[bytes]]) -> None:
        polled: dict[tuple[str, int], list[Any]] = {}
        for partition, of_partition in values.items():
            start = self._next.get(partition, 0)
            self._next[partition] = start + len(of_partition)
            polled[topic, partition] = [
                ConsumerRecord(topic, partition, start + n, SystemClock().now_ms(), 1, b"u", value, None, 1, 1, ())
                for n, value in enumerate(of_partition)
            ]
        self.flight.add(polled)
        batch = self.flight.take()
        assert batch is not None, "the slot is free"
        batch.started = True
        self._tasks.append(asyncio.create_task(self.agent.handle(batch)))

    def committed(self, topic: str) -> dict[int, int]:
        return {partition: offset for (t, partition), offset in self.flight.committable().items() if t == topic}


def request(name: str) -> bytes:
    return codec.encode_event(RecallRequest(request_id=name, user_id="u", timeout_ms=1000))


def ids(leaders: Leaders, *partitions: int) -> list[str]:
    return [codec.decode_candidates(value).request_id for value in leaders.values(ANSWERS, *partitions)]


async def test_requests_of_other_partitions_are_answered_while_one_takes_no_answers() -> None:
    async with leading() as (leaders, publisher):
        leaders.leaderless = {STUCK}
        worker = Worker(publisher)
        rejected = b'{"request_id": "rejected", "user_id": "u", "k": "no"}'
        worker.poll(REQUESTS, {p: [request(f"first.{p}")] for p in range(4)} | {1: [rejected, request("first.1")]})
        await until(lambda: len(leaders.taken) == 3)
        for n in range(40):
            await until(worker.flight.wants_poll)
            worker.poll(REQUESTS, {p: [request(f"{n}.{p}")] for p in range(4)})
        await until(lambda: len(ids(leaders)) == 3 * 41)
        await until(lambda: worker.committed(REQUESTS) == {0: 41, 2: 41, 3: 41})
        await until(lambda: worker.agent.backlog.running == 0)
        assert worker.agent.backlog.service_ms < PATIENCE_S * 1000, "no request is shed for it"
        assert worker.flight.counts[2] == 42

        assert worker.flight.unfinished()
        assert not worker.flight.unfinished(owed=False), "a drain would wait for what nobody can finish"

        leaders.leaderless.clear()
        await until(lambda: worker.committed(REQUESTS) == {0: 41, 1: 42, 2: 41, 3: 41})
        names = ids(leaders)
        assert len(names) == len(set(names)) == 4 * 41 + 1, "each once"
        assert set(ids(leaders, 1)) == {"rejected", "first.1", *(f"{n}.1" for n in range(40))}
        assert not worker.flight.unfinished()


async def test_nothing_more_is_polled_when_too_much_is_owed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.giving_up.MAX_OWED_BYTES", 2000)
    async with leading() as (leaders, publisher):
        leaders.leaderless = {STUCK}
        worker = Worker(publisher)
        worker.poll(REQUESTS, {1: [request(f"{n}") for n in range(40)]})
        await until(lambda: worker.context.outbox.owed_bytes > 2000)
        assert not worker.agent.gate.wants_poll()
        leaders.leaderless.clear()
        await until(lambda: worker.committed(REQUESTS) == {1: 40})
        assert worker.agent.gate.wants_poll()


async def test_what_is_owed_counts_with_the_requests_that_are_kept_for_it() -> None:
    async with leading() as (leaders, publisher):
        leaders.leaderless = {STUCK}
        worker = Worker(publisher)
        large = RecallRequest(request_id="r", user_id="u", timeout_ms=1000, context={"text": "x" * 100_000})
        worker.poll(REQUESTS, {1: [codec.encode_event(large)] * 10})
        await until(lambda: worker.context.outbox.owed_bytes > 0)
        assert worker.context.outbox.owed_bytes > 1_000_000


def test_nothing_more_is_polled_when_too_much_is_held_back() -> None:
    flight = InFlight(BatchPolicy(max_batch=4, in_flight=9, max_held_back=6))
    records: list[Any] = [ConsumerRecord("t", 0, n, n, 1, b"u", b"", None, 1, 1, ()) for n in range(8)]
    flight.add({("t", 0): records})
    first, second = flight.take(), flight.take()
    assert first is not None
    assert second is not None
    second.done()
    assert not flight.wants_poll()
    first.done()
    assert flight.wants_poll()
    assert flight.counts[2] == 0


class Result:
    """Of a pipeline that finds no fault."""

    def __init__(self, events: Sequence[Any]) -> None:
        self.errors = [None] * len(events)
        self.outcomes: dict[str, int] = {}


def decode(record: Any) -> Any:
    if record.value.startswith(b"bad"):
        raise DecodeError(ErrorCode.NOT_JSON, "bad")
    return record


async def test_a_letter_that_its_partition_does_not_take_holds_back_its_own_record_alone() -> None:
    async with leading() as (leaders, publisher):
        leaders.leaderless = {(LETTERS, n) for n in range(4)}
        worker = Worker(publisher, "activity")

        async def run(events: Sequence[Any], spans: Any) -> Result:
            return Result(events)

        worker.agent = EventAgent(worker.context, decode, run)
        worker.poll(ACTIVITY, {0: [b"good", b"bad 1", b"good"], 1: [b"good"]})
        await until(worker.flight.wants_poll)
        worker.poll(ACTIVITY, {0: [b"good"], 1: [b"good", b"good"]})
        await until(lambda: worker.committed(ACTIVITY) == {0: 1, 1: 3})
        leaders.leaderless.clear()
        await until(lambda: worker.committed(ACTIVITY) == {0: 4, 1: 3})
    assert leaders.values(LETTERS) == [b"bad 1"]


async def test_what_is_acknowledged_is_told_while_the_rest_has_to_wait() -> None:
    async with leading() as (leaders, publisher):
        leaders.most = 3
        box = Outbox(publisher, Dependencies("recall", Metrics()))
        told: list[int] = []
        large = [Outgoing(b"u", b"x" * 250_000, (), 1)] * 10  # each fills a record batch
        await box.send(ANSWERS, large, lambda positions, _: told.extend(positions))
        await until(lambda: told == [0, 1, 2])
        assert box.owed_bytes > 7 * 250_000
        leaders.most = 10
        await until(lambda: told == [*range(10)])
        assert box.owed_bytes == 0


async def test_a_letter_that_has_to_wait_keeps_nothing_that_was_read_beside_it() -> None:
    """The error knows where it was raised, and that is among all others of its batch."""

    async def run(events: Any, _: Any) -> Any:
        return Result(events)

    def read(each: Any) -> Any:
        if each.value == b"bad":
            raise DecodeError(ErrorCode.NOT_JSON, "bad")
        return each.offset

    async with leading() as (leaders, publisher):
        leaders.leaderless = {(LETTERS, n) for n in range(4)}
        metrics = Metrics()
        dependencies = Dependencies("activity", metrics)
        context = Context("activity", Settings(), publisher, metrics, dependencies, SystemClock())
        values = [b"good", b"bad", b"good"]
        records = [ConsumerRecord(ACTIVITY, 0, n, 1, 0, b"k", v, None, 1, 1, ()) for n, v in enumerate(values)]
        beside = weakref.ref(records[2])
        flight = InFlight(BatchPolicy())
        flight.add({(ACTIVITY, 0): records})
        batch = flight.take()
        assert batch is not None
        await EventAgent(context, read, run).handle(batch)
        del records, batch
        gc.collect()
        assert context.outbox.owed_bytes
        assert beside() is None
