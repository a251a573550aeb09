"""Popular lists are read anew once Redis is back, and stay as they were until then."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import pytest

from schemas import codec
from schemas.items import ItemUpdate
from schemas.records import ItemRecord, hash64
from tests.conftest import PATIENT_MS
from tests.leaders import until
from workers.cancelling import cancel
from workers.dependencies import Dependencies
from workers.local.redis import Redis
from workers.metrics import Metrics
from workers.popularity import EVERYBODY
from workers.ports import PopularChange
from workers.recall_parts import _repeat
from workers.retry import until_done
from workers.settings import load_settings
from workers.sources.popular import PopularLists
from workers.stores.connect import connect
from workers.stores.item_facts import ItemFacts
from workers.stores.item_redis import RedisItemTable
from workers.stores.popular_redis import RedisPopularTable

DEFINITION = "0" * 16
WITHIN_S = 60


class Counted:
    """Two items, and how often they were counted."""

    def __init__(self, own_redis: Redis, namespace: str) -> None:
        settings = load_settings(redis_url=own_redis.address, namespace=namespace, store_timeout_ms=PATIENT_MS)
        self.client = connect(settings)
        self.items = RedisItemTable(self.client, settings, "items_v", 4)
        self.table = RedisPopularTable(self.client, settings, DEFINITION)
        self.lists = PopularLists(self.table, ItemFacts(self.items, ()), [])
        self.dependencies = Dependencies("recall", Metrics())
        self._offset = 0

    async def count(self, name: str, amount: int) -> None:
        change = PopularChange(0, self._offset, self._offset + 1, {(7, EVERYBODY): {hash64(name): amount}})
        await until_done(lambda: self.table.add([change]), Dependencies("activity", Metrics()))
        self._offset += 1

    def best(self) -> list[str]:
        return self.lists.best(None, ())[0]


@pytest.fixture
async def counted(own_redis: Redis, namespace: str) -> AsyncIterator[Counted]:
    counted = Counted(own_redis, namespace)
    for n, name in enumerate("ab"):
        update = ItemUpdate(item_id=name, op="upsert", timestamp_ms=1)
        await counted.items.write([ItemRecord(name, 0, n, update=codec.encode_event(update))], [None])
    await counted.count("a", 3)
    yield counted
    await counted.client.aclose()


async def test_lists_are_read_anew_once_redis_is_back(counted: Counted, own_redis: Redis) -> None:
    dependencies = counted.dependencies
    renewing = asyncio.create_task(_repeat(counted.lists.refresh, partial(counted.lists.due, 0.01), dependencies))
    try:
        await until(lambda: counted.best() == ["a"], WITHIN_S)
        own_redis.kill()
        await until(lambda: dependencies.missing() is not None, WITHIN_S)
        assert counted.best() == ["a"]
        own_redis.start()
        await asyncio.to_thread(own_redis.wait_ready)
        await counted.count("b", 9)
        await until(lambda: counted.best() == ["b", "a"] and dependencies.missing() is None, WITHIN_S)
        assert not renewing.done()
    finally:
        await cancel(renewing)
