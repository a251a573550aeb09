"""A view whose collection is lost: what Redis forgets for it must last before the collection is made anew."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PATIENT_MS, Stack
from tests.leaders import until
from workers.app import _forget_what_is_gone
from workers.dependencies import Dependencies
from workers.errors import DependencyError
from workers.index.opening import Indexes
from workers.index.schema import Collection
from workers.local.redis import Redis
from workers.metrics import Metrics
from workers.settings import Settings
from workers.stores import keys
from workers.stores.connect import connect, ping
from workers.stores.markers_redis import RedisMarkers
from workers.stores.same_redis import SameRedis
from workers.worker import Worker

DURABLE_MS = 4321  # nobody else sleeps for so long
WITHIN_S = 20


class Held:
    """Who waits until his writes are durable, and whether that is over."""

    def __init__(self) -> None:
        self.waiting = 0
        self.over = asyncio.Event()


@pytest.fixture
async def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    sleep, held = asyncio.sleep, Held()

    async def slept(seconds: float, result: Any = None) -> Any:
        if seconds != DURABLE_MS / 1000:
            return await sleep(seconds, result)
        held.waiting += 1
        await held.over.wait()
        return result

    monkeypatch.setattr(asyncio, "sleep", slept)
    return held


class Lost:
    """A view that was complete, and whose collection is not there."""

    def __init__(self, settings: Settings, opened: AsyncExitStack) -> None:
        self.settings = settings
        self.client = connect(settings)
        self.ends = 0
        self.collection = Collection(settings.collection("lost"), 8, "IP", "lost")
        self.group = keys.items_group(self.collection.name)
        self.markers = RedisMarkers(self.client, settings, self.group)
        self.same = SameRedis(self.client, self._end)
        metrics = Metrics()
        dependencies = Dependencies("items", metrics)
        self.worker = Worker("items", settings, metrics, dependencies, opened, Indexes(settings, opened))

    async def _end(self) -> None:
        self.ends += 1

    def forget(self) -> "asyncio.Task[None]":
        """As an items worker does at its start."""
        markers = RedisMarkers(self.client, self.settings, self.group)
        return asyncio.create_task(_forget_what_is_gone(self.worker, self.collection, markers, self.same))


@pytest.fixture
async def lost(own_redis: Redis, stack: Stack, namespace: str, tmp_path: Path) -> AsyncIterator[Lost]:
    settings = stack.settings(
        namespace=namespace,
        data_dir=tmp_path,
        redis_url=own_redis.address,
        redis_durability_ms=DURABLE_MS,
        store_timeout_ms=PATIENT_MS,
        index_timeout_ms=PATIENT_MS,
    )
    async with AsyncExitStack() as opened:
        lost = Lost(settings, opened)
        await lost.same.begin()
        await lost.markers.open(1)
        assert await lost.markers.mark(0, "")
        yield lost
        await lost.client.aclose()


async def test_nothing_is_made_before_what_is_forgotten_lasts(lost: Lost, held: Held) -> None:
    forgetting = lost.forget()
    await until(lambda: held.waiting == 1 or forgetting.done())
    assert not forgetting.done()
    assert not await lost.client.exists(keys.filled_whole(lost.settings, lost.group))
    held.over.set()
    await asyncio.wait_for(forgetting, WITHIN_S)
    assert lost.ends == 0


async def test_a_redis_that_is_another_one_by_then_ends_the_worker(lost: Lost, held: Held, own_redis: Redis) -> None:
    forgetting = lost.forget()
    await until(lambda: held.waiting == 1 or forgetting.done())
    own_redis.kill()
    own_redis.start()
    await asyncio.to_thread(own_redis.wait_ready)
    async with asyncio.timeout(WITHIN_S):
        while not await answers(lost):  # broken connections of the pool are used up
            await asyncio.sleep(0.01)
    held.over.set()
    with pytest.raises(DependencyError, match="another one"):
        await asyncio.wait_for(forgetting, WITHIN_S)
    assert lost.ends == 1


async def answers(lost: Lost) -> bool:
    try:
        await ping(lost.client)
    except DependencyError:
        return False
    return True


async def test_who_comes_second_waits_as_well(lost: Lost, held: Held) -> None:
    """The first has forgotten a moment ago, and may be gone."""
    first = lost.forget()
    await until(lambda: held.waiting == 1 or first.done())
    second = lost.forget()
    await until(lambda: held.waiting == 2 or second.done())
    assert held.waiting == 2
    held.over.set()
    await asyncio.wait_for(asyncio.gather(first, second), WITHIN_S)


async def test_a_new_view_does_not_wait(lost: Lost, held: Held) -> None:
    await lost.client.delete(lost.markers.key, keys.filled_whole(lost.settings, lost.group))
    await asyncio.wait_for(lost.forget(), WITHIN_S)
    assert held.waiting == 0
