"""Kafka beside the stream of a worker: connect within seconds, produce in bulk, how far behind a consumer group is."""

import asyncio
import copy
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.consumer.fetcher import READ_UNCOMMITTED
from aiokafka.errors import (
    GroupCoordinatorNotAvailableError,
    KafkaConnectionError,
    KafkaError,
    MessageSizeTooLargeError,
)

from workers import kafka_patches
from workers.errors import ConfigurationError, DependencyUnavailable, InvalidInput
from workers.kafka_login import connection, refusal
from workers.settings import Settings

Message = tuple[bytes | None, bytes | None, Sequence[tuple[str, bytes]]]
"""Key, value, headers."""

MAX_IN_MEMORY = 4096
ANSWERS_WITHIN_S = 5.0  # the client library's own patience is 40 s
STOPS_WITHIN_S = 5.0
ASK_AGAIN_S = 0.1
ADMIN_TIMEOUT_MS = 15_000
READ_COMMITTED = "read_committed"
LOOKS_AHEAD_S = 2.0
LOOKS_AHEAD_BYTES = 65_536  # of each partition at a time: one record is enough


@asynccontextmanager
async def connected(settings: Settings, *clients: Any) -> AsyncIterator[None]:
    """Start clients of aiokafka, and stop them in the end.

    Raises DependencyUnavailable when no broker answers in 5 s or lets us in, and in place of every error of Kafka.
    """
    kafka_patches.apply()
    try:
        async with AsyncExitStack() as opened:
            for client in clients:
                opened.push_async_callback(_stop, client)
            async with asyncio.timeout(ANSWERS_WITHIN_S):
                for client in clients:
                    await client.start()
            yield
    except (KafkaConnectionError, TimeoutError) as error:
        raise await _no_answer(settings) from error
    except KafkaError as error:
        raise DependencyUnavailable("kafka", f"{settings.kafka_bootstrap}: {error or type(error).__name__}") from error


def admin_client(settings: Settings) -> Any:
    """A client for topics, groups and their settings, to be made inside a running event loop."""
    return AIOKafkaAdminClient(**connection(settings), request_timeout_ms=ADMIN_TIMEOUT_MS)


def producer_client(settings: Settings) -> AIOKafkaProducer:
    """A producer whose records are acknowledged by all in-sync replicas, to be made inside a running event loop."""
    return AIOKafkaProducer(
        **connection(settings),
        acks="all",
        enable_idempotence=True,
        linger_ms=5,
        max_batch_size=262_144,
        max_request_size=1_100_000,
    )


def reader_client(settings: Settings, **options: Any) -> AIOKafkaConsumer:
    """A consumer without a group: it reads from the earliest record on, and commits nothing.

    Like the workers it reads what transactions have committed; a partition ends for it where the first open one begins.
    """
    return AIOKafkaConsumer(
        **connection(settings),
        group_id=None,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        isolation_level=READ_COMMITTED,
        **options,
    )


def no_answer(settings: Settings) -> DependencyUnavailable:
    """What every command says when no broker answers."""
    return DependencyUnavailable("kafka", f"{settings.kafka_bootstrap} does not answer; is the stack up?")


async def _no_answer(settings: Settings) -> DependencyUnavailable:
    """The same, or why we are not let in; that takes 3 s at most."""
    why = None if settings.kafka_security_protocol == "PLAINTEXT" else await refusal(settings)
    return no_answer(settings) if why is None else DependencyUnavailable("kafka", why)


async def _stop(client: Any) -> None:
    """Stop a client, started or not; one whose broker has gone would wait for it."""
    with suppress(KafkaError, TimeoutError):
        async with asyncio.timeout(STOPS_WITHIN_S):
            await (client.close() if isinstance(client, AIOKafkaAdminClient) else client.stop())
    task = asyncio.current_task()
    if task is not None and task.cancelling():  # aiokafka keeps a cancellation to itself that comes while it closes
        raise asyncio.CancelledError


async def produce(
    settings: Settings,
    topic: str,
    messages: Iterable[Message],
    acknowledged: Callable[[int], None] = lambda _: None,
) -> int:
    """Send messages, routed by key, and return how many once all in-sync replicas have them.

    `acknowledged` is told of each, in order: the time at which the broker took it, epoch ms.
    Raises ConfigurationError for an unknown topic, InvalidInput for a message that is too large, DependencyUnavailable.
    """
    producer = producer_client(settings)
    sent = 0
    await require_topics(settings, topic)
    async with connected(settings, producer):
        try:
            pending: list[Any] = []
            for key, value, headers in messages:
                pending.append(await producer.send(topic, key=key, value=value, headers=list(headers)))
                sent += 1
                if len(pending) >= MAX_IN_MEMORY:
                    await _delivered(pending, acknowledged)
            await _delivered(pending, acknowledged)
        except MessageSizeTooLargeError as error:
            raise InvalidInput("value_too_large", f"message {sent + 1} is larger than a broker takes") from error
    return sent


async def _delivered(pending: list[Any], acknowledged: Callable[[int], None]) -> None:
    """Wait for deliveries, and empty the list of them."""
    for future in pending:
        acknowledged((await future).timestamp)
    pending.clear()


