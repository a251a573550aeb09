"""`recall items reconcile` beside a running items worker, on real servers: broken on purpose, found, mended."""

import asyncio
import signal
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError

import numpy as np
import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families as families

from models.bundle import Bundle
from models.datasets.generated import generate
from schemas.items import ItemUpdate
from schemas.records import ItemRecord, hash64, hash64_each
from tests.conftest import Stack
from tests.e2e.cli import Place
from tests.e2e.conftest import fit_small, prepare
from tests.e2e.test_live import film, until
from workers.doctor import bundle as bundle_check
from workers.doctor.findings import Level
from workers.index.milvus import MilvusItemIndex
from workers.index.milvus_collection import open_index
from workers.index.schema import Collection
from workers.item_loading import item_messages, wait_for_items
from workers.kafka_client import produce
from workers.local.process import free_ports
from workers.local.workers import environment
from workers.missed import MISSED
from workers.ports import IndexRows
from workers.reconcile.opening import open_reconciliation
from workers.reconcile.run import Options, Report
from workers.refill import DAY_MS
from workers.settings import Settings
from workers.stores import keys
from workers.stores.connect import connect

ITEMS = 60


@dataclass(frozen=True)
class Fed:
    """A view that an items worker feeds."""

    settings: Settings
    bundle: Bundle
    place: Place
    web_port: int

    @property
    def name(self) -> str:
        return self.settings.collection(self.bundle.version)

    async def send(self, *updates: ItemUpdate, deleted: tuple[str, ...] = ()) -> None:
        """Updates and tombstones, taken in by the worker."""
        tombstones = [(item_id.encode(), None, ()) for item_id in deleted]
        await produce(self.settings, self.settings.topic("item-updates"), [*item_messages(updates), *tombstones])
        await wait_for_items(self.settings)

    async def shows(self, *item_ids: str) -> None:
        """Wait until Milvus has all these for whoever looks."""
        index = await self.open_index()
        await until_shown(index, there=item_ids)
        await index.close()

    async def open_index(self) -> MilvusItemIndex:
        bundle = self.bundle
        return await open_index(self.settings, Collection(self.name, bundle.dim, bundle.metric, bundle.version))

    async def reconcile(self, **options: Any) -> Report:
        async with AsyncExitStack() as opened:
            return await (await open_reconciliation(self.settings, Options(**options), opened)).run()


@pytest.fixture(scope="module")
def fed(stack: Stack, module_namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fed]:
    folder = tmp_path_factory.mktemp("fed")
    settings = stack.settings(namespace=module_namespace, data_dir=folder / "data", index_timeout_ms=5000)
    bundle = fit_small(generate(items=100, users=60, events=2500), folder / "bundles")
    asyncio.run(prepare(settings, bundle))
    variables = {name: value for name, value in environment(settings).items() if name != "RECALL_DATA_DIR"}
    [web_port] = free_ports(1)
    place = Place(folder, variables)
    worker = place.with_(RECALL_WEB_PORT=str(web_port)).start("worker", "items")
    try:
        worker.until("worker ready")
        view = Fed(settings, bundle, place, web_port)
        catalogue = [film(f"film-{n}", attributes={"title": f"Film {n}", "year": 1900 + n}) for n in range(ITEMS)]
        asyncio.run(view.send(*catalogue))
        asyncio.run(view.shows(*(update.item_id for update in catalogue)))
        yield view
    finally:
        ended = worker.signal(signal.SIGTERM).done()
        assert ended.code == 0, ended


@pytest.fixture
async def index(fed: Fed) -> AsyncIterator[MilvusItemIndex]:
    index = await fed.open_index()
    yield index
    await index.close()


@pytest.fixture
async def redis(fed: Fed) -> AsyncIterator[Any]:
    client = connect(fed.settings)
    yield client
    await client.aclose()


def key(fed: Fed, item_id: str) -> bytes:
    return keys.item_record(fed.settings, fed.name, hash64(item_id))


def found(report: Report) -> dict[str, int]:
    return {name: kind.count for name, kind in report.kinds.items() if kind.count}


async def rows(index: MilvusItemIndex) -> dict[str, tuple[list[float], dict[str, Any]]]:
    """The whole collection."""
    stored = await index.rows(hash64_each(await index.ids(0, 1)))
    together = zip(stored.item_ids, stored.vectors.tolist(), stored.attributes, strict=True)
    return {item_id: (vector, dict(attributes)) for item_id, vector, attributes in together}


async def until_shown(index: MilvusItemIndex, there: tuple[str, ...] = (), gone: tuple[str, ...] = ()) -> None:
    """What was broken is to be seen: a query is a moment behind a write."""

    async def look() -> bool:
        return await index.visible([*there, *gone]) == [True] * len(there) + [False] * len(gone)

    await until(look)


async def test_a_clean_view_has_no_findings(fed: Fed) -> None:
    report = await fed.reconcile()
    assert (found(report), report.left, report.lag) == ({}, 0, 0)
    assert report.items == report.table == report.collection == report.compared >= ITEMS
    assert found(await fed.reconcile(passes=4)) == {}


