"""What every item index does: Milvus, Milvus Lite and memory, every dimension and metric that is supported.

Creating a collection takes seconds, so one per dimension and metric is shared by a module's tests; each test keeps to a
prefix of ids of its own and to a direction of its own, where its items stand far before all others.
"""

import asyncio
import time
from dataclasses import replace

import numpy as np
import orjson
import pytest

from schemas.recall import FilterClause
from schemas.records import hash64_each
from tests.contract.indexes import (
    HOSTILE,
    METRICS,
    SHAPES,
    Shelf,
    backend,
    collection,
    collections,
    lite_settings,
    new_collection,
    server_settings,
    shelf,
)
from workers.errors import ConfigurationError, DependencyError, DependencyUnavailable, RowRefused
from workers.filters import checked
from workers.index.milvus import MilvusItemIndex
from workers.index.milvus_client import MilvusClient
from workers.index.milvus_collection import open_index, prepare_index, seal
from workers.index.schema import Collection, Metric, encode_attributes, part_of
from workers.ports import Hits, IndexRows
from workers.settings import Settings, load_settings

__all__ = ["backend", "collections", "lite_settings", "server_settings", "shelf"]  # fixtures

every = pytest.mark.parametrize(("dim", "metric"), SHAPES)
one = pytest.mark.parametrize(("dim", "metric"), [(32, "IP")])
each_metric = pytest.mark.parametrize(("dim", "metric"), [(64, metric) for metric in METRICS])


@every
async def test_answers_are_exact_and_in_order(shelf: Shelf) -> None:
    ids = shelf.ids(*(f"item {n}" for n in range(200)))
    vectors, queries = shelf.vectors(200, 1), shelf.vectors(16, 2)
    await shelf.upsert(ids, vectors)
    hits = await shelf.search(queries, 20)
    shelf.assert_best(hits, queries, ids, vectors, 20)


@every
async def test_exact_gives_what_all_scores_give(shelf: Shelf) -> None:
    ids = shelf.ids(*(f"item {n}" for n in range(200)))
    vectors, queries = shelf.vectors(200, 1), shelf.vectors(1, 2)
    await shelf.upsert(ids, vectors)
    shelf.assert_best(await shelf.index.exact(queries, 50), queries, ids, vectors, 50)


@every
async def test_a_batch_equals_its_rows(shelf: Shelf) -> None:
    await shelf.upsert(shelf.ids(*(f"item {n}" for n in range(64))), shelf.vectors(64, 1))
    queries = shelf.vectors(64, 2)
    batch = await shelf.search(queries, 10)
    for n in (0, 1, 31, 63):
        alone = await shelf.search(queries[n : n + 1], 10)
        assert alone.item_ids == [batch.item_ids[n]]
        assert np.allclose(alone.scores[0], batch.scores[n], rtol=1e-5, atol=1e-4)


@each_metric
async def test_upsert_replaces_and_delete_removes(shelf: Shelf) -> None:
    ids, vectors = shelf.ids("a", "b", "c"), shelf.vectors(3, 1)
    await shelf.upsert(ids, vectors)
    query = vectors[:1]
    await shelf.index.upsert(IndexRows(ids[:1], vectors[1:2] * 0.5, [{}]))
    wanted = shelf.scores(query, vectors[1:2] * 0.5)[0, 0]

    async def replaced() -> bool:
        hits = await shelf.search(query, 3)
        at = hits.item_ids[0].index(ids[0]) if ids[0] in hits.item_ids[0] else None
        return at is not None and bool(np.isclose(hits.scores[0][at], wanted, rtol=1e-4, atol=1e-4))

    await shelf.until(replaced)
    await shelf.delete([ids[1], "nobody's"])
    assert ids[1] not in (await shelf.search(query, 3)).item_ids[0]
    await shelf.delete([ids[1]])
    await shelf.upsert(ids[1:2], vectors[1:2])
    assert ids[1] in (await shelf.search(vectors[1:2], 3)).item_ids[0]


