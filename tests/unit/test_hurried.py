"""Requests with little time and with much in one batch: nobody waits for the others' answers."""

from collections.abc import Sequence
from typing import Any

from aiokafka.structs import ConsumerRecord

from schemas import codec
from schemas.recall import CandidateList, Reason, RecallRequest, Status
from tests.leaders import Leaders, leading, until
from workers.agents import Context, RecallAgent
from workers.clock import SystemClock
from workers.dependencies import Dependencies
from workers.inflight import BatchPolicy, InFlight
from workers.metrics import Metrics
from workers.pipelines.admission import Incoming, by_time_left, without_items
from workers.settings import Settings

TOPIC = "recall-requests"
TIMEOUTS_MS = [3900, 31_000, 4000, 30_000]  # whoever reads them a second late finds the same two and two


class System:
    """A pipeline that does not come to an end for patient requests before the hurried ones' answers are out."""

    def __init__(self, leaders: Leaders) -> None:
        self.batches: list[list[str]] = []
        self._leaders = leaders

    async def run(self, batch: Sequence[Incoming]) -> list[CandidateList]:
        self.batches.append([incoming.request.request_id for incoming in batch])
        if batch[0].request.timeout_ms > 10_000:
            await until(lambda: len(self.published) == 2)
        return [without_items(each, 0, Status.DEGRADED, Reason.INDEX_UNAVAILABLE, None) for each in batch]

    @property
    def published(self) -> list[str]:
        return [codec.decode_candidates(value).request_id for _, _, value in self._leaders.taken]


def record(offset: int, timeout_ms: int) -> Any:
    request = RecallRequest(request_id=f"r{timeout_ms}", user_id="u", timeout_ms=timeout_ms)
    now_ms = SystemClock().now_ms()
    return ConsumerRecord(TOPIC, 0, offset, now_ms, 1, b"u", codec.encode_event(request), None, 1, 1, ())


async def test_answers_of_who_is_in_a_hurry_do_not_wait_for_the_others() -> None:
    async with leading() as (leaders, publisher):
        system, metrics, clock = System(leaders), Metrics(), SystemClock()
        context = Context("recall", Settings(), publisher, metrics, Dependencies("recall", metrics), clock)
        agent = RecallAgent(context, system, lambda: 1)
        flight = InFlight(BatchPolicy())
        flight.add({(TOPIC, 0): [record(n, timeout_ms) for n, timeout_ms in enumerate(TIMEOUTS_MS)]})
        batch = flight.take()
        assert batch is not None
        await agent.handle(batch)
        await until(lambda: flight.committable() == {(TOPIC, 0): len(TIMEOUTS_MS)})
    assert system.batches == [["r3900", "r4000"], ["r31000", "r30000"]]
    assert system.published == ["r3900", "r4000", "r31000", "r30000"]


def test_those_with_about_as_much_time_left_are_together() -> None:
    def incoming(timeout_ms: int) -> Incoming:
        return Incoming(RecallRequest(request_id="r", user_id="u", timeout_ms=timeout_ms), taken_ms=1000)

    asked = [incoming(timeout_ms) for timeout_ms in (2000, 100, 1900, 120, 30_000)]
    assert by_time_left(asked, 1000) == [[0, 2], [1, 3], [4]]
    assert by_time_left(asked, 1150) == [[0, 2], [1, 3], [4]], "two that are too late"
    assert by_time_left([], 0) == []
