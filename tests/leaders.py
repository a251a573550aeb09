"""A producer of aiokafka's real accumulator, in front of partitions that may have no leader; what they took is kept."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.producer.message_accumulator import BatchBuilder, MessageAccumulator
from aiokafka.record.memory_records import MemoryRecords

from workers.publisher import Publisher

MAX_BATCH_BYTES = 262_144
TIMEOUT_MS = 30_000


class Leaders:
    """Four partitions of every topic; those in `leaderless`, by topic and number, take nothing."""

    def __init__(self) -> None:
        self.leaderless: set[tuple[str, int]] = set()
        self.most = math.inf  # messages that they take
        self.refuse_once: dict[tuple[str, int], KafkaError] = {}
        self.taken: list[tuple[str, int, bytes]] = []
        self._accumulator = MessageAccumulator(self, MAX_BATCH_BYTES, 0, math.inf)

    def leader_for_partition(self, place: TopicPartition) -> int | None:
        away = (place.topic, place.partition) in self.leaderless or len(self.taken) >= self.most
        return None if away else 1

    def create_batch(self) -> BatchBuilder:
        return self._accumulator.create_builder()

    async def partitions_for(self, topic: str) -> set[int]:
        return {0, 1, 2, 3}

    async def send_batch(self, batch: BatchBuilder, topic: str, *, partition: int) -> Any:
        return await self._accumulator.add_batch(batch, TopicPartition(topic, partition), TIMEOUT_MS / 1000)

    def values(self, topic: str, *partitions: int) -> list[bytes]:
        return [value for t, p, value in self.taken if t == topic and p in (partitions or (0, 1, 2, 3))]

    async def run(self) -> None:
        """What aiokafka's sender does: drain, send, tell."""
        while True:
            nodes, _ = self._accumulator.drain_by_nodes(ignore_nodes=set())
            for batches in nodes.values():
                for place, batch in batches.items():
                    error = self.refuse_once.pop((place.topic, place.partition), None)
                    if error is not None:
                        batch.failure(error)
                        continue
                    self.taken += [(*place, value) for value in _values(batch)]
                    batch.done(0)
            await asyncio.sleep(0.001)


def _values(batch: Any) -> list[bytes]:
    records = MemoryRecords(bytes(batch.get_data_buffer()))
    found = []
    while records.has_next():
        found += [record.value for record in records.next_batch()]
    return found


@asynccontextmanager
async def leading() -> AsyncIterator[tuple[Leaders, Publisher]]:
    leaders = Leaders()
    sender = asyncio.create_task(leaders.run())
    yield leaders, Publisher(SimpleNamespace(producer=SimpleNamespace(_producer=leaders)), TIMEOUT_MS)
    sender.cancel()


async def until(holds: Any, within_s: float = 20.0) -> None:
    async with asyncio.timeout(within_s):
        while not holds():
            await asyncio.sleep(0.002)
