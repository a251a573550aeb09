"""A topic as it stands when it is opened, read by commands: what it holds, and records that must come soon."""

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import TopicPartition

from workers.errors import DependencyTimeout
from workers.kafka_client import connected, reader_client, require_topics
from workers.settings import Settings
from workers.topics import partition_count

SILENCE_S = 10.0  # without a record for so long, reading is given up
LOOK_EVERY_MS = 200

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


async def fetched(
    consumer: Any, *partitions: TopicPartition, at_most: int | None = None
) -> Mapping[TopicPartition, list[Any]]:
    """The next records of some partitions; none where the consumer has passed what nobody is handed, as the marker
    behind a transaction. Raises DependencyTimeout when it gets no further for ten seconds.
    """
    before = [await consumer.position(partition) for partition in partitions]
    stop_s = time.monotonic() + SILENCE_S
    while time.monotonic() < stop_s:
        found: Mapping[TopicPartition, list[Any]]
        found = await consumer.getmany(*partitions, timeout_ms=LOOK_EVERY_MS, max_records=at_most)
        if found or before != [await consumer.position(partition) for partition in partitions]:
            return found
    raise DependencyTimeout("kafka", f"{partitions[0].topic} gave nothing for {SILENCE_S:.0f} s")


async def read_until(consumer: Any, ends: Mapping[TopicPartition, int]) -> AsyncIterator[Any]:
    """Records from the consumer's positions to these offsets, and maybe some more. Raises as `fetched`."""
    while any([await consumer.position(partition) < end for partition, end in ends.items()]):
        for records in (await fetched(consumer, *ends)).values():
            for record in records:
                yield record
