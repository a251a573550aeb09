"""The topics on a real broker: created, checked, grown, and refused where they would be unsafe."""

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from workers import topics
from workers.doctor import start
from workers.errors import ConfigurationError, DependencyUnavailable
from workers.local.process import free_ports
from workers.local.workers import environment
from workers.settings import AGENT_KINDS, Settings

NAMES = ("user-activity", "recall-requests", "recall-candidates", "item-updates", "recall-dead-letters")


@pytest.fixture
async def admin(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap)
    await client.start()
    yield client
    await client.delete_topics([settings.topic(name) for name in NAMES])
    await client.close()


async def create(admin: AIOKafkaAdminClient, topic: str, **configs: str) -> None:
    entries = {name.replace("_", "."): value for name, value in configs.items()}
    await admin.create_topics([NewTopic(topic, 4, 1, topic_configs=entries)])


async def config_of(admin: AIOKafkaAdminClient, topic: str) -> dict[str, str]:
    [response] = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    return {entry[0]: entry[1] for entry in response.resources[0][4]}


def results(findings: list[topics.Finding]) -> list[str]:
    return [finding.result for finding in findings]


async def test_apply_creates_all_and_again_finds_all_well(admin: AIOKafkaAdminClient, settings: Settings) -> None:
    assert results(await topics.apply(settings)) == ["created"] * 5
    assert results(await topics.apply(settings)) == ["ok"] * 5
    await start.check_kafka(settings, AGENT_KINDS)
    for name in NAMES:
        assert await topics.partition_count(settings, settings.topic(name)) == settings.partitions
        config = await config_of(admin, settings.topic(name))
        assert config["message.timestamp.type"] == "LogAppendTime"
        assert config["cleanup.policy"] == ("compact" if name == "item-updates" else "delete")
        assert int(config["max.message.bytes"]) > 1_000_000
    items = await config_of(admin, settings.topic("item-updates"))
    assert int(items["delete.retention.ms"]) == 7 * 86_400_000


async def test_partitions_grow_but_those_of_items_and_never_shrink(
    admin: AIOKafkaAdminClient, settings: Settings
) -> None:
    await topics.apply(settings)
    more = settings.model_copy(update={"partitions": 6})
    findings = {finding.topic: finding for finding in await topics.apply(more)}
    items = findings.pop(settings.topic("item-updates"))
    assert (items.result, items.detail) == (
        "ok",
        "stays at 4 partitions: known items would come through another one",
    )
    assert results(list(findings.values())) == ["grown"] * 4
    assert findings[settings.topic("user-activity")].detail == "from 4 to 6 partitions"
    for wanted in (more, settings):
        assert results(await topics.apply(wanted)) == ["ok"] * 5
    counts = {name: await topics.partition_count(settings, settings.topic(name)) for name in NAMES}
    assert counts == dict.fromkeys(NAMES, 6) | {"item-updates": 4}


@pytest.mark.parametrize(
    ("topic", "wrong", "why"),
    [
        ("item-updates", {"cleanup_policy": "delete"}, "cleanup.policy is delete, must be compact"),
        ("item-updates", {"cleanup_policy": "compact,delete"}, "cleanup.policy is compact,delete, must be compact"),
        ("user-activity", {"cleanup_policy": "compact"}, "cleanup.policy is compact, must be delete"),
        (
            "recall-requests",
            {"message_timestamp_type": "CreateTime"},
            "message.timestamp.type is CreateTime, must be LogAppendTime",
        ),
        (
            "recall-candidates",
            {"max_message_bytes": "1000"},
            "max.message.bytes is 1000, must be at least 1100000",
        ),
    ],
)
async def test_what_differs_is_told_with_what_to_do_and_no_worker_starts_on_it(
    admin: AIOKafkaAdminClient, settings: Settings, topic: str, wrong: dict[str, str], why: str
) -> None:
    name = settings.topic(topic)
    right = {
        "message_timestamp_type": "LogAppendTime",
        "cleanup_policy": "compact" if topic == "item-updates" else "delete",
        "max_message_bytes": "2000000",
    }
    await create(admin, name, **(right | wrong))
    findings = {finding.topic: finding for finding in await topics.apply(settings)}
    assert findings.pop(name).result == "differs"
    assert {finding.result for finding in findings.values()} == {"created"}
    with pytest.raises(ConfigurationError) as refused:
        await start.check_kafka(settings, AGENT_KINDS)
    assert why in str(refused.value)
    assert f"kafka-configs --alter --entity-type topics --entity-name {name}" in str(refused.value)


async def test_a_missing_topic_is_named(settings: Settings) -> None:
    with pytest.raises(ConfigurationError, match=r"topic \S+ does not exist; `recall topics apply` creates it"):
        await start.check_kafka(settings, AGENT_KINDS)
    with pytest.raises(ConfigurationError, match="does not exist"):
        await topics.partition_count(settings, settings.topic("item-updates"))


async def test_more_replicas_than_brokers_are_refused(settings: Settings) -> None:
    with pytest.raises(ConfigurationError, match="cannot be created"):
        await topics.apply(settings.model_copy(update={"replication_factor": 3}))


async def test_no_broker(settings: Settings) -> None:
    nowhere = settings.model_copy(update={"kafka_bootstrap": f"127.0.0.1:{free_ports(1)[0]}"})
    with pytest.raises(DependencyUnavailable, match=nowhere.kafka_bootstrap):
        await topics.apply(nowhere)


def recall(settings: Settings, *arguments: str) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-m", "workers.cli.main", *arguments]
    return subprocess.run(argv, env=os.environ | environment(settings), capture_output=True, text=True, timeout=60)


async def test_the_command_tells_every_topic_and_fails_when_one_differs(
    admin: AIOKafkaAdminClient, settings: Settings
) -> None:
    wrong = settings.topic("item-updates")
    await create(admin, wrong, cleanup_policy="delete", message_timestamp_type="LogAppendTime")
    done = recall(settings, "topics", "apply", "--json")
    told = {entry["topic"]: entry["result"] for entry in json.loads(done.stdout)["topics"]}
    assert told == {settings.topic(name): "created" for name in NAMES} | {wrong: "differs"}
    assert (done.returncode, done.stderr) == (1, f"recall: {wrong} must be changed before workers may use them\n")


async def test_the_command_says_one_line_when_kafka_is_away(settings: Settings) -> None:
    nowhere = settings.model_copy(update={"kafka_bootstrap": f"127.0.0.1:{free_ports(1)[0]}"})
    done = recall(nowhere, "topics", "apply")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"recall: kafka: {nowhere.kafka_bootstrap} does not answer")
    assert done.stderr.count("\n") == 1
