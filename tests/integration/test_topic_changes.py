"""Topics that change under their workers: partitions are added, or the topic is deleted and created again."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic

from tests.integration.test_transport import PARTITIONS, Flow
from workers.settings import Settings


@pytest.fixture
async def flow(settings: Settings, tmp_path: Path) -> AsyncIterator[Flow]:
    flow = Flow(settings, tmp_path)
    await flow.start()
    yield flow
    await flow.stop()


@contextlib.asynccontextmanager
async def admin(flow: Flow) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(bootstrap_servers=flow.settings.kafka_bootstrap)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


@pytest.mark.timeout(500)
async def test_workers_read_new_partitions_by_themselves(flow: Flow) -> None:
    flow.spawn()
    flow.spawn()
    await flow.feed(200, 1000)
    await flow.all_through(within_s=240)
    async with admin(flow) as client:
        await client.create_partitions({flow.source: NewPartitions(PARTITIONS + 2)})
    while len(await flow.producer.partitions_for(flow.source)) < PARTITIONS + 2:
        await flow.producer.client.force_metadata_update()
    for partition in (PARTITIONS, PARTITIONS + 1):
        await flow.producer.send_and_wait(flow.source, b"%d" % flow.sent, partition=partition)
        flow.sent += 1
    assert set((await flow.all_through(within_s=240)).values()) == {1}


@pytest.mark.timeout(500)
async def test_a_topic_that_is_made_anew_is_read_from_its_beginning(flow: Flow) -> None:
    """Whoever notices ends, and is started again; nothing of the new topic is taken for read."""
    flow.spawn()
    await flow.feed(2000, 5000)
    await flow.all_through(within_s=240)
    async with admin(flow) as client:
        await client.delete_topics([flow.source])
        while flow.source in await client.list_topics():
            await asyncio.sleep(0.05)
        config = {"message.timestamp.type": "LogAppendTime"}
        await client.create_topics([NewTopic(flow.source, PARTITIONS, 1, topic_configs=config)])
    await flow.feed(100, 1000)
    supervisor = asyncio.create_task(start_again(flow))
    try:
        await flow.all_through(within_s=240)
    finally:
        supervisor.cancel()


@pytest.mark.timeout(500)
async def test_what_was_committed_behind_the_end_of_a_topic_is_of_another_one(flow: Flow) -> None:
    """As when a worker commits what it has in hand just after the topic was made anew."""
    await flow.feed(100, 1000)
    await commit(flow, 5000)
    flow.spawn()
    supervisor = asyncio.create_task(start_again(flow))
    try:
        values = await flow.all_through(within_s=240)
    finally:
        supervisor.cancel()
    assert set(values.values()) == {1}
    log = (flow.settings.data_dir / "worker-0.log").read_text()
    assert "offsets have gone back: the topic was made anew, or has lost records" in log


async def commit(flow: Flow, offset: int) -> None:
    """For every partition, as a member of the group that is gone afterwards."""
    consumer = AIOKafkaConsumer(bootstrap_servers=flow.settings.kafka_bootstrap, group_id=flow.group)
    await consumer.start()
    partitions = [TopicPartition(flow.source, n) for n in range(PARTITIONS)]
    consumer.assign(partitions)
    await consumer.commit(dict.fromkeys(partitions, offset))
    await consumer.stop()


async def start_again(flow: Flow) -> None:
    """As a supervisor does."""
    while True:
        if flow.workers[-1].poll() is not None:
            flow.spawn()
        await asyncio.sleep(0.2)
