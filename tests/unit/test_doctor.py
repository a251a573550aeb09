"""What the doctor makes of what servers say: every level, and what to do, without a server."""

from dataclasses import replace

import pytest
from pydantic import SecretStr

from workers import topics
from workers.doctor import clock, configuration, kafka, milvus, redis, start
from workers.doctor.findings import FAILING, Finding, Level, well
from workers.errors import ConfigurationError
from workers.index.milvus_inspect import Server
from workers.kafka_inspect import Cluster, Topic
from workers.settings import AGENT_KINDS, Settings
from workers.stores.inspect import Node, Unknown

SETTINGS = Settings()
REPLICATED = Settings(replication_factor=3, min_insync_replicas=2)
DAY_MS = 86_400_000
TOKEN = SecretStr("root:hunter2")
NODE = Node(
    address="10.0.0.1:6379",
    product="Redis 7.0.15",
    version=(7, 0),
    clustered=False,
    replica=False,
    loading=False,
    used_memory=50_000_000,
    maxmemory=0,
    policy="noeviction",
    aof=True,
    aof_written=True,
    snapshot_written=True,
    save="",
    fsync="everysec",
)


def configs_of(settings: Settings, name: str, **changes: str) -> dict[str, str]:
    return topics.expected_configs(settings)[name] | {key.replace("_", "."): value for key, value in changes.items()}


def cluster(settings: Settings, replicas: int = 1, **changed: Topic) -> Cluster:
    """A healthy cluster, but for the topics in `changed` (`_` for `-`)."""
    names = topics.expected_configs(settings)
    healthy = {name: Topic(4, replicas, replicas, 0, configs_of(settings, name)) for name in names}
    return Cluster("4.1 or later", replicas, healthy | {name.replace("_", "-"): t for name, t in changed.items()})


def judged(settings: Settings, found: Cluster) -> list[Finding]:
    return kafka.judge(settings, found, kafka.topic_names(settings, AGENT_KINDS))


def concerns(findings: list[Finding]) -> list[tuple[Level, str]]:
    return [(finding.level, str(finding)) for finding in findings if finding.level is not Level.OK]


def test_a_healthy_replicated_cluster_is_well() -> None:
    findings = judged(REPLICATED, cluster(REPLICATED, 3))
    assert concerns(findings) == []
    assert findings[0].line == "Kafka 4.1 or later at 127.0.0.1:9092, 3 brokers"
    assert findings[1].line == "topic user-activity: 4 partitions, 3 replicas, 3 in sync, clean-up delete"
    assert len(findings) == 6


def test_one_broker_is_one_note() -> None:
    [(level, line)] = concerns(judged(SETTINGS, cluster(SETTINGS)))
    assert level is Level.NOTE
    assert line.startswith("one replica of every topic")


def test_a_worker_is_judged_by_its_own_topics() -> None:
    assert kafka.topic_names(SETTINGS, ["activity"]) == ["user-activity", "recall-dead-letters"]
    assert kafka.topic_names(SETTINGS, AGENT_KINDS) == list(topics.expected_configs(SETTINGS))
    bad = cluster(
        SETTINGS, item_updates=Topic(4, 1, 1, 0, configs_of(SETTINGS, "item-updates", cleanup_policy="delete"))
    )
    assert well(kafka.judge(SETTINGS, bad, kafka.topic_names(SETTINGS, ["activity"])))
    assert not well(kafka.judge(SETTINGS, bad, kafka.topic_names(SETTINGS, ["items"])))


