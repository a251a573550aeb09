"""What a worker holds: of a pause the records that cannot be read, and nothing of an assignment that is over."""

import asyncio
import gc
import weakref
from typing import Any

from aiokafka.structs import ConsumerRecord

from schemas import codec
from schemas.recall import CandidateList, RecallRequest
from workers.agents import Context, EventAgent, RecallAgent
from workers.clock import SystemClock
from workers.dependencies import Dependencies
from workers.errors import DependencyUnavailable
from workers.giving_up import Gate, GivingUp
from workers.inflight import BatchPolicy, InFlight
from workers.metrics import Metrics
from workers.pipelines.admission import Incoming
from workers.publisher import Outgoing
from workers.settings import Settings

TOPIC = "recall-requests"


class Unanswered:
    """A pipeline and a producer; nothing is published, and nobody is answered."""

    async def run(self, _: list[Incoming]) -> list[CandidateList]:
        raise AssertionError("nobody asked")

    async def send(self, _: str, __: list[Outgoing]) -> list[int]:
        return []


def record(offset: int, value: bytes, headers: Any = ()) -> Any:
    return ConsumerRecord(TOPIC, 0, offset, SystemClock().now_ms(), 1, b"u", value, None, 1, 1, headers)


def paused(system: Any) -> tuple[Context, GivingUp]:
    metrics = Metrics()
    settings = Settings(dead_letters_per_minute=1)
    context = Context("recall", settings, system, metrics, Dependencies("recall", metrics), SystemClock())
    context.giving_up.pause.begin("not_json")
    return context, context.giving_up


async def test_a_held_letter_keeps_nothing_that_was_read_beside_it() -> None:
    """The error knows where it was raised, and that is among all others of its batch."""
    system = Unanswered()
    context, giving_up = paused(system)
    agent = RecallAgent(context, system, lambda: 1)  # type: ignore[arg-type]
    good = record(0, codec.encode_event(RecallRequest(request_id="r", user_id="u")))
    records = [good, record(1, b"not json")]
    flight = InFlight(BatchPolicy())
    flight.add({(TOPIC, 0): records})
    batch = flight.take()
    assert batch is not None
    taken: list[Any] = []
    agent._runners.put = taken.extend  # type: ignore[method-assign]
    problems = agent._take_in(batch, batch.records)
    held = await giving_up.write(batch, problems)
    assert [each.offset for each, _ in held] == [1]
    read = weakref.ref(good)
    batch.done()
    taken[0].batch.done(taken[0].record)
    batch.keep([each for each, _ in held])
    taken.clear()
    del good, records, problems
    gc.collect()
    assert read() is None


async def test_headers_count_as_held() -> None:
    _, giving_up = paused(Unanswered())
    flight = InFlight(BatchPolicy())
    flight.add({(TOPIC, 0): [record(0, b"{", (("h", b"z" * 1000),))]})
    batch = flight.take()
    assert batch is not None
    await giving_up.write(batch, [(batch.records[0], codec.DecodeError(codec.ErrorCode.NOT_JSON, "no"))])
    assert 1000 < giving_up.held_bytes < 1100


def taken(flight: InFlight, *records: Any) -> Any:
    """The batch of one poll."""
    flight.add({(TOPIC, 0): records})
    batch = flight.take()
    assert batch is not None
    batch.started = True
    return batch


async def test_what_a_rebalance_gave_up_is_held_no_longer_and_takes_no_room_of_the_next_letters() -> None:
    context, giving_up = paused(Unanswered())
    flight, error = InFlight(BatchPolicy()), codec.DecodeError(codec.ErrorCode.NOT_JSON, "no")
    batch = taken(flight, *(record(n, b"{") for n in range(3)))
    held = await giving_up.write(batch, [(each, error) for each in batch.records])
    gate = Gate(giving_up, context.outbox, read_on=3)
    gate.took(batch)
    assert not gate.wants_poll()
    later = asyncio.create_task(giving_up.write_later(batch, held))
    await asyncio.sleep(0)
    assert giving_up.held_bytes
    flight.end()
    async with asyncio.timeout(20):
        await later
    assert giving_up.held_bytes == 0
    assert giving_up.pause.on
    assert gate.wants_poll(), "it is read again"
    assert giving_up._cap.take(1) == 1


async def test_a_batch_whose_partitions_others_have_is_not_tried_again() -> None:
    context, _ = paused(Unanswered())
    flight, tries = InFlight(BatchPolicy()), 0

    async def run(*_: object) -> Any:
        nonlocal tries
        tries += 1
        flight.end()
        raise DependencyUnavailable("redis", "away")

    batch = taken(flight, record(0, b""))
    async with asyncio.timeout(20):
        await EventAgent(context, lambda each: each, run).handle(batch)
    assert tries == 1
    assert flight.committable() == {}
