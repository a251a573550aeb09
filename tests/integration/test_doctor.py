"""`recall doctor` on real servers: well, unsafe, down and wrong; workers do not start on what is unsafe.

Longer than 400 lines because it is one matrix of situations over the same servers: a finding that is added or reworded
changes its row here and the counts of others, and all rows share the fixtures that make a server unsafe.
"""

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from models.bundle import Bundle
from tests.backends.ours import OurServer
from tests.conftest import PATIENT_MS, Stack
from tests.contract.conftest import redis_cluster_url  # noqa: F401  # a fixture
from workers import topics, views
from workers.doctor import bundle as bundle_check
from workers.doctor import redis as redis_check
from workers.doctor import start
from workers.doctor.examine import examine
from workers.doctor.findings import Finding, Level
from workers.errors import ConfigurationError
from workers.index.milvus_collection import prepare_index
from workers.index.schema import Collection
from workers.kafka_client import admin_client, connected, produce
from workers.local.process import end, free_ports, spawn
from workers.local.redis import find_server
from workers.local.workers import environment
from workers.scenes import SceneSettings
from workers.settings import AGENT_KINDS, Settings
from workers.stores.connect import connect

READY_WITHIN_S = 60.0
ENDS_WITHIN_S = 60.0  # it takes about 7 s when nothing answers; a busy machine is no finding
IN_TIME_WITHIN_S = 120.0
GONE_WITHIN_S = 30.0
LATE = ("no answer in", "does not answer")
REDIS_CLOCK, KAFKA_CLOCK = "the clock of Redis at", "the clock of Kafka at"
SAFE = {"appendonly": "yes", "save": ""}
EVICTING = SAFE | {"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"}
PASSWORD = "planted-passw0rd"  # noqa: S105  # of servers of these tests
TOKEN = "root:planted-t0ken"  # noqa: S105

StartRedis = Callable[[dict[str, str]], str]


@pytest.fixture
def settings(healthy: Settings) -> Settings:
    return healthy


@pytest.fixture
def start_redis(tmp_path: Path) -> Iterator[StartRedis]:
    """Starts a Redis server of the test's own with these options; returns its URL."""
    processes = []

    def started(options: dict[str, str]) -> str:
        [port] = free_ports(1)
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        folder = tmp_path / f"redis-{port}"
        argv = [find_server()[0], "--port", str(port), "--bind", "127.0.0.1", *arguments]
        processes.append(spawn(argv, tmp_path / f"{port}.log", folder))
        stop = time.monotonic() + READY_WITHIN_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                assert time.monotonic() < stop, (tmp_path / f"{port}.log").read_text()
                time.sleep(0.02)
            else:
                password = f":{options['requirepass']}@" if "requirepass" in options else ""
                return f"redis://{password}127.0.0.1:{port}/0"

    yield started
    for process in processes:
        end(process, 10.0)


@dataclass(frozen=True)
class Told:
    """What one run of the command said."""

    code: int
    output: str
    error: str

    @property
    def report(self) -> dict[str, Any]:
        return json.loads(self.output)

    def findings(self, level: Level) -> list[str]:
        return [f"{each['line']}; {each['todo']}" for each in self.report["findings"] if each["level"] == level]


def recall(settings: Settings, *arguments: str, cwd: Path, **variables: str) -> Told:
    argv = [sys.executable, "-m", "workers.cli.main", *arguments]
    env = {name: value for name, value in os.environ.items() if not name.startswith("RECALL_")}
    env |= environment(settings) | {"PYTHONPATH": str(Path(__file__).parents[2])} | variables
    done = subprocess.run(argv, env=env, cwd=cwd, capture_output=True, text=True, timeout=100)
    return Told(done.returncode, done.stdout, done.stderr)


def in_time(said: str, lines: Sequence[str], late: Sequence[str] = LATE) -> bool:
    """Whether these lines are told, and no server took longer than it has: of late clocks nothing is said at all."""
    return all(line in said for line in lines) and not any(words in said for words in late)


