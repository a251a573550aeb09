"""Far more requests than a worker can answer in time: each is answered once.

That the newest are served first is proven where no clock decides it: `tests/unit/test_intake.py`.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from schemas import codec
from schemas.recall import CandidateList, RecallRequest
from tests.e2e.conftest import Live
from tests.e2e.test_live import new, request
from workers.client import RecallClient
from workers.kafka_client import group_lag

BACKLOG = 3000
OFFERED = 2.5  # times what can be done
WAVES = 40
TRIES = 5  # each with twice as many
BETWEEN_S = 0.1
TIMEOUT_MS = 500
WITHIN_S = 60.0


class Reader:
    """What comes out of `recall-candidates`, in the order of coming."""

    def __init__(self, live: Live) -> None:
        self.answers: list[CandidateList] = []
        self._consumer = AIOKafkaConsumer(
            live.settings.topic("recall-candidates"), bootstrap_servers=live.settings.kafka_bootstrap
        )

    async def start(self) -> None:
        await self._consumer.start()
        await self._consumer.seek_to_end()
        for partition in self._consumer.assignment():
            await self._consumer.position(partition)

    async def until(self, ids: set[str]) -> list[CandidateList]:
        """All answers to these, once there is one to each."""
        missing = set(ids)
        end_s = time.monotonic() + WITHIN_S
        while missing := missing - {answer.request_id for answer in self.answers}:
            assert time.monotonic() < end_s, f"{len(missing)} of {len(ids)} are not answered, such as {min(missing)}"
            for records in (await self._consumer.getmany(timeout_ms=200, max_records=5000)).values():
                self.answers += [codec.decode_candidates(record.value) for record in records]
        return [answer for answer in self.answers if answer.request_id in ids]

    async def stop(self) -> None:
        await self._consumer.stop()


@pytest.fixture
async def reader(live: Live) -> AsyncIterator[Reader]:
    reader = Reader(live)
    await reader.start()
    yield reader
    await reader.stop()


@pytest.mark.timeout(300)
async def test_more_than_can_be_done_is_answered_in_full_and_in_time(
    live: Live, client: RecallClient, reader: Reader
) -> None:
    await client.ask(request(new("u")))  # the worker is warm
    wave = int(OFFERED * BETWEEN_S * await capacity_per_s(live, reader))
    asked: list[RecallRequest] = []
    for number in range(TRIES):  # it may have been measured while the machine stood still
        some = [different(f"{number}-{n}", TIMEOUT_MS) for n in range(WAVES * wave << number)]
        await send(live, some, wave << number)
        asked += some
        if is_refused(await reader.until({one.request_id for one in some})):
            break
    else:
        pytest.fail("who cannot be served is told so")

    topic, group = live.settings.topic("recall-requests"), live.settings.group("recall-requests")
    async with asyncio.timeout(WITHIN_S):
        while await group_lag(live.settings, group, topic):
            await asyncio.sleep(0.1)
    last = request(new("u"))
    assert (await client.ask(last)).status == "ok", "the overload is over"
    await reader.until({last.request_id})
    ids = Counter(answer.request_id for answer in reader.answers)
    assert {ids[one.request_id] for one in asked} == {1}, "each is answered once"


def is_refused(answers: Sequence[CandidateList]) -> bool:
    """Whether some are, and what is done is done in time."""
    assert {answer.status for answer in answers} <= {"ok", "rejected", "expired", "degraded"}
    refused = [answer for answer in answers if answer.reasons == ["overloaded"]]
    assert all(answer.timings_ms.total < TIMEOUT_MS for answer in refused), "before their deadlines"
    served = [answer for answer in answers if answer.status == "ok"]
    assert all(answer.timings_ms.total <= TIMEOUT_MS and len(answer.item_ids) == 20 for answer in served)
    return bool(refused)


def different(request_id: str, timeout_ms: int) -> RecallRequest:
    """A request unlike all others, so that none takes over what another has found."""
    return request(new("u"), request_id=request_id, timeout_ms=timeout_ms, exclude_items=[request_id])


async def capacity_per_s(live: Live, reader: Reader) -> float:
    """What this machine, with whatever else it does now, can answer: of a backlog, once the first half is through."""
    asked = [different(f"backlog-{n}", 60_000) for n in range(BACKLOG)]
    await send(live, asked, BACKLOG)
    times_ms = sorted(answer.timestamp_ms for answer in await reader.until({one.request_id for one in asked}))
    return (BACKLOG // 2) / max(1, times_ms[-1] - times_ms[-BACKLOG // 2]) * 1000


async def send(live: Live, asked: Sequence[RecallRequest], wave: int) -> None:
    """Wave upon wave."""
    producer = AIOKafkaProducer(bootstrap_servers=live.settings.kafka_bootstrap, acks="all", linger_ms=5)
    await producer.start()
    topic = live.settings.topic("recall-requests")
    begin_s = time.perf_counter()
    sent = []
    for number, start in enumerate(range(0, len(asked), wave)):
        some = asked[start : start + wave]
        sent += [await producer.send(topic, codec.encode_event(one), one.user_id.encode()) for one in some]
        await asyncio.sleep(max(0.0, begin_s + (number + 1) * BETWEEN_S - time.perf_counter()))
    await asyncio.gather(*sent)
    await producer.stop()
