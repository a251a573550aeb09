"""The whole pipeline on Milvus Lite: in a local stack with three workers, in a file with all kinds in one process."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

import pytest

from models.bundle import Bundle
from models.datasets import Dataset
from models.datasets.generated import generate
from schemas.items import ItemUpdate
from schemas.recall import RecallRequest
from tests.conftest import Stack
from tests.e2e.conftest import fit_small, load, prepare
from workers import views
from workers.client import RecallClient
from workers.live.sender import Sender
from workers.local.discover import with_local_stack
from workers.local.process import end, free_ports
from workers.local.ready import health
from workers.local.state import WorkerState
from workers.local.workers import environment
from workers.settings import Settings, load_settings

WITHIN_S = 30.0
LITE = f"Lite {version('milvus-lite')}"
COMMAND_WITHIN_S = 100.0

Command = "subprocess.CompletedProcess[str]"


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return generate(items=150, users=60, events=3000)


@pytest.fixture(scope="module")
def packed(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return fit_small(dataset, tmp_path_factory.mktemp("bundles"))


def start(env: Mapping[str, str], *arguments: str) -> "subprocess.Popen[str]":
    argv = [sys.executable, "-m", "workers.cli.main", *arguments]
    return subprocess.Popen(argv, env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start_one_process(env: Mapping[str, str]) -> "subprocess.Popen[str]":
    """A worker that runs every kind, once it is ready."""
    [port] = free_ports(1)
    worker = start({**env, "RECALL_WEB_PORT": str(port)}, "worker", "all", "--one-process")
    state = WorkerState(kind="all", pid=worker.pid, web_port=port, restarts=0)
    end_at = time.monotonic() + COMMAND_WITHIN_S
    while (found := health(state)) != "ready":
        assert worker.poll() is None, worker.communicate()
        assert time.monotonic() < end_at, found
        time.sleep(0.05)
    return worker


def recall(env: Mapping[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    child = start(env, *arguments)
    out, err = child.communicate(timeout=COMMAND_WITHIN_S)
    return subprocess.CompletedProcess(arguments, child.returncode, out, err)


async def answered(client: RecallClient) -> list[str]:
    """The whole list of a new user, once it is not degraded."""
    end_at = time.monotonic() + WITHIN_S
    while True:
        request = RecallRequest(request_id=uuid.uuid4().hex, user_id=uuid.uuid4().hex, k=1000, timeout_ms=20_000)
        answer = await client.ask(request)
        if answer.status == "ok":
            return answer.item_ids
        assert time.monotonic() < end_at, answer


async def until_listed(client: RecallClient, item_id: str, *, present: bool) -> None:
    end_at = time.monotonic() + WITHIN_S
    while (item_id in await answered(client)) is not present:
        assert time.monotonic() < end_at, f"{item_id} is {'not ' if present else ''}listed"
        await asyncio.sleep(0.05)


async def use(settings: Settings) -> set[str]:
    """An item in, an item out; what is listed in the end."""
    now_ms = time.time_ns() // 1_000_000
    async with RecallClient(settings) as client, Sender(settings) as sender:
        before = await answered(client)
        new = f"film-{uuid.uuid4().hex[:8]}"
        await sender.item(ItemUpdate(item_id=new, op="upsert", timestamp_ms=now_ms, attributes={"genres": ["Drama"]}))
        await until_listed(client, new, present=True)
        await sender.item(ItemUpdate(item_id=before[0], op="delete", timestamp_ms=now_ms))
        await until_listed(client, before[0], present=False)
        after = set(await answered(client))
    assert after == {*before[1:], new}
    return after


async def listed(settings: Settings) -> set[str]:
    async with RecallClient(settings) as client:
        return set(await answered(client))


@pytest.fixture(params=["local_milvus", "milvus_uri"])
def home(request: pytest.FixtureRequest, tmp_path: Path, packed: Bundle) -> Iterator[dict[str, str]]:
    """The environment of a data folder with an active bundle, and a stack on Lite: as a server, or as a file."""
    value = {"local_milvus": "lite", "milvus_uri": f"{tmp_path}/items.db"}[request.param]
    env = {"RECALL_DATA_DIR": str(tmp_path / "data"), f"RECALL_{request.param.upper()}": value}
    nowhere = load_settings(data_dir=tmp_path / "data", redis_url="redis://127.0.0.1:1/0")
    asyncio.run(views.activate(nowhere, packed.path, packed.version))
    yield env
    recall(env, "down")


def settings_of(env: Mapping[str, str]) -> Settings:
    return with_local_stack(load_settings(data_dir=env["RECALL_DATA_DIR"]))


@pytest.mark.timeout(300)
def test_up_on_lite(home: dict[str, str], dataset: Dataset) -> None:
    up = recall(home, "up", "-d")
    assert (up.returncode, up.stdout) == (0, "up; `recall down` ends it\n"), up.stderr
    status = json.loads(recall(home, "status", "--json").stdout)
    kinds = [worker["kind"] for worker in status["workers"]]
    if "RECALL_MILVUS_URI" in home:
        assert ("milvus" in status, kinds) == (False, ["all"])
    else:
        assert (status["milvus"]["version"], kinds) == (LITE, ["activity", "items", "recall"])
        assert f"milvus {LITE} at {status['milvus']['uri']}" in up.stderr
    assert "Traceback" not in recall(home, "status").stderr
    settings = settings_of(home)
    asyncio.run(load(settings, dataset))
    after = asyncio.run(use(settings))
    down = recall(home, "down")
    assert (down.returncode, down.stderr) == (0, ""), down
    if "RECALL_MILVUS_URI" not in home:  # that a file is found again is said below
        assert recall(home, "up", "-d").returncode == 0
        assert asyncio.run(listed(settings_of(home))) == after, "a restart keeps the items, and they are found again"
        recall(home, "down")
        refused = recall(home | {"RECALL_LOCAL_MILVUS": "server"}, "up")
        assert refused.returncode == 2
        assert refused.stderr.startswith("recall: local_milvus: server, but the items of ")
        assert refused.stderr.count("\n") == 1


@pytest.fixture
def on_file(stack: Stack, namespace: str, tmp_path: Path, packed: Bundle) -> Settings:
    """Settings of the run's Kafka and Redis, and a file."""
    settings = stack.settings(namespace=namespace, data_dir=tmp_path, milvus_uri=f"{tmp_path}/items.db")
    asyncio.run(prepare(settings, packed))
    return settings


