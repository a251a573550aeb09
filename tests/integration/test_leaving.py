"""A worker that ends while another one joins: its batch is done, committed, and it has left the group."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient

from workers import topics
from workers.cancelling import cancel
from workers.engine import serve
from workers.inflight import Batch, BatchPolicy
from workers.settings import Settings
from workers.transport import batch_topic, create_app

PARTITIONS = 2
WITHIN_S = 60
SOON_S = 30  # a group that still counts on a member that has gone waits for its session


class Group:
    """Members that take records of one topic, in this process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.topic = settings.topic("user-activity")
        self.name = settings.group("leaving")
        self.taken: list[bytes] = []
        self.begun, self.release = asyncio.Event(), asyncio.Event()
        self.producer = AIOKafkaProducer(bootstrap_servers=settings.kafka_bootstrap)

    def member(self, *, waits: bool) -> Any:
        app = create_app(self.name, self.settings, BatchPolicy())

        async def handle(batch: Batch) -> None:
            if waits:
                self.begun.set()
                await self.release.wait()
            self.taken.extend(record.value for record in batch.records)  # type: ignore[attr-defined]
            batch.done()

        @app.agent(batch_topic(app, self.topic))
        async def agent(stream: Any) -> None:
            await serve(stream, handle)

        return app

    async def send(self, *values: bytes) -> None:
        """One to each partition."""
        for partition, value in enumerate(values):
            await self.producer.send_and_wait(self.topic, value, partition=partition)

    async def members(self) -> int:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.settings.kafka_bootstrap)
        await admin.start()
        try:
            (response,) = await admin.describe_consumer_groups([self.name])
            return len(response.groups[0][5])
        finally:
            await admin.close()


@pytest.fixture
async def group(settings: Settings, tmp_path: Path) -> AsyncIterator[Group]:
    group = Group(settings.model_copy(update={"data_dir": tmp_path, "partitions": PARTITIONS}))
    await topics.apply(group.settings)
    await group.producer.start()
    yield group
    await group.producer.stop()


async def test_who_ends_in_a_rebalance_has_done_what_it_had_in_hand_and_left(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.transport.STOP_WITHIN_S", WITHIN_S)
    first, second = group.member(waits=True), group.member(waits=False)
    await group.send(b"0", b"1")
    tasks = []
    try:
        with structlog.testing.capture_logs() as lines:
            await first.start()
            await asyncio.wait_for(group.begun.wait(), WITHIN_S)
            stopping = asyncio.create_task(first.stop())  # its batch is in hand
            starting = asyncio.create_task(second.start())  # whose joining takes the partitions away
            tasks += [stopping, starting]
            async with asyncio.timeout(WITHIN_S):
                while not any(line["event"] == "partitions revoked" for line in lines):
                    await asyncio.sleep(0.01)
            assert not stopping.done()
            group.release.set()
            await asyncio.wait_for(asyncio.gather(stopping, starting), SOON_S)
            assert await group.members() == 1
            await group.send(b"2", b"3")
            async with asyncio.timeout(WITHIN_S):
                while len(set(group.taken)) < 2 * PARTITIONS:
                    await asyncio.sleep(0.01)
    finally:
        group.release.set()
        await cancel(*tasks)
        await asyncio.gather(first.stop(), second.stop())
    assert sorted(group.taken) == [b"0", b"1", b"2", b"3"], "what it had in hand was committed: nothing comes twice"