@pytest.mark.parametrize(
    ("name", "changes", "level", "line"),
    [
        ("item-updates", {"cleanup_policy": "delete"}, Level.UNSAFE, "cleanup.policy is delete, must be compact"),
        ("item-updates", {"cleanup_policy": "compact,delete"}, Level.UNSAFE, "must be compact"),
        ("user-activity", {"cleanup_policy": "compact"}, Level.UNSAFE, "cleanup.policy is compact, must be delete"),
        ("recall-requests", {"message_timestamp_type": "CreateTime"}, Level.UNSAFE, "must be LogAppendTime"),
        ("recall-candidates", {"max_message_bytes": "1000"}, Level.WRONG, "must be at least 1100000"),
        ("user-activity", {"unclean_leader_election_enable": "true"}, Level.UNSAFE, "unclean.leader.election.enable"),
        ("user-activity", {"retention_ms": "-1"}, Level.UNSAFE, "an event that outlives its record counts twice"),
        ("user-activity", {"retention_ms": str(90 * DAY_MS)}, Level.UNSAFE, "counts twice"),
        ("user-activity", {"retention_ms": "60000"}, Level.WARNING, "may go before they are read"),
        ("recall-dead-letters", {"retention_ms": "60000"}, Level.WARNING, "may go before they are read"),
        ("user-activity", {"retention_bytes": "1000000"}, Level.WARNING, "retention.bytes is 1000000"),
        ("item-updates", {"delete_retention_ms": "604799999"}, Level.UNSAFE, "must be at least 604800000 (who is away"),
        ("item-updates", {"min_insync_replicas": "2"}, Level.WRONG, "nothing can be written"),
    ],
)
def test_an_entry_of_a_topics_configuration(name: str, changes: dict[str, str], level: Level, line: str) -> None:
    found = cluster(SETTINGS)
    found.topics[name] = Topic(4, 1, 1, 0, configs_of(SETTINGS, name, **changes))
    [told] = [(how, text) for how, text in concerns(judged(SETTINGS, found)) if how is not Level.NOTE]
    assert told[0] is level
    assert told[1].startswith(f"topic {name}: ")
    assert line in told[1]
    entry = next(iter(changes)).replace("_", ".")
    assert f"; kafka-configs --alter --entity-type topics --entity-name {name} --add-config {entry}=" in told[1]
    assert told[1].endswith(" --bootstrap-server 127.0.0.1:9092")


@pytest.mark.parametrize(
    ("settings", "topic", "level", "line"),
    [
        (REPLICATED, Topic(4, 3, 2, 0, None), Level.WARNING, "2 of 3 replicas in sync"),
        (REPLICATED, Topic(4, 3, 1, 0, {"min.insync.replicas": "2"}), Level.DOWN, "nothing can be written"),
        (REPLICATED, Topic(4, 3, 3, 1, None), Level.DOWN, "1 of 4 partitions have no leader"),
        (REPLICATED, Topic(4, 3, 3, 0, {"min.insync.replicas": "1"}), Level.UNSAFE, "must be at least 2"),
        (Settings(replication_factor=3), Topic(4, 3, 3, 0, None), Level.UNSAFE, "but min.insync.replicas is 1"),
        (Settings(replication_factor=2), Topic(4, 2, 2, 0, None), Level.WARNING, "but min.insync.replicas is 1"),
        (REPLICATED, Topic(4, 2, 2, 0, {"min.insync.replicas": "2"}), Level.WARNING, "2 replicas, the setting says 3"),
        (
            REPLICATED,
            Topic(2, 3, 3, 0, {"min.insync.replicas": "2"}),
            Level.WARNING,
            "2 partitions, the setting says 4",
        ),
        (REPLICATED, Topic(4, 3, 3, 0, None), Level.WARNING, "its configuration may not be read"),
    ],
)
def test_replicas_and_partitions(settings: Settings, topic: Topic, level: Level, line: str) -> None:
    findings = judged(settings, cluster(settings, 3, user_activity=topic))
    told = [str(finding) for finding in findings if finding.level is level and "topic user-activity" in finding.line]
    assert any(line in text for text in told), findings


@pytest.mark.parametrize(
    ("name", "level", "todo"),
    [
        ("item-updates", Level.NOTE, "it keeps them: items live in them"),
        ("recall-requests", Level.WARNING, "`recall topics apply` adds them"),
    ],
)
def test_more_partitions_are_not_for_items(name: str, level: Level, todo: str) -> None:
    found = cluster(SETTINGS)
    found.topics[name] = Topic(2, 1, 1, 0, configs_of(SETTINGS, name))
    assert (level, f"topic {name}: 2 partitions, the setting says 4; {todo}") in concerns(judged(SETTINGS, found))


def test_a_topic_that_is_missing() -> None:
    found = cluster(SETTINGS)
    del found.topics["item-updates"]
    told = concerns(judged(SETTINGS, found))
    assert (Level.WRONG, "topic item-updates does not exist; `recall topics apply` creates it") in told


def test_a_healthy_redis_is_well() -> None:
    [finding] = redis.judge(SETTINGS, [NODE])
    assert (finding.level, finding.todo) == (Level.OK, "")
    assert finding.line == "Redis 7.0.15 at 10.0.0.1:6379, 50 MB used, noeviction, append-only file"


