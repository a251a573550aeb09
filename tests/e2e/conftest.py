"""A live system for end-to-end tests: a bundle fitted on generated data, one worker of each kind, the catalogue in."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from models.bundle import LEAVE_ONE_OUT, MANIFEST, Bundle
from models.datasets import Dataset
from models.datasets.generated import generate
from models.fit import FitOptions, fit
from models.spec import builtin_spec, load_spec
from tests.conftest import PATIENT, Stack, drop_collections
from workers import topics, views
from workers.client import RecallClient
from workers.item_loading import item_messages, wait_for_items
from workers.kafka_client import produce
from workers.live.sender import Sender
from workers.local.ready import wait_ready
from workers.local.workers import WorkerProcesses
from workers.settings import Settings


@dataclass(frozen=True)
class Live:
    """Everything a test needs to know of the running system."""

    settings: Settings
    dataset: Dataset
    bundle: Bundle
    web_ports: list[int]


@pytest.fixture(scope="package")
def live(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Workers in a namespace of their own, ended with the last test of this folder."""
    folder = tmp_path_factory.mktemp("live")
    settings = stack.settings(**PATIENT, namespace=f"e2e{uuid.uuid4().hex[:8]}", data_dir=folder)
    dataset = generate(items=400, users=200, events=15_000)
    bundle = fit_small(dataset, folder / "bundles")
    asyncio.run(prepare(settings, bundle))
    workers = WorkerProcesses(settings)
    workers.start()
    try:
        wait_ready(workers)
        asyncio.run(load(settings, dataset))
        yield Live(settings, dataset, bundle, [state.web_port for state in workers.states])
        assert workers.dead() is None, "a worker ended during the tests"
    finally:
        workers.stop()
        drop_collections(stack, settings.namespace)
        for kind in ("activity", "items", "recall"):
            print(workers.log(kind).read_text()[-4000:])


def fit_small(dataset: Dataset, folder: Path) -> Bundle:
    spec = builtin_spec(dataset.spec)
    log, catalogue = dataset.log.before(dataset.test_ms), dataset.catalogue(dataset.test_ms)
    return fit(log, catalogue, load_spec(spec), spec.read_text(), folder, FitOptions(dim=32), lambda *_: None)


def of_leave_one_out(bundle: Path) -> Path:
    """The same bundle, which says that it was trained so: making one needs PyTorch."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["figures"]["protocol"] = LEAVE_ONE_OUT
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    return bundle


async def prepare(settings: Settings, bundle: Bundle) -> None:
    await topics.apply(settings)
    await views.activate(settings, bundle.path, bundle.version)


async def load(settings: Settings, dataset: Dataset) -> None:
    await produce(settings, settings.topic("item-updates"), item_messages(list(dataset.items(dataset.test_ms))))
    await wait_for_items(settings)


@pytest.fixture
async def client(live: Live) -> AsyncIterator[RecallClient]:
    """A client of the live system."""
    async with RecallClient(live.settings) as client:
        yield client


@pytest.fixture
async def sender(live: Live) -> AsyncIterator[Sender]:
    """A producer of events."""
    async with Sender(live.settings) as sender:
        yield sender