def doctor(settings: Settings, *arguments: str, cwd: Path, lines: Sequence[str] = (), **variables: str) -> Told:
    """What the command says once every server has answered in time."""
    end_s = time.monotonic() + IN_TIME_WITHIN_S
    while not in_time((done := recall(settings, "doctor", *arguments, cwd=cwd, **variables)).output, lines):
        assert time.monotonic() < end_s, done
    return done


async def examined(settings: Settings, *lines: str, probe: bool = False, late: Sequence[str] = LATE) -> list[Finding]:
    """Likewise, without the command."""
    end_s = time.monotonic() + IN_TIME_WITHIN_S
    while not in_time(str(findings := await examine(settings, probe=probe)), lines, late):
        assert time.monotonic() < end_s, findings
    return findings


def changed(settings: Settings, **values: Any) -> Settings:
    return Settings(**(settings.model_dump(include=settings.model_fields_set) | values))


def levels(findings: list[Finding], check: str) -> list[Level]:
    return [finding.level for finding in findings if finding.check == check]


def told(findings: list[Finding], level: Level) -> list[str]:
    return [str(finding) for finding in findings if finding.level is level]


async def collected(settings: Settings, bundle: Bundle, **differing: Any) -> None:
    """Make the bundle's collection, or one of its name that differs."""
    wanted = {"dim": bundle.dim, "metric": bundle.metric, "model_version": bundle.version} | differing
    index = await prepare_index(settings, Collection(settings.collection(bundle.version), **wanted), 100)
    await index.close()


def test_a_healthy_system_is_well(settings: Settings, packed: Bundle, tmp_path: Path) -> None:
    asyncio.run(collected(settings, packed))
    done = doctor(settings, "--json", "--probe", cwd=tmp_path, lines=(REDIS_CLOCK, KAFKA_CLOCK))
    assert (done.code, done.report["ok"]) == (0, True), done
    said = " | ".join(done.findings(Level.OK))
    for line in (
        f"topic {settings.topic('item-updates')}: 4 partitions, 1 replica, 1 in sync, clean-up compact",
        "noeviction, append-only file",
        "Milvus 2.",
        f"{packed.version} in {packed.path}: 32 dimensions, metric {packed.metric}, spec",
        f"collection {settings.collection(packed.version)} matches the bundle: FLAT, 0 items",
        REDIS_CLOCK,
        KAFKA_CLOCK,
    ):
        assert line in said
    assert [line.partition(":")[0] for line in done.findings(Level.NOTE)] == ["one replica of every topic"]
    assert done.findings(Level.WARNING) == []
    text = doctor(settings, cwd=tmp_path, lines=(REDIS_CLOCK, "no record yet tells its clock"))
    assert (text.code, text.error) == (0, "")
    assert text.output.splitlines()[-1].startswith("all well: 2 note, ")
    assert "\x1b" not in text.output, "colours are for terminals"


async def test_the_probe_leaves_no_topic_behind(settings: Settings) -> None:
    await examined(settings, KAFKA_CLOCK, probe=True)
    admin = admin_client(settings)
    async with connected(settings, admin), asyncio.timeout(GONE_WITHIN_S):  # a broker learns late what was deleted
        while [name for name in await admin.list_topics() if name.startswith(settings.topic("recall-doctor"))]:
            await asyncio.sleep(0.05)


