"""The index in the process: what its graph and lists follow, what it holds on to, and searches beside writes."""

import asyncio
import threading
import time
from contextlib import suppress
from typing import Any

import faiss as vendor
import numpy as np
import pytest

from schemas.recall import FilterClause
from schemas.records import hash64_each
from workers.errors import DependencyTimeout, DependencyUnavailable
from workers.filters import checked
from workers.index.catalogue import Catalogue, Slots
from workers.index.faiss import PIECE, FaissItemIndex, Parameters, scaled
from workers.index.faiss_graphs import Graph, Hnsw, Ivf
from workers.index.memory import MemoryItemIndex
from workers.index.schema import Collection, Metric, part_of
from workers.ports import Float32, Hits, IndexRows

DIM = 16
vendor.omp_set_num_threads(1)  # as in the threads of an index: more of them only wait for one another here
EVERYTHING = 16_384
BELOW = checked([FilterClause(field="n", op="lt", value=30)], {"n": "number"})


def vectors(count: int, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)


def index_of(parameters: Parameters, metric: Metric = "IP") -> FaissItemIndex:
    return FaissItemIndex(Collection("items", DIM, metric, "v1"), parameters)


def rows(ids: list[str], of: Float32, n: int = 0) -> IndexRows:
    return IndexRows(ids, of, [{"n": (n + m) % 100} for m in range(len(ids))])


def graph(kind: str, matrix: Float32) -> Graph:
    if kind == "hnsw":
        return Hnsw(matrix, vendor.METRIC_INNER_PRODUCT, 16, 100, 400)
    return Ivf(matrix, vendor.METRIC_INNER_PRODUCT, 4, 4)


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
@pytest.mark.parametrize("distinct", [1000, 30, 3])
@pytest.mark.parametrize("seed", range(4))
def test_a_graph_follows_its_slots(kind: str, distinct: int, seed: int) -> None:
    """Random writes and removals: it finds the nearest of what there is, filtered or not, and nothing else."""
    rng = np.random.default_rng(seed)
    pool = vectors(distinct, seed)
    items = Catalogue(DIM)
    items.put([f"item {n}" for n in range(200)], pool[rng.integers(0, distinct, 200)], [{}] * 200)
    ours = graph(kind, items.matrix)
    for _ in range(60):
        if rng.random() < 0.5:
            ids = list({f"item {n}" for n in rng.integers(0, 300, 8)})
            new = pool[rng.integers(0, distinct, len(ids))]
            ours.put(items.put(ids, new, [{}] * len(ids)), new)
        else:
            for item_id in [items.ids[n] for n in rng.choice(len(items), 5, replace=False)]:
                slot, last = items.drop(item_id)
                ours.move(slot, last, items.matrix[slot] if slot != last else items.matrix[:0])
    queries = vectors(5, 77)
    scores = queries @ items.matrix.T
    for fitting in (None, rng.random(len(items)) < 0.5):
        left = np.arange(len(items)) if fitting is None else np.flatnonzero(fitting)
        found, slots = ours.search(queries, len(left), fitting)
        assert [sorted(row) for row in slots.tolist()] == [left.tolist()] * 5
        assert np.allclose(found, np.take_along_axis(scores, slots, axis=1), atol=1e-5)
        assert (np.diff(found, axis=1) <= 0).all()
        assert (ours.search(queries, len(left) + 3, fitting)[1][:, -3:] == -1).all()
        best, slots = ours.search(queries, 20, fitting)
        assert all(len(set(row)) == 20 and set(row) <= set(left.tolist()) for row in slots.tolist())
        assert np.allclose(best, found[:, :20], atol=1e-5)


