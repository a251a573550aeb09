"""Milvus has lost a view's collection: workers that are started again make it anew and fill it from Kafka."""

import asyncio
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pymilvus import MilvusClient

from models.bundle import Bundle
from models.datasets.generated import generate
from schemas.items import ItemUpdate
from schemas.recall import CandidateList, RecallRequest
from tests.conftest import PATIENT, Stack
from tests.e2e.conftest import fit_small, load, prepare
from workers.client import RecallClient
from workers.item_loading import item_messages, wait_for_items
from workers.kafka_client import produce
from workers.local.ready import wait_ready
from workers.local.workers import WorkerProcesses
from workers.settings import Settings

DATASET = generate(items=100, users=60, events=2500)
K = 90
DELETED, ADDED = DATASET.item_ids[0], "a new one"
THERE = {*DATASET.item_ids, ADDED} - {DELETED}
VISIBLE_WITHIN_S = 60.0


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return fit_small(DATASET, tmp_path / "bundles")


@pytest.fixture
def settings(stack: Stack, namespace: str, tmp_path: Path, bundle: Bundle) -> Settings:
    settings = stack.settings(**PATIENT, namespace=namespace, data_dir=tmp_path / "data")
    asyncio.run(prepare(settings, bundle))
    return settings


@contextmanager
def working(settings: Settings) -> Iterator[WorkerProcesses]:
    """One worker of each kind, ready."""
    workers = WorkerProcesses(settings)
    workers.start()
    try:
        wait_ready(workers)
        yield workers
    finally:
        workers.stop()
        for kind in ("items", "recall"):
            print(workers.log(kind).read_text()[-4000:])


async def feed(settings: Settings, *updates: ItemUpdate) -> None:
    await produce(settings, settings.topic("item-updates"), item_messages(updates))
    await wait_for_items(settings)


async def ask(settings: Settings) -> CandidateList:
    """A list, once all items are to be found: a search is a moment behind a write."""

    async def listed(k: int) -> CandidateList:
        request = RecallRequest(request_id=uuid.uuid4().hex, user_id="nobody", k=k, timeout_ms=20_000)
        return await client.ask(request)

    async with RecallClient(settings) as client, asyncio.timeout(VISIBLE_WITHIN_S):
        while set((await listed(1000)).item_ids) != THERE:
            await asyncio.sleep(0.05)
        return await listed(K)


def test_a_lost_collection_is_filled_again(stack: Stack, settings: Settings, bundle: Bundle) -> None:
    collection = settings.collection(bundle.version)
    with working(settings):
        asyncio.run(load(settings, DATASET))
        attributes = dict(DATASET.attributes[1])
        asyncio.run(feed(settings, ItemUpdate(item_id=DELETED, op="delete", timestamp_ms=1)))
        asyncio.run(feed(settings, ItemUpdate(item_id=ADDED, op="upsert", timestamp_ms=1, attributes=attributes)))
        before = asyncio.run(ask(settings))
    milvus = MilvusClient(stack.milvus_uri)
    kept = {row["item_id"] for row in milvus.query(collection, "item_id != ''", consistency_level="Strong")}
    milvus.drop_collection(collection)
    with working(settings) as workers:
        after = asyncio.run(ask(settings))
        assert "the collection is gone: reading item-updates again" in workers.log("items").read_text()
    assert (before.status, after.status) == ("ok", "ok")
    assert after.item_ids == before.item_ids
    assert {row["item_id"] for row in milvus.query(collection, "item_id != ''", consistency_level="Strong")} == kept
    assert ADDED in kept
    assert DELETED not in kept