@each_metric
async def test_equal_scores_all_come(shelf: Shelf) -> None:
    ids = shelf.ids(*(f"twin {n}" for n in range(8)))
    same = np.repeat(shelf.vectors(1), 8, axis=0)
    await shelf.upsert(ids, same)
    hits = await shelf.search(same[:1], 8)
    assert sorted(hits.item_ids[0]) == sorted(ids)
    assert np.ptp(hits.scores[0]) <= 1e-3


@each_metric
async def test_a_k_larger_than_what_exists(shelf: Shelf) -> None:
    ids = shelf.ids("a", "b")
    await shelf.upsert(ids, shelf.vectors(2))
    for k in (1000, 16_384, 50_000):
        hits = await shelf.search(shelf.vectors(2), k)
        count = await shelf.index.count()
        for found in hits.item_ids:
            assert set(ids) <= set(found)
            assert len(found) <= count


@one
async def test_nothing_asked_and_nothing_written(shelf: Shelf) -> None:
    hits = await shelf.index.search(np.zeros((0, shelf.dim), dtype=np.float32), 10)
    assert hits == Hits([], [])
    await shelf.index.upsert(IndexRows([], np.zeros((0, shelf.dim), dtype=np.float32), []))
    await shelf.index.delete([])
    assert await shelf.index.visible([]) == []


@one
async def test_hostile_ids_are_found_and_deleted(shelf: Shelf) -> None:
    ids = shelf.ids(*HOSTILE)
    assert max(len(item_id.encode()) for item_id in ids) > 250
    vectors = shelf.vectors(len(ids))
    await shelf.upsert(ids, vectors, {"title": 'it\'s "quoted" \\ \n', "genres": ["'", '"']})
    hits = await shelf.search(vectors, len(ids))
    assert all(set(ids) <= set(found) for found in hits.item_ids)
    for n, item_id in enumerate(ids):
        await shelf.delete([item_id])
        await shelf.until(shelf.found(ids[n + 1 :], there=True))
        assert await shelf.index.visible(ids[n:]) == [False] + [True] * (len(ids) - n - 1)


