"""Sends messages in record batches through a worker's idempotent producer, and waits until the replicas have them.

Each partition by itself: one that takes nothing keeps no message to another one waiting.
"""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, NamedTuple

import msgspec
import structlog
from aiokafka.errors import (
    InvalidProducerEpoch,
    KafkaError,
    OutOfOrderSequenceNumber,
    ProducerFenced,
    UnknownProducerId,
    UnknownTopicOrPartitionError,
)

from workers.ending import end_process
from workers.errors import DependencyTimeout, DependencyUnavailable
from workers.partitioner import partition_of
from workers.transport import MAX_REQUEST_BYTES, producer_of

RECORD_OVERHEAD_BYTES = 64
HEADER_OVERHEAD_BYTES = 10
KEPT_BYTES = 12_000  # of a message that waits, beside itself and what it answers: the objects of both
FATAL_FOR_PRODUCER = (OutOfOrderSequenceNumber, ProducerFenced, InvalidProducerEpoch, UnknownProducerId)

Told = Callable[[Sequence[int], bool], None]
"""Is told the positions of messages, and whether all in-sync replicas have them or they are too large to be sent."""

log = structlog.get_logger()


def header_bytes(name: str, value: bytes | None) -> int:
    """An upper bound of a header's size in a record."""
    return len(name.encode()) + len(value or b"") + HEADER_OVERHEAD_BYTES


def record_bytes(record: Any) -> int:
    """An upper bound of how large a record is that was read."""
    headers = sum(header_bytes(name, value) for name, value in record.headers)
    return len(record.key or b"") + len(record.value or b"") + headers


class Outgoing(msgspec.Struct, frozen=True, gc=False):
    """A message to send. Without a partition the key decides, as in every Kafka client; without either, chance.

    `answers_bytes` is how large the record is that is kept until the message is acknowledged.
    """

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    partition: int | None = None
    answers_bytes: int = 0

    def size_bytes(self) -> int:
        """An upper bound of its size in a record batch."""
        size_bytes = len(self.key or b"") + len(self.value or b"") + RECORD_OVERHEAD_BYTES
        return size_bytes + sum(header_bytes(name, value) for name, value in self.headers)


class _Message(NamedTuple):
    outgoing: Outgoing
    position: int
    told: Told

    def kept_bytes(self) -> int:
        """About how much memory it takes, with what it is an answer to."""
        return self.outgoing.size_bytes() + self.outgoing.answers_bytes + KEPT_BYTES


class Delivery:
    """Messages to one partition, in order. One that is too large is found out before it is sent.

    A record batch that the broker refuses would poison the idempotent producer.
    """

    def __init__(self, producer: Any, topic: str, partition: int, timeout_s: float) -> None:
        self.topic = topic
        self.partition = partition
        self._producer = producer
        self._timeout_s = timeout_s
        self._unsent: deque[_Message] = deque()
        self._sent: deque[tuple[asyncio.Future[Any], list[_Message]]] = deque()  # the producer's until it tells
        self.owed_bytes = 0  # of what is left, once it is counted

    def add(self, outgoing: Outgoing, position: int, told: Told) -> None:
        """One more message, behind the others."""
        self._unsent.append(_Message(outgoing, position, told))

    def join(self, other: "Delivery") -> None:
        """Take over another one's messages to the same partition; nobody may be finishing that one."""
        self._sent += other._sent
        self._unsent += other._unsent
        self.owed_bytes += other.size_bytes()

    @property
    def done(self) -> bool:
        """Whether nothing is left."""
        return not (self._sent or self._unsent)

    def size_bytes(self) -> int:
        """About how much memory everything that is left takes; one step for each message."""
        waiting = sum(message.kept_bytes() for message in self._unsent)
        return waiting + sum(each.kept_bytes() for _, taken in self._sent for each in taken)

    async def finish(self, within_s: float | None = None) -> None:
        """Send what is left, and wait until all in-sync replicas have it. Raises DependencyUnavailable and -Timeout.

        `within_s` is how long nothing may be acknowledged; `timeout_s` of the delivery unless it is given.

        May be cancelled or raise, and be called again: what the producer has taken is waited for and not sent a second
        time, unless the producer gives it up.
        """
        limit_s = self._timeout_s if within_s is None else within_s
        with _translated(self.topic, limit_s):
            async with asyncio.timeout(limit_s) as limit:
                while not self.done:
                    if self._unsent:
                        await self._send()
                    while self._sent and (self._sent[0][0].done() or not self._unsent):
                        await asyncio.wait([self._sent[0][0]])  # which leaves it alone when cancelled
                        self._settle(*self._sent.popleft())
                        limit.reschedule(asyncio.get_running_loop().time() + limit_s)

    async def _send(self) -> None:
        """The next record batch; waits until the producer has room for it."""
        batch, size = self._record_batch()
        if batch.size() > MAX_REQUEST_BYTES:
            self._tell([self._unsent.popleft()], acknowledged=False)
            return
        future = await self._producer.send_batch(batch, self.topic, partition=self.partition)
        self._sent.append((future, [self._unsent.popleft() for _ in range(size)]))

    def _record_batch(self) -> tuple[Any, int]:
        """The next record batch and how many messages are in it: the first whatever its size, others while they fit."""
        builder = self._producer.create_batch()
        size = 0
        for message in self._unsent:
            outgoing = message.outgoing
            headers = list(outgoing.headers) if outgoing.headers else []
            taken = builder.append(timestamp=None, key=outgoing.key, value=outgoing.value, headers=headers)
            if taken is None:
                break
            size += 1
        return builder, size

    def _settle(self, future: asyncio.Future[Any], messages: list[_Message]) -> None:
        try:
            future.result()
        except KafkaError:
            self._unsent.extendleft(reversed(messages))
            raise
        self._tell(messages, acknowledged=True)

    def _tell(self, messages: list[_Message], *, acknowledged: bool) -> None:
        if self.owed_bytes:
            self.owed_bytes -= sum(message.kept_bytes() for message in messages)
        for told, group in groupby(messages, key=lambda message: message.told):
            told([message.position for message in group], acknowledged)


