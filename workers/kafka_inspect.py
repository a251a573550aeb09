"""What a Kafka cluster says of itself: its release, its topics with their replicas and configuration, its clocks."""

import asyncio
import time
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.admin import ApiVersionRequest

from workers.clock import Skew
from workers.errors import ConfigurationError, DependencyUnavailable
from workers.kafka_client import admin_client, connected
from workers.kafka_login import connection
from workers.settings import Settings

FETCH = 1  # the call whose versions tell releases apart
RELEASES = ((18, "4.1"), (17, "3.9"), (16, "3.7"), (15, "3.5"), (13, "3.1"), (12, "2.7"), (11, "2.3"))
RELEASE_WITHIN_MS = 3000
LOG_APPEND_TIME = 1
MAX_READ = 16  # partitions whose newest record is read
MAX_PROBED = 16  # brokers whose clock is measured
READ_WITHIN_MS = 1500
APPEARS_WITHIN_S = 3.0


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic. `replicas` and `in_sync` are those of the partition that has fewest; `configs` None: not allowed."""

    partitions: int
    replicas: int
    in_sync: int
    leaderless: int
    configs: Mapping[str, str] | None


@dataclass(frozen=True, slots=True)
class Cluster:
    """The cluster, and those of the topics asked for that exist. `release` is the oldest that it can be."""

    release: str
    brokers: int
    topics: dict[str, Topic]


async def inspect_cluster(settings: Settings, names: Collection[str]) -> Cluster:
    """Describe the cluster and these topics. Raises DependencyUnavailable."""
    admin = admin_client(settings)
    async with connected(settings, admin):
        described = await admin.describe_cluster()
        topics = await describe_topics(admin, names)
    return Cluster(await _release(settings), len(described["brokers"]), topics)


async def describe_topics(admin: Any, names: Collection[str]) -> dict[str, Topic]:
    """Those of the topics that exist; asking creates none. Raises KafkaError."""
    existing = sorted(set(await admin.list_topics()) & set(names))
    if not existing:
        return {}
    described = {topic["topic"]: topic["partitions"] for topic in await admin.describe_topics(existing)}
    configs: dict[str, Mapping[str, str] | None] = {}
    for response in await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in existing]):
        for error, _, _, name, entries in response.resources:
            configs[name] = None if error else {entry[0]: entry[1] for entry in entries}
    return {name: _topic(described[name], configs.get(name)) for name in existing}


def _topic(partitions: list[dict[str, Any]], configs: Mapping[str, str] | None) -> Topic:
    return Topic(
        partitions=len(partitions),
        replicas=min((len(partition["replicas"]) for partition in partitions), default=0),
        in_sync=min((len(partition["isr"]) for partition in partitions), default=0),
        leaderless=sum(partition["leader"] < 0 for partition in partitions),
        configs=configs,
    )


async def _release(settings: Settings) -> str:
    """No call tells the release; the newest version of a call that the broker knows does so roughly."""
    client = AIOKafkaClient(**connection(settings), request_timeout_ms=RELEASE_WITHIN_MS)
    try:
        await client.bootstrap()
        response = await client.send(client.get_random_node(), ApiVersionRequest())
        newest = next((last for call, _, last in response.api_versions if call == FETCH), 0)
    except KafkaError:
        return ""
    finally:
        await client.close()
    return next((f"{release} or later" for version, release in RELEASES if newest >= version), "before 2.3")


async def newest_ahead_ms(settings: Settings, topics: Collection[str]) -> float | None:
    """How far the newest record that a broker stamped is ahead of our clock, ms; None when there is none.

    A record is always older than now: what is left above zero is a clock ahead of ours. Raises DependencyUnavailable.
    """
    admin = admin_client(settings)
    consumer = AIOKafkaConsumer(**connection(settings), max_partition_fetch_bytes=1)
    async with connected(settings, admin, consumer):
        found = await describe_topics(admin, topics)
        partitions = [TopicPartition(name, n) for name, topic in found.items() for n in range(topic.partitions)]
        ends = await consumer.end_offsets(partitions[:MAX_READ])
        begins = await consumer.beginning_offsets(partitions[:MAX_READ])
        filled = [partition for partition, end in ends.items() if end > begins[partition]]
        if not filled:
            return None
        consumer.assign(filled)
        for partition in filled:
            consumer.seek(partition, ends[partition] - 1)
        newest: list[float] = []
        stop_s = time.monotonic() + READ_WITHIN_MS / 1000
        while len(newest) < len(filled) and time.monotonic() < stop_s:
            read = await consumer.getmany(timeout_ms=200)
            records = [records[0] for records in read.values() if records]
            now_ms = time.time() * 1000
            newest += [record.timestamp - now_ms for record in records if record.timestamp_type == LOG_APPEND_TIME]
        return max(newest, default=None)


async def probe_clocks(settings: Settings) -> list[Skew]:
    """The brokers' clocks against ours: one record each, in a topic made for it and deleted again.

    Raises DependencyUnavailable, ConfigurationError when the topic may not be made.
    """
    admin = admin_client(settings)
    producer = AIOKafkaProducer(**connection(settings), acks=1)
    topic = settings.topic(f"recall-doctor-{uuid.uuid4().hex[:12]}")
    async with connected(settings, admin, producer):
        described = (await admin.describe_cluster())["brokers"]
        brokers = {broker["node_id"]: f"{broker['host']}:{broker['port']}" for broker in described}
        configs = {"message.timestamp.type": "LogAppendTime", "retention.ms": "3600000"}
        new = NewTopic(topic, min(len(brokers), MAX_PROBED), 1, topic_configs=configs)
        code, message = (await admin.create_topics([new])).topic_errors[0][1:3]
        if code:
            raise ConfigurationError(f"topic {topic} cannot be made: {message or for_code(code).__name__}")
        try:
            leaders = await _leaders(admin, topic)
            return [await _probe(producer, topic, partition, brokers[node]) for partition, node in leaders.items()]
        finally:
            await admin.delete_topics([topic])


async def _leaders(admin: Any, topic: str) -> dict[int, int]:
    """Partition -> the broker that leads it, once a new topic is to be seen: a broker learns late what was made."""
    stop_s = time.monotonic() + APPEARS_WITHIN_S
    while time.monotonic() < stop_s:
        if topic in await admin.list_topics():
            partitions = (await admin.describe_topics([topic]))[0]["partitions"]
            if partitions and all(partition["leader"] >= 0 for partition in partitions):
                return {partition["partition"]: partition["leader"] for partition in partitions}
        await asyncio.sleep(0.05)
    raise DependencyUnavailable("kafka", f"topic {topic} is not to be seen {APPEARS_WITHIN_S:g} s after it was made")


async def _probe(producer: Any, topic: str, partition: int, address: str) -> Skew:
    await producer.send_and_wait(topic, b"", partition=partition)  # connects
    before_s, start_s = time.time(), time.perf_counter()
    written = await producer.send_and_wait(topic, b"", partition=partition)
    took_s = time.perf_counter() - start_s
    ahead_ms = written.timestamp - (before_s + took_s / 2) * 1000
    return Skew(address, ahead_ms, took_s * 500 + 1)  # stamps are whole milliseconds
