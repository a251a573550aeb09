"""Producers with transactions: what is committed counts, and the markers behind it keep nobody waiting."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import TopicPartition

from schemas.dead_letter import DeadLetter
from tests.integration.test_transport import Flow, flow
from workers import topic_standing, topics
from workers.errors import DependencyTimeout
from workers.kafka_client import connected, group_lag
from workers.newer_items import NewerItems
from workers.reconcile.topic import open_topic
from workers.settings import Settings
from workers.stores import keys
from workers.topic_log import TopicLog
from workers.topic_standing import open_standing, read_until

__all__ = ["flow"]


@pytest.fixture
async def transactional(settings: Settings) -> AsyncIterator[AIOKafkaProducer]:
    """A producer whose records are all sent in transactions."""
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.kafka_bootstrap, transactional_id=settings.namespace, enable_idempotence=True
    )
    async with connected(settings, producer):
        yield producer


async def committed(producer: AIOKafkaProducer, topic: str, *values: bytes, key: bytes | None = None) -> int:
    """One transaction, into partition 0; when the broker took its last record, epoch ms."""
    taken_ms = 0
    async with producer.transaction():
        for value in values:
            taken_ms = (await producer.send_and_wait(topic, value, key=key, partition=0)).timestamp
    return taken_ms


async def aborted(producer: AIOKafkaProducer, topic: str, *values: bytes) -> None:
    """One that is given up after the broker has its records."""
    await producer.begin_transaction()
    for value in values:
        await producer.send_and_wait(topic, value, partition=0)
    await producer.abort_transaction()


async def commit_of(settings: Settings, group: str, place: TopicPartition, offset: int) -> None:
    """What a group has done."""
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka_bootstrap, group_id=group, enable_auto_commit=False)
    async with connected(settings, consumer):
        consumer.assign([place])
        await consumer.commit({place: offset})


async def test_a_worker_reads_what_is_committed_and_its_group_comes_to_the_end(
    flow: Flow, transactional: AIOKafkaProducer
) -> None:
    flow.spawn()
    await committed(transactional, flow.source, b"first", b"second")
    await aborted(transactional, flow.source, b"aborted")
    await transactional.begin_transaction()
    await transactional.send_and_wait(flow.source, b"late", partition=0)
    await flow.producer.send_and_wait(flow.source, b"behind", partition=0)
    assert (await flow.until(lambda values: len(values) >= 2)).keys() == {b"first", b"second"}
    assert await group_lag(flow.settings, flow.group, flow.source), "an open transaction is still to come"
    await transactional.commit_transaction()
    expected = {b"first": 1, b"second": 1, b"late": 1, b"behind": 1}
    assert await flow.until(lambda values: b"behind" in values) == expected
    await aborted(transactional, flow.source, b"aborted too")
    async with asyncio.timeout(20):
        while await group_lag(flow.settings, flow.group, flow.source):
            await asyncio.sleep(0.1)
    await flow.producer.send_and_wait(flow.source, b"last", partition=0)
    assert await flow.until(lambda values: b"last" in values) == expected | {b"last": 1}


async def test_a_group_that_has_read_into_an_open_transaction_does_not_begin_anew(
    flow: Flow, transactional: AIOKafkaProducer
) -> None:
    """As one has that was run by a release that read what was not committed."""
    for n in range(5):
        await flow.producer.send_and_wait(flow.source, b"%d" % n, partition=0)
    await transactional.begin_transaction()
    await transactional.send_and_wait(flow.source, b"read already", partition=0)
    await commit_of(flow.settings, flow.group, TopicPartition(flow.source, 0), 6)
    flow.spawn()
    await flow.producer.send_and_wait(flow.source, b"other", partition=1)
    await flow.until(lambda values: b"other" in values)
    await transactional.commit_transaction()
    await flow.producer.send_and_wait(flow.source, b"next", partition=0)
    assert await flow.until(lambda values: b"next" in values) == {b"other": 1, b"next": 1}


async def test_commands_read_to_an_end_where_nothing_is_but_markers(
    settings: Settings, transactional: AIOKafkaProducer
) -> None:
    await topics.apply(settings)
    name = settings.topic("user-activity")
    await committed(transactional, name, b"1", b"2")
    await aborted(transactional, name, b"3")
    await committed(transactional, name, b"4")
    for _ in range(3):
        await aborted(transactional, name, b"5")
    async with TopicLog(settings, "user-activity") as log:
        assert [each.value async for batch in log.records() for each in batch] == [b"1", b"2", b"4"]
    async with open_standing(settings, name) as (consumer, spans):
        place = TopicPartition(name, 0)
        consumer.assign([place])
        consumer.seek(place, spans[place].start)
        read = [record.value async for record in read_until(consumer, {place: spans[place].stop})]
    assert read == [b"1", b"2", b"4"]


async def test_a_marker_at_the_end_of_items_is_no_lag(settings: Settings, transactional: AIOKafkaProducer) -> None:
    await topics.apply(settings)
    name, group = settings.topic("item-updates"), settings.group(keys.items_group("view"))
    await committed(transactional, name, b"1", b"2", key=b"i")
    await commit_of(settings, group, TopicPartition(name, 0), 1)
    async with open_topic(settings, "view") as topic:
        assert (await topic.span()).lag == 2  # the second one, and the marker behind it
        await commit_of(settings, group, TopicPartition(name, 0), 2)
        span = await topic.span()
        assert (span.lag, span.committed[0]) == (0, span.ends[0])


async def test_a_replay_waits_for_what_an_open_transaction_brings_of_its_item(
    settings: Settings, transactional: AIOKafkaProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await topics.apply(settings)
    name = settings.topic("item-updates")
    taken_ms = await committed(transactional, name, b"refused", key=b"i")
    letter = DeadLetter(
        topic=name, partition=0, offset=0, stage="items", code="invalid_event", message="", timestamp_ms=1,
        record_timestamp_ms=taken_ms, key=b"i", value=b"refused",
    )  # fmt: skip
    monkeypatch.setattr(topic_standing, "SILENCE_S", 0.5)
    async with NewerItems(settings) as newer:
        newer.watch(letter)
        await newer.look()
        assert not newer.newer_than(letter)
        await transactional.begin_transaction()
        await transactional.send_and_wait(name, b"newer", key=b"i", partition=0)
        with pytest.raises(DependencyTimeout):
            await newer.look()
        await transactional.commit_transaction()
        await newer.look()
        assert newer.newer_than(letter)