class Publisher:
    """Sends messages in record batches through the app's idempotent producer, to each partition by itself."""

    def __init__(self, app: Any, timeout_ms: int) -> None:
        self._app = app
        self._timeout_s = timeout_ms / 1000

    async def send(self, topic: str, messages: Sequence[Outgoing]) -> list[int]:
        """Send all and wait until every in-sync replica has them; returns positions of messages too large to send.

        Raises DependencyUnavailable or DependencyTimeout; some messages may have been sent then.
        """
        refused: list[int] = []
        told = refusals(refused)
        await together([delivery.finish() for delivery in await self.deliveries(topic, messages, told)])
        return sorted(refused)

    async def deliveries(self, topic: str, messages: Sequence[Outgoing], told: Told) -> list[Delivery]:
        """One for each partition that they go to; nothing is sent yet. Raises DependencyUnavailable."""
        producer = producer_of(self._app)
        if producer is None:
            raise DependencyUnavailable("kafka", "this worker ends, and has closed its producer")
        with _translated(topic, self._timeout_s):
            partitions = sorted(await producer.partitions_for(topic))
            if not partitions:
                raise UnknownTopicOrPartitionError(topic)
        routed: dict[int, Delivery] = {}
        for position, message in enumerate(messages):
            partition = message.partition
            if partition is None:
                count, key = len(partitions), message.key
                chosen = random.randrange(count) if key is None else partition_of(key, count)  # noqa: S311
                partition = partitions[chosen]
            if partition not in routed:
                routed[partition] = Delivery(producer, topic, partition, self._timeout_s)
            routed[partition].add(message, position, told)
        return list(routed.values())


@contextmanager
def _translated(topic: str, limit_s: float) -> Iterator[None]:
    """Errors of the producer as ours; after one that is fatal for it the process ends without a commit."""
    try:
        yield
    except FATAL_FOR_PRODUCER:
        log.exception("the producer lost its sequence; ending without a commit", topic=topic)
        end_process()
    except TimeoutError as error:
        raise DependencyTimeout("kafka", f"{topic}: not acknowledged in {limit_s:.0f} s") from error
    except KafkaError as error:
        raise DependencyUnavailable("kafka", f"{topic}: {type(error).__name__}: {error}") from error


async def together(works: Sequence[Awaitable[None]]) -> None:
    """All of them at once; a single one without a task of its own."""
    if len(works) == 1:
        await works[0]
    else:
        await asyncio.gather(*works)


def refusals(into: list[int]) -> Told:
    """Keeps the positions of messages that are too large."""

    def told(positions: Sequence[int], acknowledged: bool) -> None:
        if not acknowledged:
            into.extend(positions)

    return told


async def ask_broker(app: Any) -> None:
    """One metadata request to any broker. Raises DependencyUnavailable when none answers; for a started app.

    Nothing is asked by one that is ending and has closed its producer.
    """
    producer = producer_of(app)
    if producer is not None and (sending := producer._sender.sender_task) is not None and sending.done():
        log.error("aiokafka has given up sending; ending without a commit")
        end_process()
    if producer is not None and not await producer.client.force_metadata_update():
        raise DependencyUnavailable("kafka", "no broker answers")


def partitions_known(app: Any, topic: str) -> int | None:
    """How many partitions a topic has that a started app sends to, as of the last `ask_broker`; None: not known yet."""
    producer = producer_of(app)
    known = None if producer is None else producer.client.cluster.partitions_for_topic(topic)
    return len(known) if known else None
