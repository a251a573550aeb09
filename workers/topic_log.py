"""A topic read from its beginning as one log: in the order in which the brokers took its records."""

import heapq
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any

from aiokafka import TopicPartition

from workers.settings import Settings
from workers.topic_standing import fetched, open_standing

AT_ONCE = 4096


class TopicLog:
    """The topic as it stands when it is opened, and nothing later. `async with TopicLog(settings, name) as log`.

    Memory: what one fetch of each partition brings, at most about a megabyte for each.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings = settings
        self._opened = AsyncExitStack()
        self._consumer: Any = None
        self._spans: dict[TopicPartition, range] = {}
        self._read = 0
        self.name = settings.topic(name)

    async def __aenter__(self) -> "TopicLog":
        """Connect and look where it begins and ends. Raises DependencyUnavailable, ConfigurationError."""
        self._consumer, spans = await self._opened.enter_async_context(open_standing(self._settings, self.name))
        self._spans = {partition: span for partition, span in spans.items() if span}
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._opened.__aexit__(kind, error, trace)

    def part(self) -> float | None:
        """How much of it the last reading has read, 0 to 1; None when it is empty."""
        total = sum(map(len, self._spans.values()))
        return min(1.0, self._read / total) if total else None

    async def records(self) -> AsyncIterator[list[Any]]:
        """All records, some thousands at a time: by the broker's time, of equal ones by partition; each partition in
        the order of its offsets. Again from the beginning at each call. Raises DependencyTimeout, KafkaError.
        """
        self._read = 0
        if not self._spans:
            return
        self._consumer.assign(list(self._spans))
        for partition, span in self._spans.items():
            self._consumer.seek(partition, span.start)
        waiting = {partition: deque[Any]() for partition in self._spans}
        heads: list[tuple[int, int, TopicPartition]] = []  # of each partition its next record's time
        for partition in self._spans:
            await self._advance(partition, waiting[partition], heads)
        batch: list[Any] = []
        while heads:
            partition = heapq.heappop(heads)[2]
            batch.append(waiting[partition].popleft())
            await self._advance(partition, waiting[partition], heads)
            if len(batch) == AT_ONCE:
                self._read += len(batch)
                yield batch
                batch = []
        self._read += len(batch)
        yield batch

    async def _advance(
        self, partition: TopicPartition, waiting: "deque[Any]", heads: list[tuple[int, int, TopicPartition]]
    ) -> None:
        """Put a partition's next record among the heads, unless it has come to its end."""
        end = self._spans[partition].stop
        while not waiting and await self._consumer.position(partition) < end:
            found = await fetched(self._consumer, partition)
            waiting.extend(record for record in found.get(partition, ()) if record.offset < end)
        if waiting:
            heapq.heappush(heads, (waiting[0].timestamp, partition.partition, partition))