async def require_topics(settings: Settings, *topics: str) -> None:
    """Raise ConfigurationError when one does not exist: a client would wait for it and log instead."""
    admin = admin_client(settings)
    async with connected(settings, admin):
        existing = await admin.list_topics()
    for topic in topics:
        if topic not in existing:
            raise ConfigurationError(f"topic {topic} does not exist; `recall topics apply` creates it")


async def end_offsets(settings: Settings, topic: str) -> dict[int, int]:
    """Partition -> the offset that its next record will have. Raises DependencyUnavailable."""
    admin, consumer = admin_client(settings), reader_client(settings)
    async with connected(settings, admin, consumer):
        (described,) = await admin.describe_topics([topic])
        partitions = [TopicPartition(topic, entry["partition"]) for entry in described["partitions"]]
        return {place.partition: end for place, end in (await log_ends(consumer, partitions)).items()}


async def history_ends(settings: Settings, group: str, topic: str) -> dict[int, int]:
    """Partition -> the offset before which a group has done everything; the end where it has committed nothing.

    The end too where it has committed more than there is, because the topic was made anew. Raises
    DependencyUnavailable, also where the broker does not say in 5 s what was committed.
    """
    admin, consumer = admin_client(settings), reader_client(settings)
    async with connected(settings, admin, consumer):
        (described,) = await admin.describe_topics([topic])
        partitions = [TopicPartition(topic, entry["partition"]) for entry in described["partitions"]]
        async with asyncio.timeout(ANSWERS_WITHIN_S):
            done = await _committed(admin, group, partitions)
        ends, log = await consumer.end_offsets(partitions), await log_ends(consumer, partitions)
    return {place.partition: min(log[place], done[place]) if done[place] >= 0 else ends[place] for place in partitions}


async def _committed(admin: Any, group: str, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
    """Offsets, -1 = nothing. Asks until the broker tells: one that has just started leaves out what it has not read."""
    while True:
        with suppress(GroupCoordinatorNotAvailableError):  # a broker that no group has ever asked
            found = await admin.list_consumer_group_offsets(group, partitions=partitions)
            if found.keys() >= set(partitions):
                return {place: found[place].offset for place in partitions}
        await asyncio.sleep(ASK_AGAIN_S)


async def group_lag(settings: Settings, group: str, topic: str) -> int:
    """Records of a topic that a group has not committed yet: its whole content when the group never committed."""
    return (await group_standing(settings, group, topic))[0]


async def group_standing(settings: Settings, group: str, topic: str) -> tuple[int, int]:
    """The same, and the sum of its committed offsets, which rises while records are taken in."""
    admin, consumer = admin_client(settings), ahead_client(settings)
    async with connected(settings, admin, consumer):
        described = await admin.describe_topics([topic])
        partitions = [TopicPartition(topic, entry["partition"]) for entry in described[0]["partitions"]]
        try:
            offsets = await admin.list_consumer_group_offsets(group, partitions=partitions)
        except GroupCoordinatorNotAvailableError:  # a broker that no group has ever asked
            offsets = {}
        committed = {partition: entry.offset for partition, entry in offsets.items() if entry.offset >= 0}
        stands = await consumer.beginning_offsets(partitions) | committed
        ends = await log_ends(consumer, partitions)
        stands = await moved_ahead(consumer, stands, ends)
    return sum(max(0, ends[partition] - stands[partition]) for partition in partitions), sum(committed.values())


async def log_ends(consumer: Any, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
    """Offsets behind the last records, those of open transactions too: `end_offsets` stops at the first of these."""
    fetcher = copy.copy(consumer._fetcher)
    fetcher._isolation_level = READ_UNCOMMITTED
    ends: dict[TopicPartition, int] = await fetcher.end_offsets(partitions, consumer._request_timeout_ms)
    return ends


def ahead_client(settings: Settings) -> AIOKafkaConsumer:
    """A consumer for `moved_ahead`."""
    return reader_client(settings, max_partition_fetch_bytes=LOOKS_AHEAD_BYTES)


async def moved_ahead(
    consumer: AIOKafkaConsumer, stands: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int]
) -> dict[TopicPartition, int]:
    """Where groups stand, moved to the end of each partition that has nothing more to read.

    No consumer is handed the marker behind a transaction, nor what was aborted, so none can commit them. A group
    stands where it did if brokers give nothing for two seconds.
    """
    moved, unsure = dict(stands), {place for place in ends if stands[place] < ends[place]}
    if unsure:
        consumer.assign(list(unsure))
    for place in unsure:
        consumer.seek(place, stands[place])
    at, stop_s = dict(stands), time.monotonic() + LOOKS_AHEAD_S
    while unsure and time.monotonic() < stop_s:
        unsure -= (await consumer.getmany(*unsure, timeout_ms=20, max_records=len(unsure))).keys()
        for place in list(unsure):
            before, at[place] = at[place], await consumer.position(place)
            if at[place] != before:
                stop_s = time.monotonic() + LOOKS_AHEAD_S
            if at[place] >= ends[place]:
                moved[place] = ends[place]
                unsure.discard(place)
    return moved