def lite_child(worker: int) -> int:
    """Pid of the server that a worker process has started."""
    end_at = time.monotonic() + WITHIN_S
    while time.monotonic() < end_at:
        for pid in Path(f"/proc/{worker}/task/{worker}/children").read_text().split():
            if "workers.index.lite_server" in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
                return int(pid)
        time.sleep(0.02)
    raise AssertionError(f"{worker} has started no server")


@pytest.mark.timeout(200)
def test_a_file_is_for_one_process(on_file: Settings, dataset: Dataset) -> None:
    env = environment(on_file)
    refused = recall(env, "worker", "all")
    assert refused.returncode == 2
    line = f"recall: milvus_uri: {on_file.milvus_uri} is a file, which only one process can open"
    assert refused.stderr == f"{line}: recall worker all --one-process\n"
    worker = start_one_process(env)
    try:
        assert asyncio.run(listed(on_file)) == set()
        asyncio.run(load(on_file, dataset))
        after = asyncio.run(use(on_file))
        second = recall(env, "worker", "recall")
        assert second.returncode == 1
        line = f"recall: {on_file.milvus_uri} is open in another process; Milvus Lite serves one at a time"
        assert second.stderr.splitlines()[-1] == line
        server = lite_child(worker.pid)
        worker.send_signal(signal.SIGTERM)
        _, said = worker.communicate(timeout=COMMAND_WITHIN_S)
        assert worker.returncode == 0, said
        assert not Path(f"/proc/{server}").exists()
        worker = start_one_process(env)
        assert asyncio.run(listed(on_file)) == after
        os.kill(lite_child(worker.pid), signal.SIGKILL)
        _, said = worker.communicate(timeout=COMMAND_WITHIN_S)
        assert worker.returncode == 1
        assert "recall: milvus ended with code -9" in said
    finally:
        end(worker, WITHIN_S)  # type: ignore[arg-type]


def test_a_worker_that_is_killed_takes_its_server_along(on_file: Settings) -> None:
    worker = start_one_process(environment(on_file))
    server = lite_child(worker.pid)
    worker.kill()
    worker.communicate(timeout=COMMAND_WITHIN_S)
    end_at = time.monotonic() + WITHIN_S
    while Path(f"/proc/{server}").exists():
        assert time.monotonic() < end_at
        time.sleep(0.02)