@one
async def test_an_id_of_256_bytes(shelf: Shelf) -> None:
    ids = [shelf.prefix + "x" * (256 - len(shelf.prefix)), shelf.prefix + "é" * ((256 - len(shelf.prefix)) // 2)]
    assert [len(item_id.encode()) for item_id in ids] == [256, 255]
    await shelf.upsert(ids, shelf.vectors(2))
    await shelf.delete(ids)


@each_metric
async def test_refused_rows_are_named_and_nothing_is_written(shelf: Shelf) -> None:
    ids = shelf.ids("good", "bad", "good too", "x" * 256)
    vectors = shelf.vectors(4)
    vectors[1, 5] = np.nan
    with pytest.raises(RowRefused) as caught:
        await shelf.index.upsert(IndexRows(ids, vectors, [{}] * 4))
    assert caught.value.rows == [1, 3]
    assert await shelf.index.visible(ids[:3]) == [False] * 3


@one
async def test_a_wrong_dimension_is_refused(shelf: Shelf) -> None:
    wrong = np.ones((1, shelf.dim + 1), dtype=np.float32)
    with pytest.raises(RowRefused):
        await shelf.index.upsert(IndexRows(shelf.ids("a"), wrong, [{}]))
    with pytest.raises(RowRefused):
        await shelf.index.search(wrong, 3)
    with pytest.raises(RowRefused):
        await shelf.index.search(np.full((1, shelf.dim), np.inf, dtype=np.float32), 3)


@each_metric
async def test_of_a_repeated_id_the_last_row_counts_and_is_the_only_one(shelf: Shelf) -> None:
    [item_id] = shelf.ids("again")
    vectors = shelf.vectors(5)
    await shelf.upsert([item_id] * 5, vectors)
    hits = await shelf.search(vectors[4:], 10)
    at = hits.item_ids[0].index(item_id)
    assert np.isclose(hits.scores[0][at], shelf.scores(vectors[4:], vectors[4:])[0, 0], rtol=1e-4, atol=1e-4)
    await shelf.delete([item_id])
    assert item_id not in (await shelf.search(vectors[4:], 10)).item_ids[0]


@pytest.mark.parametrize(("dim", "metric"), [(256, "IP")])
async def test_a_large_batch(shelf: Shelf) -> None:
    ids = shelf.ids(*(f"item {n}" for n in range(2500)))
    vectors = shelf.vectors(2500)
    rows = IndexRows(ids, vectors, [{"text": "x" * 3000}] * 2500)
    await shelf.index.upsert(rows)
    await shelf.until(shelf.found(ids[-900:], there=True))
    await shelf.until(shelf.found(ids[:900], there=True))
    shelf.assert_best(await shelf.search(vectors[:4], 1000), vectors[:4], ids, vectors, 1000)
    await shelf.index.delete(ids)
    await shelf.until(shelf.found(ids[-900:], there=False))


@one
async def test_every_id_stands_in_one_part(shelf: Shelf) -> None:
    ids = shelf.ids(*(f"item {n}" for n in range(500)), *HOSTILE)
    await shelf.upsert(ids, shelf.vectors(len(ids)))
    for parts in (1, 2, 3, 7, 64):
        mine = [[i for i in await shelf.index.ids(part, parts) if i.startswith(shelf.prefix)] for part in range(parts)]
        assert sorted(item_id for part in mine for item_id in part) == sorted(ids)
        for part, found in enumerate(mine):
            assert {part_of(item_id, parts) for item_id in found} <= {part}
    await shelf.delete(ids[:1])
    assert ids[0] not in await shelf.index.ids(0, 1)


@each_metric
async def test_rows_are_given_as_they_stand(shelf: Shelf) -> None:
    ids, vectors = shelf.ids("a", "b", *HOSTILE), shelf.vectors(2 + len(HOSTILE), 1)
    attributes = {"title": 'it\'s "quoted" \\ \n🎬', "year": 1999, "price": 9.5, "genres": ["'", '"'], "used": True}
    await shelf.upsert(ids, vectors, attributes)
    rows = await shelf.index.rows(hash64_each([*ids[1:], "nobody's"]))
    assert sorted(rows.item_ids) == sorted(ids[1:])
    assert rows.vectors.dtype == np.float32
    for item_id, vector, stored in zip(rows.item_ids, rows.vectors, rows.attributes, strict=True):
        given = vectors[ids.index(item_id)]
        assert np.allclose(vector / np.linalg.norm(vector), given / np.linalg.norm(given), atol=1e-6)
        assert shelf.metric == "COSINE" or np.allclose(vector, given, rtol=1e-6)
        assert stored == orjson.loads(encode_attributes(attributes))


@one
async def test_no_rows(shelf: Shelf) -> None:
    for asked in ([], ["nobody's"]):
        rows = await shelf.index.rows(hash64_each(asked))
        assert (rows.item_ids, rows.attributes) == ([], [])
        assert rows.vectors.shape == (0, shelf.dim)


@one
async def test_close_twice(shelf: Shelf) -> None:
    await shelf.index.close()
    await shelf.index.close()


async def test_a_closed_connection_is_unavailable(collections: Settings) -> None:
    index = await open_index(collections, collection(32, "IP"))
    await index.close()
    with pytest.raises(DependencyUnavailable):
        await index.search(np.ones((1, 32), dtype=np.float32), 3)


async def test_an_unreachable_server_fails_within_its_deadline() -> None:
    with pytest.raises(DependencyUnavailable):
        await open_index(load_settings(milvus_uri="http://127.0.0.1:1"), collection(32, "IP"))
    # a server that takes connections and never answers
    silent = await asyncio.start_server(lambda reader, writer: asyncio.sleep(60), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    client = MilvusClient(load_settings(milvus_uri=f"http://127.0.0.1:{port}"))
    index = MilvusItemIndex(client, collection(32, "IP"), "FLAT", 64, timeout_s=0.5)
    for call in (
        index.search(np.ones((1, 32), dtype=np.float32), 3),
        index.upsert(IndexRows(["a"], np.ones((1, 32), dtype=np.float32), [{}])),
        index.delete(["a"]),
    ):
        started = time.monotonic()
        with pytest.raises(DependencyError):
            await call
        assert time.monotonic() - started < 30, "bounded by the deadline of half a second, not by the server"
    await index.close()
    silent.close()


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (replace(collection(64, "IP"), dim=32), "dimension 64, the bundle needs 32"),
        (replace(collection(64, "IP"), metric="L2"), "metric IP, the bundle needs L2"),
        (replace(collection(64, "IP"), model_version="v2"), "model version contract, the bundle needs v2"),
    ],
)
async def test_another_bundles_collection_is_refused_in_one_line(
    collections: Settings, other: Collection, what: str
) -> None:
    for opened in (open_index(collections, other), prepare_index(collections, other, 100)):
        with pytest.raises(ConfigurationError, match=what) as caught:
            await opened
        assert "\n" not in str(caught.value)


async def test_workers_that_prepare_at_once_share_one_collection(collections: Settings) -> None:
    fresh = new_collection(32, "IP")
    indexes = await asyncio.gather(*(prepare_index(collections, fresh, 100) for _ in range(4)))
    for n, index in enumerate(indexes):
        await index.upsert(IndexRows([f"item {n}"], np.ones((1, 32), dtype=np.float32), [{}]))
    shelf = Shelf(indexes[0], 32, "IP", "", np.ones(32, dtype=np.float32))
    await shelf.until(shelf.found([f"item {n}" for n in range(4)], there=True))
    for index in indexes:
        await index.close()


async def test_a_worker_that_searches_waits_for_the_collection(collections: Settings) -> None:
    with pytest.raises(DependencyUnavailable, match="does not exist yet"):
        await open_index(collections, new_collection(32, "IP"))


async def test_many_rows_give_a_graph_and_it_finds_the_nearest(collections: Settings) -> None:
    settings = collections.model_copy(update={"index_flat_below": 100})
    rng = np.random.default_rng(3)
    graph = new_collection(32, "IP")
    index = await prepare_index(settings, graph, 100)
    vectors = rng.standard_normal((1000, 32)).astype(np.float32)
    ids = [f"item {n}" for n in range(1000)]
    await index.upsert(IndexRows(ids, vectors, [{}] * 1000))
    shelf = Shelf(index, 32, "IP", "", vectors[0])
    await shelf.until(shelf.found(ids, there=True))
    again = await open_index(settings, graph)
    for k in (10, 400):  # a depth beyond ef raises ef
        hits = await again.search(vectors[:8], k)
        best = np.argsort(-(vectors[:8] @ vectors.T), axis=1)[:, :k]
        found = [len({ids[n] for n in row} & set(got)) for row, got in zip(best.tolist(), hits.item_ids, strict=True)]
        assert min(found) >= 0.9 * k
    (exact,) = (await again.exact(vectors[:1], 400)).item_ids
    assert exact == [ids[n] for n in np.argsort(-(vectors[:1] @ vectors.T), axis=1)[0, :400].tolist()]
    await index.close()
    await again.close()


@pytest.mark.parametrize("metric", METRICS)
async def test_lists_hold_back_nothing(server_settings: Settings, metric: Metric) -> None:
    """An IVF_FLAT index that reads one list of sixteen: what these hold too little of is searched in all of them."""
    settings = server_settings.model_copy(update={"index_type": "IVF_FLAT", "index_nlist": 16, "index_nprobe": 1})
    lists = new_collection(32, metric)
    index = await prepare_index(settings, lists, 100)
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((1000, 32)).astype(np.float32)
    ids = [f"item {n}" for n in range(1000)]
    await index.upsert(IndexRows(ids, vectors, [{"number": n % 10} for n in range(1000)]))
    shelf = Shelf(index, 32, metric, "", vectors[0])
    await shelf.until(shelf.found(ids, there=True))
    await seal(settings, lists)
    again = await open_index(settings, lists)
    hits = await again.search(vectors[:8], 5000)
    assert all(set(found) == set(ids) for found in hits.item_ids)
    where = checked([FilterClause(field="number", op="lt", value=3)], {"number": "number"})
    hits = await again.search(vectors[:8], 300, where)
    assert all(set(found) == {i for n, i in enumerate(ids) if n % 10 < 3} for found in hits.item_ids)
    (exact,) = (await again.exact(vectors[:1], 400)).item_ids
    best = np.argsort(-shelf.scores(vectors[:1], vectors)[0])[:400]
    assert exact == [ids[n] for n in best.tolist()]
    await index.close()
    await again.close()