async def test_the_newest_record_tells_a_clock_that_is_ahead(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await produce(settings, settings.topic("recall-requests"), [(b"u", b"{}", [])])
    await examined(settings, "Kafka's newest record is not from our future")
    real = time.time
    monkeypatch.setattr("workers.kafka_inspect.time.time", lambda: real() - 3600)
    findings = await examined(settings, KAFKA_CLOCK, late=())  # with that clock every call to Milvus is late
    ahead = told(findings, Level.WRONG)
    assert any("Kafka" in line and "s ahead of ours" in line for line in ahead), ahead


async def test_redis_clock_is_compared(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    monkeypatch.setattr("workers.stores.inspect.time.time", lambda: real() + 5)
    behind = [line for line in told(await examined(settings, REDIS_CLOCK), Level.WARNING) if "Redis" in line]
    assert len(behind) == 1
    [seconds] = re.findall(r"is ([\d.]+) s behind ours", behind[0])
    assert float(seconds) == pytest.approx(5, abs=2), "as near as the servers' answers were quick"


@pytest.fixture
def evicting(settings: Settings, packed: Bundle, start_redis: StartRedis) -> Settings:
    settings = changed(settings, redis_url=start_redis(EVICTING))
    asyncio.run(views.activate(settings, packed.path, packed.version))
    return settings


def test_an_evicting_redis_fails_the_doctor_and_stops_a_worker(evicting: Settings, tmp_path: Path) -> None:
    done = doctor(evicting, "--json", cwd=tmp_path)
    assert (done.code, done.report["ok"]) == (1, False)
    [line] = done.findings(Level.UNSAFE)
    assert "deletes records when its 105 MB are full (maxmemory-policy allkeys-lru)" in line
    assert "maxmemory-policy noeviction" in line
    assert done.error.startswith("recall: not well: 1 unsafe, ")
    for kind in AGENT_KINDS:
        stopped = recall(evicting, "worker", kind, cwd=tmp_path)
        refusals = [line for line in stopped.error.splitlines() if line.startswith("recall: ")]
        assert (stopped.code, len(refusals)) == (2, 1), stopped.error
        assert refusals[0].startswith("recall: unsafe: ")
        assert "deletes records" in refusals[0]
        assert refusals[0].endswith("; --allow-unsafe starts all the same")


def test_allowed_workers_start_on_it_and_say_so(evicting: Settings, tmp_path: Path) -> None:
    env = os.environ | environment(evicting)
    argv = [sys.executable, "-m", "workers.cli.main", "worker", "all", "--allow-unsafe"]
    supervisor = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    logs = [evicting.data_dir / "logs" / f"{evicting.namespace}-worker-{kind}.log" for kind in AGENT_KINDS]
    try:
        for log in logs:
            stop = time.monotonic() + READY_WITHIN_S
            while not log.exists() or '"worker ready"' not in log.read_text():
                assert supervisor.poll() is None, supervisor.communicate()
                assert time.monotonic() < stop, log.read_text() if log.exists() else log
                time.sleep(0.1)
            warnings = [json.loads(line) for line in log.read_text().splitlines() if "unsafe, and allowed" in line]
            assert len(warnings) == 1
            assert "deletes records" in warnings[0]["finding"]
            assert warnings[0]["level"] == "warning"
    finally:
        end(supervisor, 20.0)  # type: ignore[arg-type]


async def test_a_redis_without_persistence(settings: Settings, start_redis: StartRedis) -> None:
    forgets = changed(settings, redis_url=start_redis({"save": ""}))
    [line] = told(await redis_check.check(forgets), Level.UNSAFE)
    assert "writes nothing to disk" in line
    with pytest.raises(ConfigurationError, match="writes nothing to disk"):
        await start.check_redis(forgets)
    await start.check_redis(changed(forgets, allow_unsafe=True))
    snapshots = changed(settings, redis_url=start_redis({"save": "3600 1"}))
    [line] = told(await redis_check.check(snapshots), Level.WARNING)
    assert "takes snapshots alone (save 3600 1)" in line
    await start.check_redis(snapshots)


async def test_a_redis_that_forbids_questions_is_a_warning(settings: Settings, start_redis: StartRedis) -> None:
    """As managed servers do with CONFIG, and strict access lists with INFO."""
    url = start_redis(SAFE)
    client = connect(changed(settings, redis_url=url))
    await client.execute_command("ACL", "SETUSER", "strict", "on", f">{PASSWORD}", "~*", "+@all", "-config")
    strict = changed(settings, redis_url=url.replace("redis://", f"redis://strict:{PASSWORD}@"))
    assert [finding.level for finding in await redis_check.check(strict)] == [Level.OK]
    await client.execute_command("CONFIG", "SET", "appendonly", "no")
    [line] = told(await redis_check.check(strict), Level.WARNING)
    assert "does not tell whether it takes snapshots" in line
    await client.execute_command("ACL", "SETUSER", "strict", "-info")
    [line] = told(await redis_check.check(strict), Level.WARNING)
    assert "does not tell its settings" in line
    await start.check_redis(strict)
    await client.aclose()


async def test_every_node_of_a_redis_cluster_is_asked(
    settings: Settings,
    redis_cluster_url: str,  # noqa: F811
) -> None:
    patient = {"store_timeout_ms": PATIENT_MS}
    clustered = changed(settings, redis_url=redis_cluster_url, redis_cluster=True, **patient)
    client = connect(clustered)
    await client.initialize()
    nodes = client.get_nodes()
    for node in nodes:
        await client.execute_command("CONFIG SET", "appendonly", "yes", target_nodes=node)
    findings = await examined(clustered, *(f"{REDIS_CLOCK} {node.name}" for node in nodes))
    assert levels(findings, "redis") == [Level.OK] * 3
    assert sum(finding.line.startswith(REDIS_CLOCK) for finding in findings) == 3
    await client.execute_command("CONFIG SET", "maxmemory", "100mb", target_nodes=nodes[1])
    await client.execute_command("CONFIG SET", "maxmemory-policy", "allkeys-lru", target_nodes=nodes[1])
    await client.aclose()
    [line] = told(await redis_check.check(clustered), Level.UNSAFE)
    assert nodes[1].name in line
    [line] = told(await redis_check.check(changed(clustered, redis_cluster=False)), Level.WRONG)
    assert line.endswith("is a node of a cluster; set redis_cluster = true")
    [line] = told(await redis_check.check(changed(settings, redis_cluster=True)), Level.WRONG)
    assert "is no cluster; set redis_cluster = false" in line


async def test_a_topic_with_another_clean_up_policy(settings: Settings) -> None:
    topic = settings.topic("item-updates")
    admin = admin_client(settings)
    async with connected(settings, admin):
        wrong = topics.expected_configs(settings)[topic] | {"cleanup.policy": "delete"}
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, wrong)])
    [line] = told(await examined(settings), Level.UNSAFE)
    assert line.startswith(f"topic {topic}: cleanup.policy is delete, must be compact (records that are still needed")
    assert (
        f"kafka-configs --alter --entity-type topics --entity-name {topic} --add-config cleanup.policy=compact" in line
    )
    with pytest.raises(ConfigurationError, match="must be compact"):
        await start.check_kafka(settings, ["items"])
    await start.check_kafka(changed(settings, allow_unsafe=True), ["items"])
    await start.check_kafka(settings, ["activity"])
    await start.check_kafka(settings, ["recall"])


