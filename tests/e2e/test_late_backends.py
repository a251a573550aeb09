"""Workers that start before a backend: they wait and say so, answer all the same, and lose nothing when it comes up."""

import asyncio
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from models.bundle import Bundle
from models.datasets.generated import generate
from tests.conftest import PATIENT
from tests.e2e.conftest import fit_small, prepare
from tests.e2e.traffic import Traffic, ask
from workers.local.discover import with_local_stack
from workers.local.ready import wait_ready
from workers.local.stack import LocalStack
from workers.local.state import WorkerState
from workers.local.workers import WorkerProcesses
from workers.settings import Settings, load_settings

LATE_S = 12.0  # longer than a session
DEGRADED = {"redis": ["features_unavailable"], "milvus": ["index_unavailable"]}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return fit_small(generate(items=100, users=60, events=2500), tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def own_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """Servers that these tests may stop."""
    folder = tmp_path_factory.mktemp("late")
    stack = LocalStack(folder, print)
    stack.start()
    yield stack
    stack.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def settings(own_stack: LocalStack, namespace: str, bundle: Bundle) -> Settings:
    settings = with_local_stack(load_settings(**PATIENT, namespace=namespace, data_dir=own_stack.data_dir))
    asyncio.run(prepare(settings, bundle))
    return settings


def readiness(worker: WorkerState) -> tuple[int, str]:
    """Status and text of /readyz; 0 while nobody listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{worker.web_port}/readyz", timeout=5) as page:
            return page.status, page.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def until_not_ready(worker: WorkerState, dependency: str) -> None:
    end = time.monotonic() + 120  # a start takes a while on a busy machine
    while dependency not in (found := readiness(worker))[1]:
        assert time.monotonic() < end, found
        time.sleep(0.1)
    assert found[0] == 503


@pytest.mark.timeout(400)
@pytest.mark.parametrize("late", ["kafka", "redis", "milvus"])
def test_a_start_with_a_backend_down_that_comes_up_later(late: str, own_stack: LocalStack, settings: Settings) -> None:
    next(service for service in own_stack.services if service.name == late).stop()
    came_up = False
    workers = WorkerProcesses(settings)
    workers.start()
    try:
        needs = {"kafka": ("activity", "items", "recall"), "redis": ("activity", "items", "recall")}
        waiting = [state for state in workers.states if state.kind in needs.get(late, ("items", "recall"))]
        for state in waiting:
            until_not_ready(state, late)
        if late == "kafka":
            time.sleep(LATE_S)
            own_stack.restart(late)
            came_up = True
            wait_ready(workers)
            asyncio.run(_send_and_check(settings, 2))
        else:
            asyncio.run(_while_it_is_down(settings, late))
            came_up = True
            asyncio.run(_after_it_came_up(own_stack, settings, late, workers))
    finally:
        workers.stop()
        if not came_up:
            own_stack.restart(late)
        for kind in ("activity", "items", "recall"):
            print(workers.log(kind).read_text()[-3000:])


async def _send_and_check(settings: Settings, seconds: float) -> None:
    async with Traffic(settings) as traffic:
        await traffic.send(seconds)
        await traffic.all_arrived()
    answer = await ask(settings)
    assert answer.status == "ok"


async def _while_it_is_down(settings: Settings, late: str) -> None:
    answer = await ask(settings)
    assert (answer.status, answer.reasons, answer.item_ids) == ("degraded", DEGRADED[late], [])


async def _after_it_came_up(own_stack: LocalStack, settings: Settings, late: str, workers: WorkerProcesses) -> None:
    async with Traffic(settings) as traffic:
        await traffic.send(LATE_S)
        own_stack.restart(late)  # in this thread: servers die with the thread that started them
        await traffic.send(2)
        answers = await traffic.all_arrived()
        said = {answer.status for answer in answers if answer.request_id in traffic.requests}
    assert "degraded" in said
    assert "rejected" not in said
    await asyncio.to_thread(wait_ready, workers)
    answer = await ask(settings)
    assert (answer.status, len(answer.item_ids)) == ("ok", 10)
