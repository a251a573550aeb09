"""What a paused worker holds: the records that cannot be read, and nothing that came with them."""

import gc
import weakref
from typing import Any

from aiokafka.structs import ConsumerRecord

from schemas import codec
from schemas.recall import CandidateList, RecallRequest
from workers.agents import Context, RecallAgent
from workers.clock import SystemClock
from workers.dependencies import Dependencies
from workers.giving_up import GivingUp
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