@pytest.mark.parametrize(
    ("setting", "address", "check"),
    [
        ("kafka_bootstrap", "127.0.0.1:{}", "kafka"),
        ("redis_url", "redis://127.0.0.1:{}/0", "redis"),
        ("milvus_uri", "http://127.0.0.1:{}", "milvus"),
    ],
)
async def test_a_backend_that_is_down_is_one_finding_and_the_others_are_checked(
    settings: Settings, setting: str, address: str, check: str
) -> None:
    away = changed(settings, **{setting: address.format(free_ports(1)[0])})
    findings = await examined(away, late=LATE[:1])
    [line] = told(findings, Level.DOWN)
    assert away.shown(setting) in line
    assert line.endswith(f"; start it, or set {setting}")
    assert levels(findings, check) == [Level.DOWN]
    for other in {"kafka", "redis", "milvus"} - {check}:
        assert Level.OK in levels(findings, other)
    assert not told(findings, Level.WRONG)


@pytest.mark.parametrize(
    ("setting", "value", "check"),
    [
        ("redis_url", "cache:6379", "redis"),
        ("redis_url", f"redis://:{PASSWORD}@cache:port/0", "redis"),
        ("milvus_uri", f"http://root:{PASSWORD}@[milvus", "milvus"),
        ("milvus_uri", f"ftp://root:{PASSWORD}@milvus", "milvus"),
        ("milvus_uri", "http://milvus:port", "milvus"),
    ],
)
def test_an_address_that_is_none_is_wrong(
    settings: Settings, tmp_path: Path, setting: str, value: str, check: str
) -> None:
    done = recall(changed(settings, **{setting: value}), "doctor", "--json", cwd=tmp_path)
    assert (done.code, done.error.count("\n")) == (1, 1)
    assert PASSWORD not in done.output + done.error
    wrong = [each for each in done.report["findings"] if each["level"] == Level.WRONG]
    assert check in {each["check"] for each in wrong}
    assert any(each["line"].startswith(f"{setting}: ") for each in wrong), wrong


