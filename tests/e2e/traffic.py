"""Traffic on all three topics, and afterwards the proof that nothing of it was lost and every request was answered."""

import asyncio
import time
import uuid
from collections import Counter
from types import TracebackType

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from schemas import codec
from schemas.activity import UserActivity
from schemas.items import ItemUpdate
from schemas.recall import CandidateList, RecallRequest
from schemas.records import UserRecord, hash64_each
from workers import views
from workers.client import RecallClient
from workers.settings import Settings
from workers.stores.connect import connect
from workers.stores.item_redis import RedisItemTable
from workers.stores.user_redis import RedisUserTable

TIMEOUT_MS = 2000
USERS = 20


class Traffic:
    """`async with Traffic(settings) as traffic: await traffic.send(seconds); await traffic.all_arrived()`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer = AIOKafkaProducer(bootstrap_servers=settings.kafka_bootstrap, acks="all")
        self.activities: Counter[str] = Counter()
        self.items: list[str] = []
        self.requests: list[str] = []

    async def __aenter__(self) -> "Traffic":
        await self._producer.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._producer.stop()

    async def send(self, seconds: float, per_second: int = 20) -> None:
        """So many events of each kind a second, for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await asyncio.gather(*(self._send_one() for _ in range(per_second // 10)))
            await asyncio.sleep(0.1)

    async def _send_one(self) -> None:
        user, now_ms = f"user-{len(self.requests) % USERS}", time.time_ns() // 1_000_000
        item = ItemUpdate(
            item_id=f"new-{uuid.uuid4().hex[:8]}", op="upsert", timestamp_ms=now_ms, attributes={"genres": ["Horror"]}
        )
        activity = UserActivity(
            event_id=uuid.uuid4().hex,
            user_id=user,
            action="rate",
            value=5.0,
            timestamp_ms=now_ms,
            item_id=self.items[-1] if self.items else item.item_id,
        )
        request = RecallRequest(request_id=uuid.uuid4().hex, user_id=user, k=10, timeout_ms=TIMEOUT_MS)
        self.items.append(item.item_id)
        self.activities[user] += 1
        self.requests.append(request.request_id)
        for topic, key, event in (
            ("item-updates", item.item_id, item),
            ("user-activity", user, activity),
            ("recall-requests", user, request),
        ):
            await self._producer.send_and_wait(
                self._settings.topic(topic), key=key.encode(), value=codec.encode_event(event)
            )

    async def all_arrived(self, within_s: float = 60.0) -> list[CandidateList]:
        """Wait until every activity is counted once, every item is known, every request is answered; the answers."""
        end = time.monotonic() + within_s
        while missing := await self._missing():
            assert time.monotonic() < end, missing
            await asyncio.sleep(0.3)
        return await self.answers()

    async def _missing(self) -> str:
        answered = {answer.request_id for answer in await self.answers()}
        silent = set(self.requests) - answered
        if silent:
            return f"{len(silent)} of {len(self.requests)} requests have no answer"
        view = await views.read_active(self._settings)
        assert view is not None
        users = RedisUserTable(connect(self._settings), self._settings)
        items = RedisItemTable(connect(self._settings), self._settings, view.collection)
        try:
            names = list(self.activities)
            records = dict(zip(names, await users.records(names), strict=True))
            unknown = sum(record is None for record in await items.read(hash64_each(self.items)))
        finally:
            await users.close()
            await items.close()
        counted = {name: UserRecord.decode(record).count for name, record in records.items() if record is not None}
        if counted != dict(self.activities):
            return f"activities counted {sum(counted.values())}, sent {sum(self.activities.values())}"
        return f"{unknown} of {len(self.items)} items are unknown" if unknown else ""

    async def answers(self) -> list[CandidateList]:
        """Everything in recall-candidates, in no order."""
        topic = self._settings.topic("recall-candidates")
        consumer = AIOKafkaConsumer(bootstrap_servers=self._settings.kafka_bootstrap)
        await consumer.start()
        found = []
        try:
            partitions = [TopicPartition(topic, n) for n in range(self._settings.partitions)]
            consumer.assign(partitions)
            await consumer.seek_to_beginning()
            ends = await consumer.end_offsets(partitions)
            while any([await consumer.position(partition) < stop for partition, stop in ends.items()]):
                for records in (await consumer.getmany(timeout_ms=500)).values():
                    found += [codec.decode_candidates(record.value) for record in records]
        finally:
            await consumer.stop()
        return found


async def ask(settings: Settings, user: str = "someone") -> CandidateList:
    """One request of its own."""
    async with RecallClient(settings) as client:
        return await client.ask(RecallRequest(request_id=uuid.uuid4().hex, user_id=user, k=10, timeout_ms=20_000))