@pytest.mark.parametrize(
    ("node", "level", "line"),
    [
        (replace(NODE, maxmemory=100_000_000, policy="allkeys-lru"), Level.UNSAFE, "deletes records when its 100 MB"),
        (replace(NODE, maxmemory=100_000_000, policy="volatile-ttl"), Level.UNSAFE, "maxmemory-policy volatile-ttl"),
        (replace(NODE, policy="allkeys-lru"), Level.WARNING, "would delete records if maxmemory were set"),
        (replace(NODE, maxmemory=52_000_000), Level.WARNING, "nearly full, 50 MB of 52 MB"),
        (replace(NODE, aof=False, save=""), Level.UNSAFE, "writes nothing to disk"),
        (replace(NODE, aof=False, save=None), Level.WARNING, "does not tell whether it takes snapshots"),
        (replace(NODE, aof=False, save="3600 1"), Level.WARNING, "takes snapshots alone (save 3600 1)"),
        (replace(NODE, fsync="no"), Level.WARNING, "appendfsync no"),
        (replace(NODE, aof_written=False), Level.DOWN, "cannot write its append-only file"),
        (replace(NODE, version=(6, 0), product="Redis 6.0.9"), Level.WRONG, "Redis 6.0.9 at 10.0.0.1:6379 is older"),
        (replace(NODE, replica=True), Level.DOWN, "is a replica"),
        (replace(NODE, loading=True), Level.DOWN, "is loading its data"),
        (replace(NODE, clustered=True), Level.WRONG, "set redis_cluster = true"),
        (Unknown("10.0.0.2:6379", "no answer in time"), Level.DOWN, "10.0.0.2:6379, a node of the cluster"),
        (Unknown("10.0.0.2:6379", "NoPermissionError", refused=True), Level.WARNING, "does not tell its settings"),
    ],
)
def test_what_a_redis_says(node: Node | Unknown, level: Level, line: str) -> None:
    [(how, text)] = concerns(redis.judge(SETTINGS, [node]))
    assert how is level
    assert line in text
    assert "; " in text, "it says what to do"


def test_a_snapshot_that_fails_is_told_beside_the_missing_append_only_file() -> None:
    told = concerns(redis.judge(SETTINGS, [replace(NODE, aof=False, save="3600 1", snapshot_written=False)]))
    assert [level for level, _ in told] == [Level.WARNING, Level.WARNING]
    assert "cannot write its snapshots" in told[1][1]


def test_every_node_of_a_cluster_is_judged() -> None:
    node, settings = replace(NODE, clustered=True), Settings(redis_cluster=True)
    evicting = replace(node, address="10.0.0.3:6379", maxmemory=100_000_000, policy="allkeys-lfu")
    findings = redis.judge(settings, [node, replace(node, replica=True), evicting])
    assert [finding.level for finding in findings] == [Level.OK, Level.OK, Level.UNSAFE]
    assert "10.0.0.3" in findings[2].line
    assert redis.judge(settings, [NODE])[0].level is Level.WRONG


@pytest.mark.parametrize(
    ("server", "level"),
    [
        (Server("Milvus 2.3.5", (2, 3), ""), Level.OK),
        (Server("Milvus Lite 3.2.2", (), ""), Level.OK),
        (Server("Milvus 2.2.16", (2, 2), ""), Level.WRONG),
        (Server("Milvus 2.4.1", (2, 4), "querynode is down"), Level.DOWN),
    ],
)
def test_what_a_milvus_says(server: Server, level: Level) -> None:
    finding = milvus.judge(Settings(milvus_uri="http://user:hunter2@milvus:19530"), server)
    assert finding.level is level
    assert finding.line.startswith(f"{server.product} at http://user:***@milvus:19530")


@pytest.mark.parametrize(
    ("ahead_ms", "within_ms", "level"),
    [
        (3, 1, Level.OK),
        (-900, 1, Level.OK),
        (1500, 600, Level.OK),  # it may be 0.9 s
        (1500, 1, Level.WARNING),
        (-9000, 1, Level.WARNING),
        (10_500, 1, Level.WRONG),
        (-3_600_000, 1, Level.WRONG),
    ],
)
def test_a_clock(ahead_ms: float, within_ms: float, level: Level) -> None:
    finding = clock.judge("Redis at 10.0.0.1:6379", ahead_ms, within_ms)
    assert finding.level is level
    assert ("ahead of" in finding.line, "behind" in finding.line) == (
        level is not Level.OK and ahead_ms > 0,
        level is not Level.OK and ahead_ms < 0,
    )