def test_it_ends_when_nothing_answers(settings: Settings, tmp_path: Path) -> None:
    silent = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    kafka, redis, milvus = (server.getsockname()[1] for server in silent)
    mute = changed(
        settings,
        kafka_bootstrap=f"127.0.0.1:{kafka}",
        redis_url=f"redis://127.0.0.1:{redis}/0",
        milvus_uri=f"http://127.0.0.1:{milvus}",
    )
    before_s = time.monotonic()
    done = recall(mute, "doctor", "--json", "--probe", cwd=tmp_path)
    assert time.monotonic() - before_s < ENDS_WITHIN_S
    for server in silent:
        server.close()
    assert done.code == 1
    assert len(done.findings(Level.DOWN)) == 3
    assert done.error.count("\n") == 1


@pytest.mark.parametrize(
    ("differing", "line"),
    [
        ({"dim": 16}, "has dimension 16, the bundle needs 32"),
        ({"model_version": "other-1"}, "has model version other-1, the bundle needs "),
        ({"metric": "L2"}, "has metric L2, the bundle needs "),
    ],
)
async def test_a_collection_of_another_bundle(
    settings: Settings, packed: Bundle, differing: dict[str, Any], line: str
) -> None:
    await collected(settings, packed, **differing)
    findings = await bundle_check.check(settings)
    assert [finding.level for finding in findings] == [Level.OK, Level.WRONG]
    assert line in findings[1].line
    assert findings[1].todo


async def test_a_collection_that_is_not_there_yet_is_a_note(settings: Settings) -> None:
    findings = await bundle_check.check(settings)
    assert [finding.level for finding in findings] == [Level.OK, Level.NOTE]
    assert findings[1].todo == "the items worker makes it"


