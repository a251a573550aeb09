"""Sends messages in record batches through a worker's idempotent producer, and waits until the replicas have them."""

import asyncio
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
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

from workers.ending import end_process
from workers.errors import DependencyTimeout, DependencyUnavailable
from workers.transport import MAX_REQUEST_BYTES, producer_of

RECORD_OVERHEAD_BYTES = 64
HEADER_OVERHEAD_BYTES = 10
FATAL_FOR_PRODUCER = (OutOfOrderSequenceNumber, ProducerFenced, InvalidProducerEpoch)

log = structlog.get_logger()


def header_bytes(name: str, value: bytes | None) -> int:
    """An upper bound of a header's size in a record."""
    return len(name.encode()) + len(value or b"") + HEADER_OVERHEAD_BYTES


class Outgoing(msgspec.Struct, frozen=True, gc=False):
    """A message to send. Without a partition the key decides, as in every Kafka client; without either, chance."""

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    partition: int | None = None

    def size_bytes(self) -> int:
        """An upper bound of its size in a record batch."""
        size_bytes = len(self.key or b"") + len(self.value or b"") + RECORD_OVERHEAD_BYTES
        return size_bytes + sum(header_bytes(name, value) for name, value in self.headers)


class Publisher:
    """Sends messages in record batches through the app's idempotent producer."""

    def __init__(self, app: Any, timeout_ms: int) -> None:
        self._app = app
        self._timeout_s = timeout_ms / 1000

    async def send(self, topic: str, messages: Sequence[Outgoing]) -> list[int]:
        """Send all and wait until every in-sync replica has them; returns positions of messages too large to send.

        Those are found out before anything of them is sent: a record batch that the broker refuses would poison the
        idempotent producer. Raises DependencyUnavailable or DependencyTimeout; some messages may have been sent then.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._send(topic, messages)
        except FATAL_FOR_PRODUCER:
            log.exception("the producer lost its sequence; ending without a commit", topic=topic)
            end_process()
        except TimeoutError as error:
            raise DependencyTimeout("kafka", f"{topic}: not acknowledged in {self._timeout_s:.0f} s") from error
        except KafkaError as error:
            raise DependencyUnavailable("kafka", f"{topic}: {type(error).__name__}: {error}") from error

    async def _send(self, topic: str, messages: Sequence[Outgoing]) -> list[int]:
        producer = producer_of(self._app)
        partitions = sorted(await producer.partitions_for(topic))
        if not partitions:
            raise UnknownTopicOrPartitionError(topic)
        routed: defaultdict[int, list[Outgoing]] = defaultdict(list)
        for message in messages:
            partition = message.partition
            if partition is None:
                number = random.getrandbits(31) if message.key is None else murmur2(message.key) & 0x7FFFFFFF
                partition = partitions[number % len(partitions)]
            routed[partition].append(message)
        refused: list[Outgoing] = []
        deliveries = []
        for partition, of_partition in routed.items():
            deliveries += [
                await producer.send_batch(batch, topic, partition=partition)
                for batch in _record_batches(producer, of_partition, refused)
            ]
        await asyncio.gather(*deliveries)
        return [n for n, message in enumerate(messages) if message in refused] if refused else []


def partitions_known(app: Any, topic: str) -> int | None:
    """How many partitions a topic has that a started app sends to, as of the last `ask_broker`; None: not known yet."""
    known = producer_of(app).client.cluster.partitions_for_topic(topic)
    return len(known) if known else None


def _record_batches(producer: Any, messages: Sequence[Outgoing], refused: list[Outgoing]) -> Iterator[Any]:
    """Record batches of these messages, in order; those that no batch may hold are added to `refused`.

    A batch takes its first message whatever its size, and any other only while it stays within the batch limit.
    """
    builder = None
    for message in messages:
        headers = list(message.headers) if message.headers else []
        if builder is not None:
            if builder.append(timestamp=None, key=message.key, value=message.value, headers=headers) is not None:
                continue
            yield builder
        builder = producer.create_batch()
        builder.append(timestamp=None, key=message.key, value=message.value, headers=headers)
        if builder.size() > MAX_REQUEST_BYTES:
            refused.append(message)
            builder = None
    if builder is not None:
        yield builder
