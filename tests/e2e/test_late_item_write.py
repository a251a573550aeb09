"""A frozen items worker thaws, writes an old vector over a newer one, and dies: the new owner mends it."""

import asyncio
import signal
import time
from pathlib import Path

import pytest

from models.datasets.generated import generate
from schemas.records import hash64_each
from tests.chaos.mutants import VARIABLE, site_folder
from tests.conftest import Stack
from tests.e2e.cli import Place, Running
from tests.e2e.conftest import fit_small, prepare
from tests.e2e.test_live import film
from workers.index.milvus import MilvusItemIndex
from workers.index.milvus_collection import open_index
from workers.index.schema import Collection
from workers.item_loading import item_messages, wait_for_items
from workers.kafka_client import produce
from workers.local.workers import environment
from workers.ports import IndexRows

ROOT = Path(__file__).parents[2]
REPAIRED_WITHIN_S = 120.0
LATE = "late writes were repaired"


def stopped(worker: Running) -> bool:
    """Whether the kernel says so."""
    return Path(f"/proc/{worker.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


async def said(worker: Running, what: str, within_s: float = 300.0) -> None:
    """Wait until a worker says something."""
    begun = time.monotonic() - worker.started_s
    await asyncio.to_thread(worker.until, what, within_s=begun + within_s)


async def row_of(index: MilvusItemIndex, year: int, within_s: float) -> IndexRows:
    """The item's row, once it is of this year: a query is a moment behind a write."""
    async with asyncio.timeout(within_s):
        while True:
            row = await index.rows(hash64_each(["late"]))
            if [attributes["year"] for attributes in row.attributes] == [year]:
                return row
            await asyncio.sleep(0.05)


@pytest.mark.timeout(600)
async def test_the_new_owner_mends_what_a_zombie_wrote_before_it_died(
    stack: Stack, namespace: str, tmp_path: Path
) -> None:
    settings = stack.settings(namespace=namespace, data_dir=tmp_path / "data", index_timeout_ms=10_000)
    bundle = fit_small(generate(items=100, users=60, events=2500), tmp_path / "bundles")
    await prepare(settings, bundle)
    variables = {name: value for name, value in environment(settings).items() if name != "RECALL_DATA_DIR"}
    place = Place(tmp_path, variables | {"PYTHONPATH": str(ROOT)})
    topic = settings.topic("item-updates")
    zombie = place.with_(
        **{VARIABLE: "tests.chaos.mutants.late_upsert", "PYTHONPATH": f"{site_folder()}:{ROOT}"}
    ).start("worker", "items")
    workers = [zombie]
    try:
        await said(zombie, "worker ready")
        older = film("late", attributes={"title": "late", "genres": ["Horror"], "year": 1950})
        newer = film("late", attributes={"title": "late", "genres": ["Comedy"], "year": 2010})
        await produce(settings, topic, item_messages([older]))
        async with asyncio.timeout(60):
            while not stopped(zombie):
                await asyncio.sleep(0.05)
        workers.append(owner := place.start("worker", "items"))
        await said(owner, "worker ready")  # it has the partitions: the zombie's session is over
        await produce(settings, topic, item_messages([newer]))
        await wait_for_items(settings)
        collection = settings.collection(bundle.version)
        index = await open_index(settings, Collection(collection, bundle.dim, bundle.metric, bundle.version))
        before = await row_of(index, 2010, 60)
        thawed = time.monotonic()
        zombie.signal(signal.SIGCONT)
        assert (await asyncio.to_thread(zombie.done)).code == -signal.SIGKILL
        await said(owner, LATE, REPAIRED_WITHIN_S)  # it found a vector that was not the record's
        row = await row_of(index, 2010, REPAIRED_WITHIN_S - (time.monotonic() - thawed))
        assert row.vectors.tolist() == before.vectors.tolist()
        await index.close()
        print(f"repaired {time.monotonic() - thawed:.1f} s after the thaw")
    finally:
        for worker in workers:
            if worker.process.poll() is None:
                worker.signal(signal.SIGCONT).signal(signal.SIGTERM)
                worker.done()