async def test_bundles_that_cannot_be_served(settings: Settings, packed: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(packed.path, copy)
    await views.activate(settings, copy, "another-version")
    [finding] = await bundle_check.check(settings)
    assert (finding.level, "the active one is another-version" in finding.line) == (Level.WRONG, True)
    (copy / "user_tower.onnx").write_bytes(b"other")
    [finding] = await bundle_check.check(settings)
    assert (finding.level, "checksum differs" in finding.line) == (Level.WRONG, True)
    none = changed(settings, namespace=f"{settings.namespace}_none")
    [finding] = await bundle_check.check(none)
    assert (finding.level, finding.todo) == (Level.WRONG, "make one: recall model fit --data movielens-1m")


async def test_towers_behind_a_model_server(settings: Settings, packed: Bundle) -> None:
    server = OurServer(packed)
    url = f"http://127.0.0.1:{server.rest_port}"
    remote = settings.model_copy(update={"tower": "kserve", "tower_url": url})
    finding, *_ = await bundle_check.check(remote)
    assert (finding.level, finding.todo) == (Level.DOWN, "start the model server, or set tower_url")
    assert url in finding.line
    server.start()
    try:
        finding, *_ = await bundle_check.check(remote)
        assert finding.level is Level.OK
        finding, *_ = await bundle_check.check(remote.model_copy(update={"tower_item_model": "user_tower"}))
        assert (finding.level, finding.todo) == (Level.WRONG, bundle_check.EXPORT)
    finally:
        server.stop()


async def test_a_scene_that_does_not_fit_the_bundle_is_wrong(settings: Settings) -> None:
    scenes = {"home": SceneSettings(at_most={"seller": 3})}
    findings = await bundle_check.check(settings.model_copy(update={"scenes": scenes}))
    wrong = [finding.line for finding in findings if finding.level is Level.WRONG]
    assert wrong == ["setting scenes.home.at_most: 'seller' is not [filterable] in the bundle"]
    assert not [finding for finding in await bundle_check.check(settings) if finding.level is Level.WRONG]


async def test_a_bundle_that_waits_to_be_active_is_told(settings: Settings, packed: Bundle) -> None:
    away = changed(settings, redis_url=f"redis://127.0.0.1:{free_ports(1)[0]}/0")
    await views.activate(away, packed.path, packed.version)
    waits, unknown = await bundle_check.check(away)
    assert (waits.level, waits.todo) == (Level.NOTE, "`recall up` or `recall model activate` makes it active")
    assert packed.version in waits.line
    assert (unknown.level, "Redis, which does not answer" in unknown.line) == (Level.NOTE, True)


@pytest.mark.parametrize("up", [True, False])
def test_secrets_are_never_shown(settings: Settings, start_redis: StartRedis, tmp_path: Path, up: bool) -> None:
    url = start_redis(SAFE | {"requirepass": PASSWORD})
    port = free_ports(1)[0]
    if not up:
        url = f"redis://:{PASSWORD}@127.0.0.1:{port}/0?password={PASSWORD}"
    milvus = settings.milvus_uri.replace("http://", f"http://root:{PASSWORD}@")
    milvus = milvus if up else f"http://root:{PASSWORD}@127.0.0.1:{port}"
    secret = changed(settings, redis_url=url, milvus_uri=milvus, milvus_token=TOKEN)
    for options in (["--json"], []):
        done = recall(secret, "doctor", *options, cwd=tmp_path, RECALL_SECRET=PASSWORD)
        said = done.output + done.error
        for planted in (PASSWORD, TOKEN, TOKEN.partition(":")[2]):
            assert planted not in said
        assert "redis://:***@127.0.0.1:" in said
        assert "RECALL_SECRET is no setting" in said
    shown = {
        each["name"]: each["value"] for each in recall(secret, "doctor", "--json", cwd=tmp_path).report["settings"]
    }
    assert list(shown.values()).count("***") == 1


def test_every_setting_is_shown_with_where_it_comes_from(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "recall.toml").write_text("partitions = 2\nindex_eff = 3\n")
    (tmp_path / "token").write_text(TOKEN)
    variables = {"RECALL_MILVUS_TOKEN_FILE": str(tmp_path / "token"), "RECALL_INDEX_EFF": "9"}
    done = doctor(settings, "--json", cwd=tmp_path, **variables)
    shown = {each["name"]: (each["value"], each["source"]) for each in done.report["settings"]}
    assert list(shown) == list(Settings.model_fields)
    assert shown["partitions"] == ("2", "recall.toml")
    assert shown["namespace"] == (settings.namespace, "environment RECALL_NAMESPACE")
    assert shown["milvus_token"] == ("***", "file RECALL_MILVUS_TOKEN_FILE")
    assert shown["index_ef"] == ("200", "default")
    assert sorted(done.findings(Level.WARNING)) == [
        "RECALL_INDEX_EFF is no setting, did you mean RECALL_INDEX_EF?; correct or remove it, it changes nothing",
        "recall.toml: index_eff is no setting, did you mean index_ef?; correct or remove it, it changes nothing",
    ]
    assert (done.code, done.report["ok"]) == (0, True)


def test_settings_that_cannot_be_read_are_a_matter_of_usage(settings: Settings, tmp_path: Path) -> None:
    done = recall(settings, "doctor", cwd=tmp_path, RECALL_PARTITIONS="none")
    assert (done.code, done.output) == (2, "")
    assert done.error.startswith("recall: setting partitions: ")


def test_addresses_of_the_local_stack_are_named_as_such(stack: Stack, tmp_path: Path) -> None:
    told_by = recall(Settings(data_dir=stack.data_dir), "doctor", "--json", cwd=tmp_path)
    shown = {each["name"]: (each["value"], each["source"]) for each in told_by.report["settings"]}
    assert shown["kafka_bootstrap"] == (stack.kafka_bootstrap, "local stack")
    assert shown["milvus_uri"] == (stack.milvus_uri, "local stack")
