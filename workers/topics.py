"""The five topics: create them, or check those that exist."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiokafka.admin import NewPartitions, NewTopic
from aiokafka.errors import for_code

from workers.errors import ConfigurationError, DependencyUnavailable
from workers.kafka_client import admin_client, connected
from workers.kafka_inspect import Topic, describe_topics
from workers.settings import Settings

DELETE_RETENTION_MS = 7 * 86_400_000
MAX_MESSAGE_BYTES = 1_100_000  # a value of 1,000,000 bytes, its key and headers
TOPIC_ALREADY_EXISTS = 36
SETTLE_S = 10
ITEM_UPDATES = "item-updates"
EXACT = ("cleanup.policy", "message.timestamp.type")
AT_LEAST = ("max.message.bytes", "min.insync.replicas", "delete.retention.ms")


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one topic: created, ok, grown, or differs (with the reason and what to do)."""

    topic: str
    result: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Difference:
    """A configuration entry that must be another, and the command that makes it so."""

    name: str
    line: str
    todo: str


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
    """Create what is missing, grow what has too few partitions, report what differs. Idempotent.

    `item-updates` never grows: its items live in partitions, and each would come through another one from then on.
    """
    expected = expected_configs(settings)
    admin = admin_client(settings)
    async with connected(settings, admin):
        existing = await describe_topics(admin, expected)
        missing = [topic for topic in expected if topic not in existing]
        made = {topic: "created" for topic in missing if await _create(admin, settings, topic, expected[topic])}
        if missing:
            existing = await _settled(admin, settings, dict.fromkeys(expected, 1))
        small = {name: topic.partitions for name, topic in existing.items() if topic.partitions < settings.partitions}
        kept = small.pop(settings.topic(ITEM_UPDATES), None)
        for topic in small:
            await _grow(admin, topic, settings.partitions)
            made[topic] = "grown"
        if small:
            existing = await _settled(admin, settings, dict.fromkeys(small, settings.partitions))
    findings = []
    for topic in expected:
        differing = differences(settings, topic, existing[topic].configs or {})
        detail = f"from {small[topic]} to {settings.partitions} partitions" if topic in small else ""
        if topic == settings.topic(ITEM_UPDATES) and kept is not None:
            detail = f"stays at {kept} partitions: known items would come through another one"
        if differing:
            findings.append(Finding(topic, "differs", f"{differing[0].line}: {differing[0].todo}"))
        else:
            findings.append(Finding(topic, made.get(topic, "ok"), detail))
    return findings


async def partition_count(settings: Settings, topic: str) -> int:
    """How many partitions a topic has."""
    admin = admin_client(settings)
    async with connected(settings, admin):
        described = await admin.describe_topics([topic])
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


async def _settled(admin: Any, settings: Settings, partitions: Mapping[str, int]) -> dict[str, Topic]:
    """All topics, once the broker shows these with that many partitions: it learns late what its controller did."""
    for _ in range(SETTLE_S * 20):
        existing = await describe_topics(admin, expected_configs(settings))
        if all(name in existing and existing[name].partitions >= count for name, count in partitions.items()):
            return existing
        await asyncio.sleep(0.05)
    raise DependencyUnavailable("kafka", f"the topics are not to be seen {SETTLE_S} s after they were made")


def differences(settings: Settings, topic: str, found: Mapping[str, str]) -> list[Difference]:
    """What a topic's configuration is and must not be. Pure; what a broker does not tell is no difference."""
    expected = expected_configs(settings)[topic]
    result = []
    for name in (*EXACT, *AT_LEAST):  # the rest is the operator's to choose
        want, have = expected.get(name), found.get(name)
        if want is None or have is None or (have == want if name in EXACT else int(have) >= int(want)):
            continue
        must = "must be" if name in EXACT else "must be at least"
        todo = alter_command(settings, topic, f"{name}={want}")
        result.append(Difference(name, f"{name} is {have}, {must} {want}", todo))
    return result


def alter_command(settings: Settings, topic: str, entry: str) -> str:
    """The command of Kafka's own tools that sets an entry `name=value` of a topic's configuration."""
    command = f"kafka-configs --alter --entity-type topics --entity-name {topic} --add-config {entry}"
    login = "" if settings.kafka_security_protocol == "PLAINTEXT" else " --command-config client.properties"
    return f"{command} --bootstrap-server {settings.kafka_bootstrap}{login}"
