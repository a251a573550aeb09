"""A lower version: the worker produces the winner again, through a crash, and a new view writes nothing."""

import asyncio
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from models.bundle import Bundle
from models.datasets.generated import generate
from schemas import codec
from schemas.items import AFTER
from schemas.records import ItemRecord, hash64_each
from tests.chaos.log import DEAD_LETTERS, ITEMS, Entry, Logs
from tests.chaos.model import last_of_each_key
from tests.chaos.mutants import VARIABLE, site_folder
from tests.conftest import Stack
from tests.e2e.cli import Place, Running
from tests.e2e.conftest import fit_small, prepare
from tests.e2e.test_live import film
from workers import views
from workers.item_loading import item_messages, wait_for_items
from workers.kafka_client import produce
from workers.local.workers import environment
from workers.settings import Settings
from workers.stores import keys
from workers.stores.connect import connect
from workers.stores.item_redis import RedisItemTable

ROOT = Path(__file__).parents[2]
HIGH, LOW = film("a", version=5, attributes={"year": 2005}), film("a", version=3, attributes={"year": 2003})


@dataclass(frozen=True)
class Fed:
    """A namespace whose items are fed by workers of the test's own."""

    settings: Settings
    place: Place

    async def entries(self, topic: str) -> list[Entry]:
        return (await Logs(self.settings.kafka_bootstrap, self.settings.namespace).read())[topic]

    async def record(self, bundle: Bundle) -> ItemRecord | None:
        collection = self.settings.collection(bundle.version)
        table = RedisItemTable(connect(self.settings), self.settings, collection, bundle.dim)
        [record] = await table.read(hash64_each(["a"]))
        await table.close()
        return record

    async def empty(self) -> None:
        """What an emptied Redis has: the active view, which workers put back."""
        client = connect(self.settings)
        async for key in client.scan_iter(match=f"{self.settings.namespace}:*"):
            if key != keys.active_view(self.settings):
                await client.delete(key)
        await client.aclose()

    async def ready(self, place: Place) -> Running:
        worker = place.start("worker", "items")
        await asyncio.to_thread(worker.until, "worker ready", within_s=300)
        return worker


async def ended(worker: Running, number: int = signal.SIGTERM) -> int:
    return (await asyncio.to_thread(worker.signal(number).done)).code


@pytest.mark.timeout(600)
async def test_the_winner_is_produced_again(stack: Stack, namespace: str, tmp_path: Path) -> None:
    settings = stack.settings(namespace=namespace, data_dir=tmp_path / "data", index_timeout_ms=10_000, partitions=2)
    datasets = [generate(items=100, users=60, events=2500), generate(items=90, users=50, events=2000)]
    bundle, another = [fit_small(dataset, tmp_path / "bundles") for dataset in datasets]
    await prepare(settings, bundle)
    variables = {name: value for name, value in environment(settings).items() if name != "RECALL_DATA_DIR"}
    fed = Fed(settings, Place(tmp_path, variables | {"PYTHONPATH": str(ROOT)}))
    topic = settings.topic(ITEMS)

    # a worker that dies between the copy and the record
    doomed = fed.place.with_(
        **{VARIABLE: "tests.chaos.mutants.dies_after_copies", "PYTHONPATH": f"{site_folder()}:{ROOT}"}
    )
    worker = await fed.ready(doomed)
    await produce(settings, topic, item_messages([HIGH]))
    await wait_for_items(settings)
    await produce(settings, topic, item_messages([LOW]))
    assert (await asyncio.to_thread(worker.done)).code == -signal.SIGKILL
    high, low, copy = await fed.entries(ITEMS)
    assert copy == Entry(ITEMS, high.partition, 2, copy.taken_ms, b"a", high.value, ((AFTER, b"1"),))
    assert low.value == codec.encode_event(LOW)

    # the next one finds the refused update and the copy, and what stands is what compaction leaves
    worker = await fed.ready(fed.place)
    await wait_for_items(settings)
    assert await ended(worker) == 0
    entries = await fed.entries(ITEMS)
    record = await fed.record(bundle)
    assert record is not None
    assert (record.version, record.update) == (5, high.value)
    assert [entry.value for entry in last_of_each_key(entries)] == [high.value]
    assert {dict(each.headers)["dlq.error.code"] for each in await fed.entries(DEAD_LETTERS)} <= {b"stale_version"}

    # Redis is emptied while the next refused update waits: what was done already is history, and that one is not
    await produce(settings, topic, item_messages([LOW]))
    await fed.empty()
    worker = await fed.ready(fed.place)
    await wait_for_items(settings)
    assert await ended(worker) == 0
    before, entries = entries, await fed.entries(ITEMS)
    assert entries[: len(before)] == before
    low, copy = entries[len(before) :]
    assert copy == Entry(
        ITEMS, low.partition, low.offset + 1, copy.taken_ms, b"a", high.value, ((AFTER, b"%d" % low.offset),)
    )

    # another view reads all of it, and writes nothing
    await views.activate(settings, another.path, another.version)
    worker = await fed.ready(fed.place)
    await wait_for_items(settings)
    assert await ended(worker) == 0
    rebuilt = await fed.record(another)
    assert rebuilt is not None
    assert (rebuilt.version, rebuilt.update) == (5, high.value)
    assert await fed.entries(ITEMS) == entries
