"""Item indexes when something is wrong: too slow, away, back again, cut off in the middle; and many calls at once."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from urllib.parse import urlsplit

import numpy as np
import pytest

from tests.chaos.proxy import Proxy
from tests.conftest import PATIENT_MS
from tests.contract.indexes import (
    Shelf,
    backend,
    collection,
    collections,
    lite_settings,
    server_settings,
    shelf,
)
from workers.errors import DependencyError, DependencyTimeout, DependencyUnavailable
from workers.index.milvus import MilvusItemIndex
from workers.index.milvus_collection import open_index
from workers.local.process import free_ports
from workers.ports import IndexRows
from workers.settings import Settings

__all__ = ["backend", "collections", "lite_settings", "server_settings", "shelf"]  # fixtures

DIM = 32
DEADLINE_S = 0.5
SLACK_S = 20.0  # on a machine that does much else; what never comes takes 30 s
CALL_BYTES = 64  # a call has more, and what a connection says of itself has less
QUERY = np.ones((1, DIM), dtype=np.float32)

one = pytest.mark.parametrize(("dim", "metric"), [(DIM, "IP")])


Call = Callable[[MilvusItemIndex], Awaitable[object]]

CALLS: dict[str, Call] = {
    "search": lambda index: index.search(QUERY, 3),
    "upsert": lambda index: index.upsert(IndexRows(["fault:a"], QUERY, [{}])),
    "delete": lambda index: index.delete(["fault:a"]),
    "visible": lambda index: index.visible(["fault:a"]),
    "rows": lambda index: index.rows(np.array([1], dtype=np.uint64)),
    "count": lambda index: index.count(),
    "ping": lambda index: index.ping(),
}


@pytest.fixture
async def proxy(collections: Settings) -> AsyncIterator[Proxy]:
    """Between the index and its server."""
    target = urlsplit(collections.milvus_uri).port
    assert target is not None
    between = Proxy(free_ports(1)[0], target)
    await between.start()
    yield between
    await between.stop()


@pytest.fixture
async def behind(collections: Settings, proxy: Proxy) -> AsyncIterator[MilvusItemIndex]:
    """An index that reaches its server through the proxy, each call with half a second."""
    index = await through(proxy, collections, int(DEADLINE_S * 1000))
    yield index
    await index.close()


@pytest.fixture
async def patient(collections: Settings, proxy: Proxy) -> AsyncIterator[MilvusItemIndex]:
    """The same, each call with so much time that whoever notices nothing ends with a timeout."""
    index = await through(proxy, collections, PATIENT_MS)
    yield index
    await index.close()


async def through(proxy: Proxy, collections: Settings, timeout_ms: int) -> MilvusItemIndex:
    changed = {"milvus_uri": f"http://127.0.0.1:{proxy.port}", "index_timeout_ms": timeout_ms}
    return await open_index(collections.model_copy(update=changed), collection(DIM, "IP"))


async def until_it_answers(index: MilvusItemIndex) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                await index.search(QUERY, 3)
            except DependencyError:
                await asyncio.sleep(0.05)
            else:
                return


async def test_a_slow_server_is_given_up_at_the_deadline(behind: MilvusItemIndex, proxy: Proxy) -> None:
    await until_it_answers(behind)
    proxy.delay_s = 30.0
    for name, call in CALLS.items():
        began_s = time.monotonic()
        with pytest.raises(DependencyTimeout, match=r"no answer in 0.5 s"):
            await call(behind)
        assert time.monotonic() - began_s < DEADLINE_S + SLACK_S, name


async def test_a_connection_that_is_lost_in_a_call_fails_it_and_the_next_one_works(
    patient: MilvusItemIndex, proxy: Proxy
) -> None:
    await until_it_answers(patient)
    for call in CALLS.values():
        proxy.delay_s = 30.0  # it is under way, and never arrives
        before = proxy.taken
        running = asyncio.ensure_future(call(patient))
        async with asyncio.timeout(20):
            while proxy.taken < before + CALL_BYTES:
                await asyncio.sleep(0.005)
        await proxy.stop()
        with pytest.raises(DependencyUnavailable):
            await running
        proxy.delay_s = 0.0
        await proxy.start()
        await until_it_answers(patient)


async def test_a_server_that_is_away_is_unavailable_at_once_and_back_without_a_new_index(
    patient: MilvusItemIndex, proxy: Proxy
) -> None:
    await until_it_answers(patient)
    await proxy.stop()
    for call in CALLS.values():
        with pytest.raises(DependencyUnavailable):
            await call(patient)
    await proxy.start()
    await until_it_answers(patient)


@one
async def test_many_calls_at_once(shelf: Shelf) -> None:
    """Writers of different items, and searches among them: nothing is mixed up, and in the end all is there."""
    ids = [shelf.ids(*(f"{writer}.{n}" for n in range(40))) for writer in range(5)]
    vectors = [shelf.vectors(40, writer) for writer in range(5)]
    queries = shelf.vectors(16, 99)

    async def write(writer: int) -> None:
        for n in range(0, 40, 10):
            rows = IndexRows(ids[writer][n : n + 10], vectors[writer][n : n + 10], [{"n": writer}] * 10)
            await shelf.index.upsert(rows)
            await shelf.index.delete([ids[writer][n]])

    async def search(n: int) -> None:
        for _ in range(5):
            hits = await shelf.search(queries[n : n + 1], 30)
            assert len(hits.item_ids) == 1

    await asyncio.gather(*(write(writer) for writer in range(5)), *(search(n) for n in range(16)))
    kept = [n for n in range(40) if n % 10]
    left = [ids[writer][n] for writer in range(5) for n in kept]
    await shelf.until(shelf.found(left, there=True))
    await shelf.until(shelf.found([ids[writer][n] for writer in range(5) for n in range(0, 40, 10)], there=False))
    stacked = np.concatenate([vectors[writer][kept] for writer in range(5)])
    shelf.assert_best(await shelf.search(queries, 20), queries, left, stacked, 20)


@one
async def test_a_call_that_is_cancelled_leaves_it_well(shelf: Shelf) -> None:
    ids, vectors = shelf.ids(*map(str, range(200))), shelf.vectors(200)
    running = [asyncio.ensure_future(shelf.index.search(shelf.vectors(16, n), 10)) for n in range(8)]
    running.append(asyncio.ensure_future(shelf.index.upsert(IndexRows(ids, vectors, [{}] * 200))))
    await asyncio.sleep(0)
    for each in running:
        each.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await shelf.upsert(ids, vectors)
    queries = shelf.vectors(4, 50)
    shelf.assert_best(await shelf.search(queries, 20), queries, ids, vectors, 20)


@one
async def test_it_answers_a_ping(shelf: Shelf) -> None:
    await shelf.index.ping()
    await shelf.index.close()
    await shelf.index.close()


async def test_a_closed_one_is_unavailable(collections: Settings) -> None:
    index = await open_index(collections, collection(DIM, "IP"))
    await index.close()
    for call in CALLS.values():
        with pytest.raises(DependencyUnavailable):
            await call(index)