async def test_each_kind_is_found_and_mended_beside_the_worker(fed: Fed, index: MilvusItemIndex, redis: Any) -> None:
    first = await redis.get(key(fed, "film-7"))
    await fed.send(
        film("film-7", attributes={"title": "Film 7, the second", "year": 2007}), film("gone-1"), film("gone-2")
    )
    live = await redis.get(key(fed, "gone-2"))
    await fed.send(film("gone-2", op="delete"), deleted=("gone-1",))
    await until_shown(index, gone=("gone-1", "gone-2"))
    before = await rows(index)
    records = {item_id: await redis.get(key(fed, item_id)) for item_id in [*before, "gone-1", "gone-2"]}

    await index.delete(["film-1", "film-2"])  # rows are gone
    await redis.delete(key(fed, "film-2"), key(fed, "film-3"))  # and records
    far = np.full((3, fed.bundle.dim), 0.5, dtype=np.float32)
    await index.upsert(IndexRows(["nobody's", "gone-1", "film-5"], far, [{}, {}, {}]))  # orphans, and an older vector
    await redis.set(key(fed, "gone-2"), live)  # the live record of a deleted item
    await redis.set(key(fed, "film-7"), first)  # an older record
    stray = ItemRecord("stray", 0, 1, update=ItemRecord.decode(first).update.replace(b"film-7", b"stray"))
    await redis.set(key(fed, "stray"), stray.encode())  # a record of no event
    await until_shown(index, there=("nobody's", "gone-1"), gone=("film-1", "film-2"))

    report = await fed.reconcile(examples=5)
    assert found(report) == {"missing": 3, "orphaned": 4, "stale": 1, "wrong_model": 1}
    named = {name: sorted(each["item_id"] for each in kind.examples) for name, kind in report.kinds.items()}
    assert named == {
        "missing": ["film-1", "film-2", "film-3"],
        "orphaned": ["gone-1", "gone-2", "nobody's", "stray"],
        "stale": ["film-7"],
        "wrong_model": ["film-5"],
    }
    done = await asyncio.to_thread(fed.place.recall, "items", "reconcile", "--repair", "--json")
    assert done.code == 0, done
    told = orjson.loads(done.out)
    assert {name: told[name]["count"] for name in named} == found(report)
    assert (told["repaired"], told["left"]) == (9, 0)
    after = await rows(index)
    assert {item_id: attributes for item_id, (_, attributes) in after.items()} == {
        item_id: attributes for item_id, (_, attributes) in before.items()
    }
    assert all(np.allclose(after[item_id][0], vector, atol=1e-5) for item_id, (vector, _) in before.items())
    assert {item_id: await redis.get(key(fed, item_id)) for item_id in records} == records
    assert ItemRecord.decode(await redis.get(key(fed, "stray"))).deleted
    assert found(await fed.reconcile()) == {}


@pytest.mark.timeout(300)
async def test_mending_items_while_they_are_updated_leaves_the_newest_of_each(
    fed: Fed, index: MilvusItemIndex, redis: Any
) -> None:
    ids = [f"film-{n}" for n in range(ITEMS)]
    year = 2000
    for turn in range(4):
        await index.delete(ids[turn::2])
        await redis.delete(*(key(fed, item_id) for item_id in ids[turn::3]))
        await until_shown(index, gone=tuple(ids[turn::2]))
        mending = asyncio.create_task(fed.reconcile(repair=True))
        while not mending.done():
            year += 1
            updates = [film(item_id, attributes={"title": item_id, "year": year}) for item_id in ids[:: turn + 1]]
            await produce(fed.settings, fed.settings.topic("item-updates"), item_messages(updates))
        report = await mending
        assert report.repaired <= sum(found(report).values())
        await wait_for_items(fed.settings)
        last = await fed.reconcile(repair=True)  # what was still lagging in the first, and lost its row before
        assert last.left == 0, last
        report = await fed.reconcile()
        assert (found(report), report.compared) == ({}, report.items), report
        stored = await rows(index)
        assert {stored[item_id][1]["year"] for item_id in ids[:: turn + 1]} == {year}


@pytest.mark.timeout(300)
async def test_missed_deletions_are_told_everywhere_until_they_are_mended(
    fed: Fed, index: MilvusItemIndex, redis: Any
) -> None:
    """The worker was frozen, or Redis could not be reached, for as long."""

    async def told() -> tuple[float, list[str]]:
        """The gauge, and what the doctor says."""
        page = await asyncio.to_thread(urllib.request.urlopen, f"http://127.0.0.1:{fed.web_port}/metrics")
        [family] = [f for f in families(page.read().decode()) if f.name == "recall_missed_deletions"]
        found = await bundle_check.check(fed.settings)
        return family.samples[0].value, [str(each) for each in found if each.level is Level.WARNING]

    async def until_told(gauge: float) -> list[str]:
        async with asyncio.timeout(30):
            while (found := await told())[0] != gauge:
                await asyncio.sleep(0.1)
        return found[1]

    assert await told() == (0, [])
    await index.upsert(IndexRows(["gone"], np.full((1, fed.bundle.dim), 0.5, dtype=np.float32), [{}]))
    await until_shown(index, there=("gone",))
    await redis.hincrby(keys.filled(fed.settings, keys.items_group(fed.name)), "fed_ms", -8 * DAY_MS)
    [warning] = await until_told(1)
    assert warning.startswith(MISSED)
    assert warning.endswith("recall items reconcile --repair")
    report = await fed.reconcile()
    assert (found(report), report.missed_deletions) == ({"orphaned": 1}, True)
    assert (await told())[0] == 1
    report = await fed.reconcile(repair=True)
    assert (report.repaired, report.left, report.missed_deletions) == (1, 0, False)
    assert await until_told(0) == []

    async def ready() -> bool:
        """A late probe may have said otherwise."""
        with suppress(HTTPError):
            page = await asyncio.to_thread(urllib.request.urlopen, f"http://127.0.0.1:{fed.web_port}/readyz")
            return bool(page.status == 200)
        return False

    await until(ready)
