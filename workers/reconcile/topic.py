"""`item-updates` as a reconciliation reads it: from the beginning to a noted end, or single events. Writes nothing."""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from aiokafka import TopicPartition
from aiokafka.errors import GroupCoordinatorNotAvailableError

from schemas import codec
from schemas.records import hash64
from workers.kafka_client import admin_client, ahead_client, connected, moved_ahead, reader_client
from workers.pipelines.item_order import ItemEvent, decode_item
from workers.ports import UInt64
from workers.reconcile.columns import Winners, partition_and_offset, place
from workers.settings import Settings
from workers.stores import keys
from workers.topic_standing import fetched

RECORDS_AT_ONCE = 8192
SKIPPED = 2000  # records between two wanted ones that are read over; beyond it the reader jumps

Offsets = Mapping[int, int]
"""Partition -> offset."""


@dataclass(frozen=True, slots=True)
class Span:
    """What the topic holds, and up to where the group that feeds the view has come; read in this order."""

    committed: Offsets
    begins: Offsets
    ends: Offsets

    @property
    def lag(self) -> int:
        """Records that are not taken in yet."""
        return sum(max(0, self.ends[n] - self.committed[n]) for n in self.ends)


@dataclass(slots=True)
class Read:
    """What was read: the events that count, and hashes of keys whose value cannot be read (never judged)."""

    winners: Winners = field(default_factory=Winners)
    unreadable: set[int] = field(default_factory=set)


class ItemTopic:
    """The topic, and the group that feeds one view. Opened by `open_topic`; one thing is read at a time."""

    def __init__(self, topic: str, group: str, consumer: Any, ahead: Any, admin: Any) -> None:
        self._topic = topic
        self._group = group
        self._consumer = consumer
        self._ahead = ahead
        self._admin = admin

    async def span(self) -> Span:
        """Where the topic and the group stand now. Where the group never committed, it stands at the beginning."""
        described = await self._admin.describe_topics([self._topic])
        partitions = [TopicPartition(self._topic, entry["partition"]) for entry in described[0]["partitions"]]
        committed: dict[TopicPartition, int] = {}
        with suppress(GroupCoordinatorNotAvailableError):  # a broker that no group has ever asked
            offsets = await self._admin.list_consumer_group_offsets(self._group, partitions=partitions)
            committed = {partition: entry.offset for partition, entry in offsets.items() if entry.offset >= 0}
        begins = await self._consumer.beginning_offsets(partitions)
        ends = await self._consumer.end_offsets(partitions)
        stands = await moved_ahead(self._ahead, begins | committed, ends)
        return Span(_plain(stands), _plain(begins), _plain(ends))

    async def winners(
        self, span: Span, wanted: Callable[[int], bool], progress: Callable[[int, int], None] = lambda *_: None
    ) -> Read:
        """Which events count among those of the items wanted, by hash; `progress` is told records read and to read."""
        read = Read()
        records_read, to_read = 0, sum(span.ends[n] - span.begins[n] for n in span.ends)
        async for records in self._records(span.begins, span.ends):
            events = []
            for record in records:
                try:
                    event = decode_item(record)
                except codec.DecodeError:
                    read.unreadable |= _key_hash(record.key)
                    continue
                if wanted(hash64(event.item_id)):
                    events.append(event)
            read.winners.add(events)
            records_read += len(records)
            progress(records_read, to_read)
        return read

    async def named(self, starts: Offsets, ends: Offsets) -> UInt64:
        """uint64[n], sorted: hashes of the keys of all records between."""
        found: set[int] = set()
        async for records in self._records(starts, ends):
            for record in records:
                found |= _key_hash(record.key)
        return np.array(sorted(found), dtype=np.uint64)

    async def events(self, places: Sequence[int]) -> dict[int, ItemEvent]:
        """Events by place; those that are gone (compacted) or cannot be read are left out."""
        by_partition: dict[int, list[int]] = {}
        for each in sorted(places):
            partition, offset = partition_and_offset(each)
            by_partition.setdefault(partition, []).append(offset)
        found: dict[int, ItemEvent] = {}
        for partition, offsets in by_partition.items():
            wanted = set(offsets)
            for start, end in _stretches(offsets):
                async for records in self._records({partition: start}, {partition: end}):
                    for record in records:
                        if record.offset in wanted:
                            with suppress(codec.DecodeError):
                                found[place(partition, record.offset)] = decode_item(record)
        return found

    async def _records(self, starts: Offsets, ends: Offsets) -> AsyncIterator[list[Any]]:
        """Records from `starts` up to `ends`, some thousand at a time, each partition in order."""
        open_ = {TopicPartition(self._topic, n): end for n, end in ends.items() if starts[n] < end}
        if not open_:
            return
        self._consumer.assign(list(open_))
        for partition in open_:
            self._consumer.seek(partition, starts[partition.partition])
        while open_:
            found = await fetched(self._consumer, *open_, at_most=RECORDS_AT_ONCE)
            records = [r for partition, many in found.items() for r in many if r.offset < open_[partition]]
            if records:
                yield records
            for partition in list(open_):
                if await self._consumer.position(partition) >= open_[partition]:
                    del open_[partition]
                    self._consumer.pause(partition)


@asynccontextmanager
async def open_topic(settings: Settings, collection: str) -> AsyncIterator[ItemTopic]:
    """The topic of a view. Raises DependencyError, also in place of every error of Kafka inside."""
    admin, consumer, ahead = admin_client(settings), reader_client(settings), ahead_client(settings)
    async with connected(settings, admin, consumer, ahead):
        group = settings.group(keys.items_group(collection))
        yield ItemTopic(settings.topic("item-updates"), group, consumer, ahead, admin)


def _plain(offsets: Mapping[TopicPartition, int]) -> dict[int, int]:
    return {partition.partition: offset for partition, offset in offsets.items()}


def _key_hash(key: bytes | None) -> set[int]:
    try:
        return {hash64(codec.decode_key(key))}
    except codec.DecodeError:
        return set()


def _stretches(offsets: Sequence[int]) -> Iterable[tuple[int, int]]:
    """(first, end) of runs of sorted offsets with no wide gap between."""
    start = before = offsets[0]
    for offset in offsets[1:]:
        if offset - before > SKIPPED:
            yield start, before + 1
            start = offset
        before = offset
    yield start, before + 1
