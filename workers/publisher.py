"""Sends messages in record batches through a worker's idempotent producer, and waits until the replicas have them."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import msgspec
import structlog
from aiokafka.errors import (
    InvalidProducerEpoch,
    KafkaError,
    OutOfOrderSequenceNumber,
    ProducerFenced,
    UnknownTopicOrPartitionError,
)
from aiokafka.partitioner import murmur2

from workers.errors import DependencyTimeout, DependencyUnavailable
from workers.transport import MAX_REQUEST_BYTES, end_process, producer_of

RECORD_OVERHEAD_BYTES = 64
FATAL_FOR_PRODUCER = (OutOfOrderSequenceNumber, ProducerFenced, InvalidProducerEpoch)

log = structlog.get_logger()


class Outgoing(msgspec.Struct, frozen=True, gc=False):
    """A message to send. Without a partition the key decides, as in every Kafka client; without either, chance."""

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    partition: int | None = None

    def size_bytes(self) -> int:
        """An upper bound of its size in a record batch."""
        size_bytes = len(self.key or b"") + len(self.value or b"") + RECORD_OVERHEAD_BYTES
        for name, value in self.headers:
            size_bytes += len(name.encode()) + len(value or b"") + 10
        return size_bytes


class Publisher:
    """Sends messages in record batches through the app's idempotent producer."""

    def __init__(self, app: Any, timeout_ms: int) -> None:
        self._app = app
        self._timeout_s = timeout_ms / 1000

    async def send(self, topic: str, messages: Sequence[Outgoing]) -> list[int]:
        """Send all and wait until every in-sync replica has them; returns positions of messages too large to send.

        Sizes are measured before: a batch that the broker refuses would poison the idempotent producer. Raises
        DependencyUnavailable or DependencyTimeout; some messages may have been sent then.
        """
        refused = [n for n, message in enumerate(messages) if message.size_bytes() > MAX_REQUEST_BYTES]
        if len(refused) == len(messages):
            return refused
        if refused:
            skipped = set(refused)
            messages = [message for n, message in enumerate(messages) if n not in skipped]
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._send(messages, topic)
        except FATAL_FOR_PRODUCER:
            log.exception("the producer lost its sequence; ending without a commit", topic=topic)
            end_process()
        except TimeoutError as error:
            raise DependencyTimeout("kafka", f"{topic}: not acknowledged in {self._timeout_s:.0f} s") from error
        except KafkaError as error:
            raise DependencyUnavailable("kafka", f"{topic}: {type(error).__name__}: {error}") from error
        return refused

    async def _send(self, messages: Sequence[Outgoing], topic: str) -> None:
        producer = producer_of(self._app)
        partitions = sorted(await producer.partitions_for(topic))
        if not partitions:
            raise UnknownTopicOrPartitionError(topic)
        routed: dict[int, list[Outgoing]] = {}
        for message in messages:
            partition = message.partition
            if partition is None:
                number = random.getrandbits(31) if message.key is None else murmur2(message.key) & 0x7FFFFFFF
                partition = partitions[number % len(partitions)]
            routed.setdefault(partition, []).append(message)
        deliveries = []
        for partition, batch in routed.items():
            builder = producer.create_batch()
            for message in batch:
                if not _append(builder, message):
                    deliveries.append(await producer.send_batch(builder, topic, partition=partition))
                    builder = producer.create_batch()
                    _append(builder, message)
            deliveries.append(await producer.send_batch(builder, topic, partition=partition))
        await asyncio.gather(*deliveries)


def _append(builder: Any, message: Outgoing) -> bool:
    """Whether the message fitted into the record batch."""
    headers = list(message.headers) if message.headers else []
    return builder.append(timestamp=None, key=message.key, value=message.value, headers=headers) is not None
