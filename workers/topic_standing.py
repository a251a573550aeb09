"""A topic as it stands when it is opened, read by commands: what it holds, and records that must come soon."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import TopicPartition

from workers.errors import DependencyTimeout
from workers.kafka_client import connected, reader_client, require_topics
from workers.settings import Settings
from workers.topics import partition_count

SILENCE_S = 10.0  # without a record for so long, reading is given up

Spans = Mapping[TopicPartition, range]
"""Partition -> the offsets that it holds; may be empty."""


@asynccontextmanager
async def open_standing(settings: Settings, name: str, since_ms: int | None = None) -> AsyncIterator[tuple[Any, Spans]]:
    """A reader, and the spans of a topic: with `since_ms` from the first record of then on.

    Raises DependencyUnavailable, also in place of errors of Kafka inside, and ConfigurationError for no such topic.
    """
    await require_topics(settings, name)
    partitions = [TopicPartition(name, n) for n in range(await partition_count(settings, name))]
    consumer = reader_client(settings)
    async with connected(settings, consumer):
        starts, ends = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
        if since_ms is not None:
            found = await consumer.offsets_for_times(dict.fromkeys(partitions, since_ms))
            starts = {p: ends[p] if found[p] is None else found[p].offset for p in partitions}
        yield consumer, {p: range(starts[p], ends[p]) for p in partitions}


async def fetched(consumer: Any, *partitions: TopicPartition) -> Mapping[TopicPartition, list[Any]]:
    """The next records of some partitions. Raises DependencyTimeout when nothing comes for ten seconds."""
    found: Mapping[TopicPartition, list[Any]] = await consumer.getmany(*partitions, timeout_ms=int(SILENCE_S * 1000))
    if not found:
        raise DependencyTimeout("kafka", f"{partitions[0].topic} gave nothing for {SILENCE_S:.0f} s")
    return found


async def read_until(consumer: Any, ends: Mapping[TopicPartition, int]) -> AsyncIterator[Any]:
    """Records from the consumer's positions to these offsets, and maybe some more. Raises as `fetched`."""
    while any([await consumer.position(partition) < end for partition, end in ends.items()]):
        for records in (await fetched(consumer, *ends)).values():
            for record in records:
                yield record
