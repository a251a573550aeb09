"""The local stack as a user meets it: `recall up`, `status` and `down` on data folders of the test's own."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from aiokafka import AIOKafkaConsumer

from workers import kafka_client, topics
from workers.errors import RecallError
from workers.local.discover import of_own_stack, with_local_stack
from workers.local.kafka import VERSION, Kafka
from workers.local.process import free_ports, start_time
from workers.local.stack import cache_dir, wipe
from workers.local.state import ServiceState, StackState, read_state, running, write_state
from workers.settings import Settings, load_settings

GONE_WITHIN_S = 60.0


@dataclass(frozen=True)
class Home:
    """A data folder and the commands on it."""

    data_dir: Path

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        argv = [sys.executable, "-m", "workers.cli.main", *arguments]
        env = os.environ | {"RECALL_DATA_DIR": str(self.data_dir)}
        return subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def recall(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        child = self.start(*arguments)
        out, err = child.communicate(timeout=100)
        return subprocess.CompletedProcess(arguments, child.returncode, out, err)

    def state(self) -> StackState:
        state = running(self.data_dir)
        assert state is not None
        return state

    def settings(self) -> Settings:
        return with_local_stack(load_settings(data_dir=self.data_dir))

    def pids(self) -> dict[str, int]:
        return {name: service.pid for name, service in self.state().services.items()}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path / "data")
    yield home
    home.recall("down")


def wait_for(condition: Callable[[], object], within_s: float, what: str) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {within_s} s"
        time.sleep(0.02)


def working_directory(pid: Path) -> Path:
    try:
        return (pid / "cwd").readlink()
    except OSError:
        return pid


def gone(pids: dict[str, int]) -> bool:
    return not any(start_time(pid) for pid in pids.values())


async def write_data(settings: Settings) -> None:
    await topics.apply(settings)
    await kafka_client.produce(settings, settings.topic("item-updates"), [(b"i1", b"{}", [])])


async def read_data(settings: Settings) -> object:
    consumer = AIOKafkaConsumer(
        settings.topic("item-updates"), bootstrap_servers=settings.kafka_bootstrap, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        return (await asyncio.wait_for(consumer.getone(), 10)).value
    finally:
        await consumer.stop()


def test_up_is_found_again_and_down_keeps_data_and_ports(home: Home) -> None:
    both = [home.start("up", "-d", "--no-workers") for _ in range(2)]
    said = [child.communicate(timeout=100) for child in both]
    assert sorted(child.returncode for child in both) == [0, 1], said
    winner, loser = sorted(zip(both, said, strict=True), key=lambda pair: pair[0].returncode)
    assert winner[1][0] == "up; `recall down` ends it\n"
    assert loser[1][1] == f"recall: another process is starting or running the stack in {home.data_dir}\n"
    again = home.recall("up", "--no-workers")
    assert again.returncode == 0
    assert again.stdout.startswith("already up: kafka 127.0.0.1:")

    before = home.state()
    status = json.loads(home.recall("status", "--json").stdout)
    assert status["kafka"]["bootstrap"] == before.services["kafka"].address
    assert (status["kafka"]["version"], status["milvus"]["version"]) == (VERSION, "2.3.5")
    assert status["redis"]["url"] == before.services["redis"].address
    assert status["milvus"]["uri"] == before.services["milvus"].address
    assert (status["running"], status["active"], status["workers"]) == (True, None, [])
    asyncio.run(write_data(home.settings()))
    with redis.Redis(port=before.services["redis"].ports[0]) as client:
        client.set("kept", "yes")
        policy = client.config_get("*")
        assert (policy["maxmemory-policy"], policy["appendonly"]) == ("noeviction", "yes")

    with pytest.raises(RecallError, match="nothing was deleted"):
        wipe(home.data_dir)
    servers = home.pids()
    down = home.recall("down")
    assert (down.returncode, down.stdout) == (0, "stopped milvus, redis and kafka\n")
    assert gone(servers)
    down = home.recall("down")
    assert (down.returncode, down.stdout) == (0, "nothing runs here\n")
    assert home.recall("status").stdout == "nothing runs here; `recall up` starts the stack\n"

    taken = before.services["redis"].ports[0]
    with socket.create_server(("127.0.0.1", taken)):
        assert home.recall("up", "-d", "--no-workers").returncode == 0
    after = home.state()
    for name in ("kafka", "milvus"):
        assert after.services[name].ports == before.services[name].ports
    assert after.services["redis"].ports != [taken]
    assert asyncio.run(read_data(home.settings())) == b"{}"
    with redis.Redis(port=after.services["redis"].ports[0]) as client:
        assert client.get("kept") == b"yes"

    servers = home.pids()
    os.kill(after.supervisor_pid, signal.SIGKILL)
    wait_for(lambda: gone(servers), GONE_WITHIN_S, "no orphan is left")
    found = json.loads(home.recall("status", "--json").stdout)
    assert found == {"running": False, "starting": False, "failure": None, "workers": []}
    assert (home.data_dir / "kafka").is_dir()
    down = home.recall("down", "--wipe")
    assert (down.returncode, down.stdout) == (
        0,
        "nothing runs here\ndeleted the data of kafka, redis, milvus, logs\n",
    )
    assert sorted(path.name for path in home.data_dir.iterdir()) == ["lock"]


def test_the_death_of_a_server_is_named_and_ends_the_rest(home: Home) -> None:
    up = home.start("up")
    assert up.stderr is not None
    said = ""
    for line in up.stderr:
        said += line
        if line.startswith("up; "):
            break
    servers = home.pids()
    assert home.state().workers == []
    (home.data_dir / "logs" / "redis.log").open("a").write("its last words\n")
    os.kill(servers["redis"], signal.SIGKILL)
    err = said + up.communicate(timeout=60)[1]
    assert up.returncode == 1
    log = home.data_dir / "logs" / "redis.log"
    assert f"recall: redis ended with code -9; the end of {log}:\n" in err
    assert "its last words" in err
    assert "no bundle is active, so no worker was started; make one: recall model fit --data movielens-1m" in err
    assert gone(servers)
    assert "ended by itself: redis ended with code -9" in home.recall("status").stdout


def test_ctrl_c_ends_a_stack_that_is_starting(home: Home) -> None:
    up = home.start("up", "--no-workers")
    log = home.data_dir / "logs" / "milvus.log"
    wait_for(lambda: log.exists() or up.poll() is not None, 60, "the servers are starting")
    up.send_signal(signal.SIGINT)
    up.communicate(timeout=30)
    assert up.returncode == 130
    assert running(home.data_dir) is None

    def nobody_left() -> bool:  # the kernel ends who was being started
        return not [pid for pid in Path("/proc").glob("[0-9]*") if home.data_dir in working_directory(pid).parents]

    wait_for(nobody_left, 30, "every server has ended")


def test_a_data_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    home = Home(tmp_path / "file" / "data")
    for arguments in (["up", "--no-workers"], ["up", "-d", "--no-workers"]):
        done = home.recall(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"recall: {home.data_dir}")
        assert done.stderr.endswith("cannot be written: Not a directory\n")
        assert done.stderr.count("\n") == 1
    assert home.recall("status").stdout.startswith("nothing runs here")
    assert home.recall("down").returncode == 0


def test_a_stale_state_is_not_taken_for_a_running_stack(tmp_path: Path) -> None:
    mine = StackState(supervisor_pid=os.getpid(), supervisor_started=start_time(os.getpid()))
    write_state(tmp_path, mine)
    assert running(tmp_path) == mine
    write_state(tmp_path, StackState(supervisor_pid=os.getpid(), supervisor_started=mine.supervisor_started - 1))
    assert running(tmp_path) is None, "the pid is another process's now"
    (tmp_path / "stack.json").write_text("{")
    assert read_state(tmp_path) is None


def test_endpoints_of_a_running_stack_fill_only_what_was_not_set(tmp_path: Path) -> None:
    nothing_runs = load_settings(data_dir=tmp_path)
    assert with_local_stack(nothing_runs) == nothing_runs
    addresses = {"kafka": "127.0.0.1:1", "redis": "redis://127.0.0.1:2/0", "milvus": "http://127.0.0.1:3"}
    services = {name: ServiceState(pid=1, address=a, ports=[], version="") for name, a in addresses.items()}
    started = start_time(os.getpid())
    write_state(tmp_path, StackState(supervisor_pid=os.getpid(), supervisor_started=started, services=services))
    found = with_local_stack(load_settings(data_dir=tmp_path, milvus_uri="http://mine:19530"))
    assert found.kafka_bootstrap == addresses["kafka"]
    assert found.redis_url.get_secret_value() == addresses["redis"]
    assert found.milvus_uri == "http://mine:19530"
    login = {"kafka_security_protocol": "SASL_SSL", "kafka_user": "a", "kafka_password": "b", "kafka_ca_path": "c"}
    assert with_local_stack(load_settings(data_dir=tmp_path, **login)).kafka_security_protocol == "PLAINTEXT"
    elsewhere = with_local_stack(load_settings(data_dir=tmp_path, kafka_bootstrap="mine:9093", **login))
    assert (elsewhere.kafka_bootstrap, elsewhere.kafka_user, elsewhere.kafka_ca_path) == ("mine:9093", "a", "c")
    assert of_own_stack(load_settings(data_dir=tmp_path, **login)).kafka_user == ""
    own = of_own_stack(load_settings(data_dir=tmp_path, milvus_uri="http://mine:19530", redis_cluster=True))
    assert (own.milvus_uri, own.kafka_bootstrap, own.redis_cluster) == ("http://127.0.0.1:3", "127.0.0.1:1", False)


def test_kafka_starts_again_in_a_folder_of_any_name(tmp_path: Path) -> None:
    kafka = Kafka(tmp_path / "für, alle\\n", tmp_path / "log", cache_dir())
    kafka.prepare(print)
    kafka.ports = free_ports(kafka.port_count)
    for _ in range(2):
        kafka.start()
        try:
            kafka.wait_ready()
        finally:
            kafka.stop()
    assert {each.name for each in tmp_path.iterdir()} == {"für, alle\\n", "log"}


@pytest.fixture
def cached_kafka(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kafka:
    """Kafka with a copy of the cache, on a machine without network."""
    Kafka(tmp_path, tmp_path / "log", cache_dir()).prepare(print)
    for folder in ("kafka", "kafka-log"):
        shutil.copytree(cache_dir() / folder, tmp_path / "cache" / folder)  # copies: links in the cache are not kept
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_ports(1)[0]}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    return Kafka(tmp_path, tmp_path / "log", tmp_path / "cache")


def test_a_filled_cache_needs_no_network(cached_kafka: Kafka) -> None:
    said: list[str] = []
    cached_kafka.prepare(said.append)
    assert said == []


@pytest.mark.parametrize("damage", [b"", b"not a jar"])
def test_a_damaged_jar_is_noticed_named_and_fetched_again(cached_kafka: Kafka, damage: bytes) -> None:
    said: list[str] = []
    [linked] = cached_kafka.cache.glob("kafka/envs/**/kafka-clients-*.jar")
    linked.write_bytes(damage)
    cached_kafka.prepare(said.append)  # from the repository beside it, which is sound
    assert said == [f"{linked.name} in {cached_kafka.cache} is missing or damaged, fetching it again"]
    cached_kafka.prepare(said.append)
    assert len(said) == 1

    for jar in cached_kafka.cache.glob("kafka/**/kafka-clients-*.jar"):
        jar.write_bytes(damage)
    with pytest.raises(RecallError, match=r"cannot be downloaded: .*kafka-clients"):
        cached_kafka.prepare(said.append)
    assert said[1:] == said[:1]
