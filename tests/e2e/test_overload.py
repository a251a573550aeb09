"""Far more requests than a worker can answer in time: each is answered once, the newest are served."""

import asyncio
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

WAVES = 15
WAVE = 1500
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
        async with asyncio.timeout(WITHIN_S):
            while not ids <= {answer.request_id for answer in self.answers}:
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


async def test_more_than_can_be_done_is_answered_in_full_and_the_newest_are_served(
    live: Live, client: RecallClient, reader: Reader
) -> None:
    await client.ask(request(new("u")))  # the worker is warm
    asked = [request(new("u"), timeout_ms=TIMEOUT_MS) for _ in range(WAVES * WAVE)]
    await send(live, asked)
    answers = {answer.request_id: answer for answer in await reader.until({one.request_id for one in asked})}

    said = Counter((answer.status, *answer.reasons) for answer in answers.values())
    assert said["rejected", "overloaded"]
    assert {status for status, *_ in said} <= {"ok", "rejected", "expired", "degraded"}
    refused = [answer for answer in answers.values() if answer.reasons == ["overloaded"]]
    assert all(answer.timings_ms.total < TIMEOUT_MS for answer in refused), "before their deadlines"
    served = [answer for answer in answers.values() if answer.status == "ok"]
    assert all(answer.timings_ms.total <= TIMEOUT_MS and len(answer.item_ids) == 20 for answer in served)
    assert any(answers[one.request_id].status == "ok" for one in asked[-WAVE:]), f"the newest are served: {said}"

    topic, group = live.settings.topic("recall-requests"), live.settings.group("recall-requests")
    async with asyncio.timeout(WITHIN_S):
        while await group_lag(live.settings, group, topic):
            await asyncio.sleep(0.1)
    last = request(new("u"))
    assert (await client.ask(last)).status == "ok", "the overload is over"
    await reader.until({last.request_id})
    assert sum(answer.request_id in answers for answer in reader.answers) == len(asked), "each is answered once"


async def send(live: Live, asked: Sequence[RecallRequest]) -> None:
    """Wave upon wave, each a few times what can be answered until the next."""
    producer = AIOKafkaProducer(bootstrap_servers=live.settings.kafka_bootstrap, acks="all", linger_ms=5)
    await producer.start()
    topic = live.settings.topic("recall-requests")
    for start in range(0, len(asked), WAVE):
        for one in asked[start : start + WAVE]:
            await producer.send(topic, codec.encode_event(one), one.user_id.encode())
        await asyncio.sleep(BETWEEN_S)
    await producer.stop()
