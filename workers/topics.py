"""The five topics: create them, or check those that exist."""

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
EXACT = ("cleanup.policy", "message.timestamp.type")
AT_LEAST = ("max.message.bytes", "min.insync.replicas")


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
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap)
    try:
        await admin.start()
        existing = await _describe(admin, settings)
        findings = []
        for topic, config in expected_configs(settings).items():
            if topic not in existing:
                findings.append(await _create(admin, settings, topic, config))
                continue
            partitions, found = existing[topic]
            finding = _compare(topic, config, found)
            if partitions < settings.partitions:
                grown = await _grow(admin, topic, partitions, settings.partitions)
                finding = grown if finding.result == "ok" else finding
            findings.append(finding)
    except KafkaError as error:
        raise DependencyUnavailable("kafka", f"{settings.kafka_bootstrap}: {error}") from error
    finally:
        await admin.close()
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
        finding = _compare(topic, config, existing[topic][1])
        if finding.result != "ok":
            raise ConfigurationError(f"topic {topic}: {finding.detail}")


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


async def _create(admin: Any, settings: Settings, topic: str, config: Mapping[str, str]) -> Finding:
    new = NewTopic(topic, settings.partitions, settings.replication_factor, topic_configs=dict(config))
    response = await admin.create_topics([new])  # does not raise: the error stands in the response
    code, message = response.topic_errors[0][1], response.topic_errors[0][2]
    if code not in (0, TOPIC_ALREADY_EXISTS):
        raise ConfigurationError(f"topic {topic} cannot be created: {message or for_code(code).__name__}")
    return Finding(topic, "created" if code == 0 else "ok")


async def _grow(admin: Any, topic: str, partitions: int, wanted: int) -> Finding:
    response = await admin.create_partitions({topic: NewPartitions(wanted)})
    code, message = response.topic_errors[0][1], response.topic_errors[0][2]
    if code != 0:
        raise ConfigurationError(f"topic {topic} cannot grow: {message or for_code(code).__name__}")
    return Finding(topic, "grown", f"from {partitions} to {wanted} partitions")


async def _describe(admin: Any, settings: Settings) -> dict[str, tuple[int, dict[str, str]]]:
    """Existing topics of ours: name -> (partitions, configuration)."""
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


def _compare(topic: str, expected: Mapping[str, str], found: Mapping[str, str]) -> Finding:
    for name in (*EXACT, *AT_LEAST):  # the rest is the operator's to choose
        want, have = expected[name], found.get(name, "")
        if (name in EXACT and have != want) or (name in AT_LEAST and int(have or 0) < int(want)):
            must = "must be" if name in EXACT else "must be at least"
            todo = f"kafka-configs --alter --entity-type topics --entity-name {topic} --add-config {name}={want}"
            return Finding(topic, "differs", f"{name} is {have}, {must} {want}: {todo}")
    return Finding(topic, "ok")
