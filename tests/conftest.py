"""What all tests share: one stack of real servers per run, and settings in a namespace of the test's own.

`RECALL_TEST_STACK=.recall pytest ...` uses the stack that `recall up` runs in that folder instead of starting one.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from tests.backends.backend import Backend
from tests.backends.registry import backend
from workers.local.process import free_ports
from workers.local.redis import Redis
from workers.local.state import running
from workers.settings import Settings, load_settings

if TYPE_CHECKING:
    from pymilvus import MilvusClient

PATIENT_MS = 10_000  # a store's timeout where tests use it without trying again, on a machine that does much else
PATIENT: dict[str, object] = {f"{step}_timeout_ms": PATIENT_MS for step in ("store", "tower", "index")}
"""Settings of workers that are not to give up anything because the machine is busy."""
RUNNING_VARIABLE = "RECALL_TEST_STACK"
FOLDER_VARIABLE = "RECALL_TEST_FOLDER"  # tells xdist workers which stack is the run's
START_WITHIN_S = 110.0
STOP_WITHIN_S = 60.0
KEEPER = pytest.StashKey["subprocess.Popen[bytes]"]()

# A shell's background job has Ctrl-C ignored, and so would every command that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Timing never decides a test: a busy machine is no finding.
hypothesis_settings.register_profile("recall", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("recall")


@dataclass(frozen=True, slots=True)
class Stack:
    """Addresses of the run's servers, and the folder that holds their data and logs."""

    kafka_bootstrap: str
    redis_url: str
    milvus_uri: str
    data_dir: Path

    def settings(self, **overrides: object) -> Settings:
        """Settings that use these servers."""
        addresses = {
            "kafka_bootstrap": self.kafka_bootstrap,
            "redis_url": self.redis_url,
            "milvus_uri": self.milvus_uri,
        }
        return load_settings(**(addresses | overrides))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Which servers the suites of adapters run against: see tests/backends."""
    parser.addoption("--backend", default="", help="a name of tests/backends/registry.py")


def pytest_configure(config: pytest.Config) -> None:
    """Start the keeper of the stack, in the process that leads the run; the stack itself starts when it is wanted."""
    if hasattr(config, "workerinput") or os.environ.get(RUNNING_VARIABLE):
        return
    folder = tempfile.mkdtemp(prefix="recall-test-")
    os.environ[FOLDER_VARIABLE] = folder
    script = Path(__file__).with_name("stack.py")
    with (Path(folder) / "keeper.log").open("wb") as log:
        config.stash[KEEPER] = subprocess.Popen(
            [sys.executable, str(script), folder], stdin=subprocess.PIPE, stdout=log, stderr=log
        )


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the stack and remove its data."""
    keeper = config.stash.get(KEEPER, None)
    if keeper is None:
        return
    assert keeper.stdin is not None
    keeper.stdin.close()
    keeper.wait(STOP_WITHIN_S)
    shutil.rmtree(os.environ[FOLDER_VARIABLE], ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def patient_clients() -> Iterator[None]:
    """A broker that is slow to answer because the machine is busy is no finding."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workers.kafka_client.ANSWERS_WITHIN_S", 60.0)
        yield


@pytest.fixture(scope="session")
def stack() -> Stack:
    """Real Kafka, Redis and Milvus, shared by the whole run."""
    if os.environ.get(RUNNING_VARIABLE):
        return _running(Path(os.environ[RUNNING_VARIABLE]).absolute())
    folder = Path(os.environ[FOLDER_VARIABLE])
    (folder / "wanted").touch()
    end = time.monotonic() + START_WITHIN_S
    while not (folder / "ready").exists():
        if (folder / "failed").exists() or time.monotonic() > end:
            reason = folder / "failed" if (folder / "failed").exists() else folder / "keeper.log"
            pytest.fail(f"the stack did not start: {reason.read_text()}")
        time.sleep(0.05)
    kafka, redis, milvus = (folder / "ready").read_text().splitlines()
    return Stack(kafka, redis, milvus, folder / "data")


def _running(data_dir: Path) -> Stack:
    state = running(data_dir)
    if state is None:
        pytest.fail(f"no stack runs in {data_dir}")
    kafka, redis, milvus = (state.services[name].address for name in ("kafka", "redis", "milvus"))
    return Stack(kafka, redis, milvus, data_dir)


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[Redis]:
    """A Redis server of the test's own, to be hurt."""
    server = Redis(tmp_path / "redis", tmp_path / "redis.log", tmp_path / "cache")
    server.ports = free_ports(1)
    server.start()
    server.wait_ready()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def started_backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Backend]]:
    """A backend by name, started when a suite first asks for it."""
    running: dict[str, Backend] = {}
    failed: dict[str, Exception] = {}  # told again, not tried again: a start may take minutes

    def started(name: str) -> Backend:
        if name in failed:
            raise failed[name]
        if name not in running:
            running[name] = backend(name)
            try:
                running[name].start(tmp_path_factory.mktemp("backend"))
            except Exception as error:
                failed[name] = error
                raise
        return running[name]

    try:
        yield started
    finally:
        for each in running.values():
            each.stop()


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace that no other test uses."""
    name = f"t{uuid.uuid4().hex[:12]}"
    yield name
    if "stack" in request.fixturenames:
        drop_collections(request.getfixturevalue("stack"), name)


@pytest.fixture(scope="module")
def module_namespace(stack: Stack) -> Iterator[str]:
    """Likewise, for what the tests of a module share."""
    name = f"m{uuid.uuid4().hex[:12]}"
    yield name
    drop_collections(stack, name)


def drop_collections(stack: Stack, prefix: str) -> None:
    """Of the run's Milvus, which works for each collection it has, used or not."""
    milvus = _milvus(stack.milvus_uri)
    for name in milvus.list_collections():
        if name.startswith(prefix):
            milvus.drop_collection(name)


@cache
def _milvus(uri: str) -> "MilvusClient":
    from pymilvus import MilvusClient

    return MilvusClient(uri)


@pytest.fixture
def settings(stack: Stack, namespace: str) -> Settings:
    """Settings on the run's servers, in a namespace of the test's own."""
    return stack.settings(namespace=namespace)