@pytest.mark.parametrize("metric", ["IP", "L2"])
@pytest.mark.parametrize("size", [40, 300])
def test_items_with_the_same_vector_hide_nobody_from_a_graph(size: int, metric: Metric) -> None:
    """As a tower gives them that knows items by their attributes alone; beside them are items with their own."""
    groups = vectors(2400 // size, 1)
    matrix = np.concatenate([vectors(2000, 2), np.repeat(groups, size, axis=0)])
    matrix = matrix[np.random.default_rng(3).permutation(len(matrix))]
    queries = np.concatenate([vectors(100, 4), groups[:60]])
    kind = vendor.METRIC_L2 if metric == "L2" else vendor.METRIC_INNER_PRODUCT
    slots = Hnsw(matrix, kind, 16, 200, 200).search(queries, 100, None)[1]
    scores = queries @ matrix.T if metric == "IP" else -((queries[:, None] - matrix) ** 2).sum(axis=2)
    least = np.sort(scores, axis=1)[:, -100:-99]
    reached = (np.take_along_axis(scores, np.maximum(slots, 0), axis=1) >= least - 1e-4) & (slots >= 0)
    found = reached.mean(axis=1)
    print(f"groups of {size}, {metric}: recall {found.mean():.3f}, least {found.min():.2f}")
    assert found.mean() >= 0.95
    assert found.min() >= 0.8


def test_a_graph_has_one_node_for_what_is_equal() -> None:
    matrix = np.repeat(vectors(3), 100, axis=0)
    matrix[0, 0], matrix[1, 0] = 0.0, -0.0
    matrix[:2, 1:] = matrix[2, 1:]
    ours = Hnsw(matrix, vendor.METRIC_L2, 16, 100, 100)
    assert ours.nodes == 4
    ours.put(np.arange(300), matrix)  # attributes have changed
    assert ours.nodes == 4
    ours.put(np.arange(2), matrix[2:4])
    ours.put(np.arange(2), matrix[:2])  # what was dead is used again
    assert ours.nodes == 4
    assert set(ours.search(matrix[:1], 2, None)[1][0].tolist()) == {0, 1}


@pytest.mark.parametrize("index_type", ["FLAT", "HNSW", "IVF_FLAT"])
@pytest.mark.parametrize("metric", ["IP", "COSINE", "L2"])
async def test_it_holds_what_the_one_in_memory_holds(index_type: str, metric: Metric) -> None:
    ours = index_of(Parameters(index_type, ef=1, lists=4, probes=4), metric)
    exact = MemoryItemIndex(Collection("items", DIM, metric, "v1"))
    rng = np.random.default_rng(4)
    for turn in range(30):
        ids = [f"item {n}" for n in rng.integers(0, 400, 40)]  # some of them twice
        gone = [f"item {n}" for n in rng.integers(0, 400, 10)]
        new = rows(ids, vectors(40, turn), turn)
        for index in (ours, exact):
            await index.upsert(new)
            await index.delete(gone)
        if turn % 5:
            continue
        for where in ((), BELOW):
            found, wanted = [await each.search(vectors(3, 99), EVERYTHING, where) for each in (ours, exact)]
            assert [set(each) for each in found.item_ids] == [set(each) for each in wanted.item_ids]
            for one, other in zip(found.scores, wanted.scores, strict=True):
                assert np.allclose(one, other, rtol=1e-4, atol=1e-4)
    assert await ours.count() == await exact.count()
    for part in range(7):
        mine = await ours.ids(part, 7)
        assert sorted(mine) == sorted(await exact.ids(part, 7))
        assert {part_of(item_id, 7) for item_id in mine} <= {part}
    ids = await exact.ids(0, 1)
    mine, theirs = [await each.rows(hash64_each(ids)) for each in (ours, exact)]
    attributes = dict(zip(mine.item_ids, mine.attributes, strict=True))
    assert attributes == dict(zip(theirs.item_ids, theirs.attributes, strict=True))
    await ours.close()


def test_a_zero_vector_has_no_direction() -> None:
    unit = scaled(np.array([[0, 0], [3, 4], [1e-30, 0], [3e30, 4e30]], dtype=np.float32), "COSINE")
    assert np.allclose(unit, [[0, 0], [0.6, 0.8], [1, 0], [0.6, 0.8]])


async def test_updates_without_end_do_not_fill_memory() -> None:
    items, ours = 3000, index_of(Parameters("HNSW", ef=4))
    ids, most = [f"item {n}" for n in range(items)], 0
    for turn in range(6):
        await ours.upsert(rows(ids, vectors(items, turn)))
        assert isinstance(ours._graph, Hnsw)
        most = max(most, ours._graph.nodes)
    assert most <= 2 * items + 1000
    assert ours._items._vectors.shape[0] <= 2 * items + 1024
    for _ in range(50):  # changes that no search has asked about
        ours._items._masks.changed(range(10_000))
    await ours.search(vectors(1), 5, BELOW)
    for _ in range(50):
        ours._items._masks.changed(range(10_000))
    assert len(ours._items._masks._changes) <= 100_000
    hits = await ours.search(vectors(4, 9), 10)
    best = np.argsort(-(vectors(4, 9) @ vectors(items, 5).T), axis=1)[:, :10]
    found = [len({ids[n] for n in row} & set(got)) for row, got in zip(best.tolist(), hits.item_ids, strict=True)]
    assert sum(found) >= 20, "of 40, with an ef of 10"
    await ours.delete(ids)
    assert await ours.count() == 0
    assert ours._graph is None
    await ours.close()


async def test_searches_get_their_turn_beside_writes_and_see_what_has_returned() -> None:
    """Also while a graph is built, which takes a second here."""
    items, ours = 6000, index_of(Parameters("HNSW", ef=4, timeout_s=30.0))
    ids, known, waits_s = [f"item {n}" for n in range(items)], 0, []
    written = vectors(items)

    async def write() -> None:
        nonlocal known
        for n in range(0, items, 500):
            await ours.upsert(rows(ids[n : n + 500], written[n : n + 500]))
            known = n + 500

    async def search() -> None:
        while known < items:
            before, began_s = known, time.perf_counter()
            hits = await ours.search(written[before - 1 : before] if before else written[:1], EVERYTHING)
            waits_s.append(time.perf_counter() - began_s)
            assert set(ids[:before]) <= set(hits.item_ids[0])
            await asyncio.sleep(0)

    await asyncio.gather(write(), search(), search())
    assert len(waits_s) > 10
    print(f"{len(waits_s)} searches, the longest {max(waits_s):.3f} s")
    await ours.close()


async def test_the_loop_turns_while_it_works() -> None:
    ours = index_of(Parameters("HNSW", ef=4))
    turns, done = 0, threading.Event()

    async def count() -> None:
        nonlocal turns
        while not done.is_set():
            turns += 1
            await asyncio.sleep(0.001)

    counting = asyncio.create_task(count())
    await ours.upsert(rows([f"item {n}" for n in range(4000)], vectors(4000)))
    done.set()
    await counting
    assert turns > 10, "of some hundreds"
    await ours.close()


async def _in_time(index: FaissItemIndex) -> Hits:
    """Searches until a busy machine lets one end within its deadline."""
    while True:
        with suppress(DependencyTimeout):
            return await index.search(vectors(1), 3)


async def test_a_search_ends_at_its_deadline_and_later_ones_work() -> None:
    ours = index_of(Parameters("FLAT", timeout_s=0.05))
    await ours.upsert(rows(["a"], vectors(1)))
    free = threading.Event()
    ours._thread.submit(free.wait)
    began_s = time.monotonic()
    with pytest.raises(DependencyTimeout, match=r"faiss: no answer in 0.05 s"):
        await ours.search(vectors(1), 3)
    assert time.monotonic() - began_s < 20
    free.set()
    async with asyncio.timeout(20):
        assert (await _in_time(ours)).item_ids == [["a"]]
    await ours.close()
    await ours.close()
    for call in (ours.search(vectors(1), 3), ours.upsert(rows(["a"], vectors(1))), ours.ping(), ours.count()):
        with pytest.raises(DependencyUnavailable, match="closed"):
            await call


async def test_what_a_cancelled_write_still_does_is_in_the_graph() -> None:
    items, ours = 350, index_of(Parameters("HNSW", ef=4), "L2")
    ids, put, build = [f"item {n}" for n in range(items)], ours._items.put, ours._built
    entered, go = threading.Event(), threading.Event()

    def slow(item_ids: list[str], *rest: Any) -> Slots:
        if item_ids[-1] == ids[-1]:
            entered.set()
            assert go.wait(10)
        return put(item_ids, *rest)

    def built(kind: str) -> Graph:
        made = build(kind)
        go.set()
        ours._thread.submit(lambda: None).result(10)  # whatever is under way there comes before
        return made

    ours._items.put, ours._built = slow, built  # type: ignore[method-assign, assignment]
    writing = asyncio.create_task(ours.upsert(rows(ids, vectors(items))))
    assert await asyncio.to_thread(entered.wait, 10)
    assert len(ours._items) == items - PIECE
    writing.cancel()
    await asyncio.wait([writing])
    deleting = asyncio.create_task(ours.delete([]))
    async with asyncio.timeout(10):
        while not (go.is_set() or ours._thread._work_queue.qsize()):  # it builds, or waits for the thread
            await asyncio.sleep(0.001)
    go.set()
    await deleting
    assert isinstance(ours._graph, Hnsw)
    assert ours._graph.nodes == await ours.count() == items
    assert set(ours._graph.search(vectors(1), items, None)[1][0].tolist()) == set(range(items))
    await ours.delete(ids)
    assert await ours.count() == 0
    await ours.close()


async def test_auto_makes_a_graph_where_it_pays_and_keeps_it_for_a_while() -> None:
    ours = index_of(Parameters("auto", flat_below=1000, ef=4))
    ids = [f"item {n}" for n in range(1500)]
    await ours.upsert(rows(ids[:900], vectors(900)))
    assert ours._graph is None
    await ours.upsert(rows(ids[900:], vectors(600)))
    assert isinstance(ours._graph, Hnsw)
    await ours.delete(ids[:800])
    assert ours._graph is not None
    await ours.delete(ids[800:1100])
    assert ours._graph is None
    await ours.close()
