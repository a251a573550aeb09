"""The five topics: create them, or check those that exist."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, for_code

from workers.errors import ConfigurationError, DependencyUnavailable
from workers.settings import Settings

DELETE_RETENTION_MS = 7 * 86_400_000
MAX_MESSAGE_BYTES = 1_100_000  # a value of 1,000,000 bytes, its key and headers
TOPIC_ALREADY_EXISTS = 36
SETTLE_S = 10
EXACT = ("cleanup.policy", "message.timestamp.type")
AT_LEAST = ("max.message.bytes", "min.insync.replicas")
Description = dict[str, tuple[int, dict[str, str]]]
"""Topic name -> its number of partitions and its configuration."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one topic: created, ok, grown, or differs (with the reason and what to do)."""

    topic: str
    result: str
    detail: str = ""


def expected_configs(settings: Settings) -> dict[str, dict[str, str]]:
    """Topic name -> its configuration. Topics take the broker's time, never a producer's."""
    common = {
        "message.timestamp.type": "LogAppendTime",
        "max.message.bytes": str(MAX_MESSAGE_BYTES),
        "min.insync.replicas": str(settings.min_insync_replicas),
    }
    activity = {"cleanup.policy": "delete", "retention.ms": str(settings.activity_retention_ms)}
    requests = {"cleanup.policy": "delete", "retention.ms": str(settings.requests_retention_ms)}
    items = {"cleanup.policy": "compact", "delete.retention.ms": str(DELETE_RETENTION_MS)}
    own = {
        "user-activity": activity,
        "recall-requests": requests,
        "recall-candidates": requests,
        "item-updates": items,
        "recall-dead-letters": activity,
    }
    return {settings.topic(name): common | config for name, config in own.items()}


async def apply(settings: Settings) -> list[Finding]:
    """Create what is missing, grow what has too few partitions, report what differs. Idempotent."""
    expected = expected_configs(settings)
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap)
    try:
        await admin.start()
        existing = await _describe(admin, settings)
        missing = [topic for topic in expected if topic not in existing]
        made = {topic: "created" for topic in missing if await _create(admin, settings, topic, expected[topic])}
        if missing:
            existing = await _settled(admin, settings, 1)
        small = {topic: count for topic, (count, _) in existing.items() if count < settings.partitions}
        for topic in small:
            await _grow(admin, topic, settings.partitions)
            made[topic] = "grown"
        if small:
            existing = await _settled(admin, settings, settings.partitions)
    except KafkaError as error:
        raise DependencyUnavailable("kafka", f"{settings.kafka_bootstrap}: {error}") from error
    finally:
        await admin.close()
    findings = []
    for topic, config in expected.items():
        difference = _difference(topic, config, existing[topic][1])
        detail = f"from {small[topic]} to {settings.partitions} partitions" if topic in small else ""
        findings.append(
            Finding(topic, "differs", difference) if difference else Finding(topic, made.get(topic, "ok"), detail)
        )
    return findings


async def check(settings: Settings) -> None:
    """Raise ConfigurationError when a topic is missing or has an unsafe configuration."""
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap)
    try:
        await admin.start()
        existing = await _describe(admin, settings)
    except KafkaError as error:
        raise DependencyUnavailable("kafka", f"{settings.kafka_bootstrap}: {error}") from error
    finally:
        await admin.close()
    for topic, config in expected_configs(settings).items():
        if topic not in existing:
            raise ConfigurationError(f"topic {topic} does not exist; `recall topics apply` creates it")
        difference = _difference(topic, config, existing[topic][1])
        if difference:
            raise ConfigurationError(f"topic {topic}: {difference}")


async def partition_count(settings: Settings, topic: str) -> int:
    """How many partitions a topic has."""
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap)
    try:
        await admin.start()
        described = await admin.describe_topics([topic])
    except KafkaError as error:
        raise DependencyUnavailable("kafka", f"{settings.kafka_bootstrap}: {error}") from error
    finally:
        await admin.close()
    count = len(described[0]["partitions"])
    if count == 0:
        raise ConfigurationError(f"topic {topic} does not exist; `recall topics apply` creates it")
    return count


async def _create(admin: Any, settings: Settings, topic: str, config: Mapping[str, str]) -> bool:
    """False when it exists already: somebody else has just made it."""
    new = NewTopic(topic, settings.partitions, settings.replication_factor, topic_configs=dict(config))
    response = await admin.create_topics([new])  # does not raise: the error stands in the response
    code, message = response.topic_errors[0][1], response.topic_errors[0][2]
    if code not in (0, TOPIC_ALREADY_EXISTS):
        raise ConfigurationError(f"topic {topic} cannot be created: {message or for_code(code).__name__}")
    return bool(code == 0)


async def _grow(admin: Any, topic: str, partitions: int) -> None:
    response = await admin.create_partitions({topic: NewPartitions(partitions)})
    code, message = response.topic_errors[0][1], response.topic_errors[0][2]
    if code != 0:
        raise ConfigurationError(f"topic {topic} cannot grow: {message or for_code(code).__name__}")


async def _settled(admin: Any, settings: Settings, partitions: int) -> Description:
    """All topics, once the broker shows them with that many partitions: it learns late what its controller did."""
    for _ in range(SETTLE_S * 20):
        existing = await _describe(admin, settings)
        if len(existing) == len(expected_configs(settings)) and min(n for n, _ in existing.values()) >= partitions:
            return existing
        await asyncio.sleep(0.05)
    raise DependencyUnavailable("kafka", f"the topics are not to be seen {SETTLE_S} s after they were made")


async def _describe(admin: Any, settings: Settings) -> Description:
    """Those of our topics that exist."""
    names = set(await admin.list_topics()) & expected_configs(settings).keys()
    if not names:
        return {}
    partitions = {topic["topic"]: len(topic["partitions"]) for topic in await admin.describe_topics(sorted(names))}
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in sorted(names)]
    configs: dict[str, dict[str, str]] = {}
    for response in await admin.describe_configs(resources):
        for resource in response.resources:
            configs[resource[3]] = {entry[0]: entry[1] for entry in resource[4]}
    return {name: (partitions[name], configs[name]) for name in names}


def _difference(topic: str, expected: Mapping[str, str], found: Mapping[str, str]) -> str:
    """What is unsafe about a topic and what to do; empty when nothing is."""
    for name in (*EXACT, *AT_LEAST):  # the rest is the operator's to choose
        want, have = expected[name], found.get(name, "")
        if (name in EXACT and have != want) or (name in AT_LEAST and int(have or 0) < int(want)):
            must = "must be" if name in EXACT else "must be at least"
            todo = f"kafka-configs --alter --entity-type topics --entity-name {topic} --add-config {name}={want}"
            return f"{name} is {have}, {must} {want}: {todo}"
    return ""
