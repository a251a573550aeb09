"""Workers whose towers run behind a model server: `degraded` while it is away, and `ok` again by themselves."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from models.bundle import Bundle
from schemas.recall import CandidateList
from tests.backends.backend import Backend
from tests.backends.registry import backend, chosen
from tests.backends.served import DATASET
from tests.chaos.proxy import Proxy
from tests.conftest import PATIENT_MS, Stack
from tests.e2e.conftest import load, prepare
from tests.e2e.traffic import ask
from workers.errors import DependencyTimeout
from workers.local.process import free_ports
from workers.local.ready import wait_ready
from workers.local.workers import WorkerProcesses
from workers.settings import Settings

BACK_WITHIN_S = 60.0


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One way of each adapter: of the contract's suite it is told how they differ."""
    ways = backend(chosen(metafunc.config)).ways
    metafunc.parametrize("way", [next(way for way in ways if way not in {"onnx", "kserve-json"})])


@pytest.fixture
def started(request: pytest.FixtureRequest, started_backend: Callable[[str], Backend]) -> Backend:
    return started_backend(chosen(request.config))


async def until(settings: Settings, status: str, items: int | None = None) -> CandidateList:
    """Ask until an answer has this status, and so many items: a search is a moment behind a write."""
    end, answer = time.monotonic() + BACK_WITHIN_S, None
    while answer is None or answer.status != status or items not in {None, len(answer.item_ids)}:
        assert time.monotonic() < end, answer
        with suppress(DependencyTimeout):  # a worker takes a while to start on a busy machine
            answer = await ask(settings)
    return answer


@pytest.mark.timeout(300)
async def test_a_worker_answers_without_its_model_server_and_with_it(
    started: Backend, way: str, stack: Stack, namespace: str, tmp_path: Path
) -> None:
    bundle, overrides = started.bundle, started.settings(way)  # type: ignore[attr-defined]
    assert isinstance(bundle, Bundle)
    parts, (port,) = urlsplit(str(overrides["tower_url"])), free_ports(1)
    assert parts.port is not None
    proxy = Proxy(port, parts.port)
    overrides |= {"tower_url": f"{parts.scheme}://127.0.0.1:{port}"}
    overrides |= {"store_timeout_ms": PATIENT_MS, "index_timeout_ms": PATIENT_MS}
    settings = stack.settings(namespace=namespace, data_dir=tmp_path, **overrides)
    await prepare(settings, bundle)
    workers = WorkerProcesses(settings)
    workers.start()
    try:
        at_start = await until(settings, "degraded")
        assert (at_start.reasons, at_start.item_ids) == (["model_unavailable"], [])
        await proxy.start()
        await asyncio.to_thread(wait_ready, workers)
        await load(settings, DATASET)
        await until(settings, "ok", items=10)
        await proxy.stop()
        assert (await until(settings, "degraded")).reasons == ["model_unavailable"]
        await proxy.start()
        back = await until(settings, "ok")
        assert len(back.item_ids) == 10
        assert all(state.restarts == 0 for state in workers.states)
    finally:
        workers.stop()
        await proxy.stop()
        for kind in ("items", "recall"):
            print(workers.log(kind).read_text()[-4000:])