UNSAFE = Finding("redis", Level.UNSAFE, "it forgets", "make it remember")


@pytest.mark.parametrize("level", [Level.OK, Level.NOTE, Level.WARNING, Level.DOWN])
def test_a_worker_starts_whatever_is_not_unsafe_or_wrong(level: Level) -> None:
    start.refuse(SETTINGS, [Finding("redis", level, "a line")])


def test_a_worker_does_not_start_on_what_is_unsafe_unless_it_is_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError) as raised:
        start.refuse(SETTINGS, [UNSAFE, replace(UNSAFE, line="it lies")])
    line = "unsafe: it forgets; make it remember (1 more: `recall doctor`); --allow-unsafe starts all the same"
    assert str(raised.value) == line
    start.refuse(Settings(allow_unsafe=True), [UNSAFE, replace(UNSAFE, line="it lies")])
    said = capsys.readouterr()
    assert (said.out + said.err).count("unsafe, and allowed") == 2


def test_what_is_wrong_never_starts() -> None:
    with pytest.raises(ConfigurationError, match=r"^it is no cluster; name one$"):
        start.refuse(
            Settings(allow_unsafe=True), [UNSAFE, Finding("redis", Level.WRONG, "it is no cluster", "name one")]
        )


def test_only_the_three_gravest_fail() -> None:
    assert [level for level in Level if not well([Finding("x", level, "")])] == sorted(FAILING, key=list(Level).index)


def test_names_that_are_no_settings_are_told_and_what_was_meant() -> None:
    environ = {
        "RECALL_REDIS_ULR": "redis://:secret99@x",
        "RECALL_REDIS_URL_FILE": "/x",
        "RECALL_CACHE_DIR": "/x",
        "RECALL_RESTARTS": "1",
        "RECALL_TEST_STACK": "/x",
        "RECALL_REDIS_SERVICE_HOST": "10.0.0.1",
        "RECALL_REDIS_PORT_6379_TCP_ADDR": "10.0.0.1",
        "PATH": "/bin",
    }
    toml = {"partitions": 4, "partitons": 8}
    assert configuration.unknown(environ | {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, toml) == [
        "RECALL_REDIS_ULR is no setting, did you mean RECALL_REDIS_URL?",
        "recall.toml: partitons is no setting, did you mean partitions?",
    ]
    assert len(configuration.unknown(environ, toml)) == 4, "outside Kubernetes such names are nobody else's"
    findings = configuration.judge(SETTINGS, environ, toml)
    assert {finding.level for finding in findings} == {Level.WARNING}
    assert "secret99" not in str(findings)


@pytest.mark.parametrize(
    ("settings", "level", "line"),
    [
        (Settings(allow_unsafe=True), Level.WARNING, "allow_unsafe is set"),
        (Settings(web_bind="10.0.0.5", web_port=8080), Level.NOTE, "served on 10.0.0.5"),
        (
            Settings(redis_url="redis://:hunter2@cache:6379"),
            Level.NOTE,
            "redis_url: a password or token travels to cache",
        ),
        (Settings(milvus_token=TOKEN, milvus_uri="http://m:1"), Level.NOTE, "milvus_token: a password"),
        (Settings(tower_token=TOKEN, tower_url="grpc://t:1"), Level.NOTE, "tower_token: a password"),
    ],
)
def test_settings_that_deserve_a_word(settings: Settings, level: Level, line: str) -> None:
    [(how, text)] = concerns(configuration.judge(settings, {}, {}))
    assert how is level
    assert line in text
    assert "hunter2" not in text


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        Settings(web_bind="10.0.0.5"),
        Settings(redis_url="redis://:hunter2@localhost:6379"),
        Settings(redis_url="rediss://:hunter2@cache:6379", milvus_token=TOKEN, milvus_uri="https://m:1"),
        Settings(tower_token=TOKEN, tower_url="grpcs://t:1"),
    ],
)
def test_settings_without_a_word(settings: Settings) -> None:
    assert concerns(configuration.judge(settings, {}, {})) == []
