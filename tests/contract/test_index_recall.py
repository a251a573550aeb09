"""The recall that each item index states, of 20,000 vectors in clusters, 64 dimensions, top 100.

The floors are what docs/indexes.md states; parameters are the defaults of the settings but for IVF_FLAT, which has none
that fit any number of items.
"""

import asyncio
import uuid
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tests.clusters import Clusters, recall
from tests.contract.indexes import METRICS
from workers.index import faiss, memory
from workers.index.milvus_collection import merged, prepare_index, seal
from workers.index.schema import Collection, Metric
from workers.ports import Hits, IndexRows, ItemIndex
from workers.settings import IndexType, Settings, load_settings

ITEMS, QUERIES, DIM, K = 20_000, 128, 64, 100
FLOORS: dict[IndexType, float] = {"FLAT": 0.9999, "HNSW": 0.94, "IVF_FLAT": 0.99}
PARAMETERS = {"index_m": 16, "index_ef_construction": 200, "index_ef": 200, "index_nlist": 128, "index_nprobe": 16}
PATIENT = {"index_timeout_ms": 60_000}
FILLED_WITHIN_S = 60.0
MERGED_WITHIN_S = 15.0  # it need not be one segment
# A graph of so many takes long to build: under one metric here, under each of fewer items in unit/test_faiss.py.
FAISS: list[tuple[IndexType, Metric]] = [
    ("HNSW", "IP"),
    *((kind, metric) for kind in ("FLAT", "IVF_FLAT") for metric in METRICS),
]
MILVUS: list[tuple[IndexType, Metric]] = [("HNSW", "IP"), ("HNSW", "L2"), ("IVF_FLAT", "IP"), ("IVF_FLAT", "COSINE")]


@dataclass(frozen=True)
class Data:
    """Vectors, and positions of the nearest of each query by metric."""

    clusters: Clusters
    best: dict[Metric, np.ndarray]


@pytest.fixture(scope="module")
def data() -> Data:
    clusters = Clusters.of(ITEMS, QUERIES, DIM)
    return Data(clusters, {metric: clusters.best(metric, K) for metric in METRICS})


def chosen(metric: Metric) -> Collection:
    return Collection(f"recall_{uuid.uuid4().hex[:8]}", DIM, metric, "v1")


async def fill(index: ItemIndex, data: Data) -> None:
    ids, vectors = data.clusters.ids, data.clusters.items
    for n in range(0, ITEMS, 1000):
        await index.upsert(IndexRows(ids[n : n + 1000], vectors[n : n + 1000], [{}] * 1000))
    async with asyncio.timeout(FILLED_WITHIN_S):
        while await index.count() < ITEMS:
            await asyncio.sleep(0.05)


async def found(index: ItemIndex, data: Data) -> Hits:
    """In batches of 64, as a worker asks."""
    ids, scores = [], []
    for n in range(0, QUERIES, 64):
        hits = await index.search(data.clusters.queries[n : n + 64], K)
        ids += hits.item_ids
        scores += hits.scores
    return Hits(ids, scores)


async def judge(index: ItemIndex, data: Data, metric: Metric, floor: float) -> float:
    """Its recall, and that `exact` is."""
    hits = await found(index, data)
    assert all((np.diff(scores) <= 0).all() for scores in hits.scores)
    reached = recall(data.best[metric], hits)
    assert reached >= floor, metric
    exact = await index.exact(data.clusters.queries[:1], K)
    assert recall(data.best[metric][:1], exact) >= 0.99, "two that 32 bits cannot tell apart may change places"
    return reached


def settings_of(index_type: IndexType, **changed: Any) -> Settings:
    return load_settings(index_type=index_type, **(PARAMETERS | PATIENT | changed))


@pytest.mark.parametrize(("index_type", "metric"), FAISS)
async def test_faiss(data: Data, index_type: IndexType, metric: Metric) -> None:
    index = await faiss.prepare(settings_of(index_type), chosen(metric), ITEMS)
    await fill(index, data)
    assert (index._graph is None) is (index_type == "FLAT")
    reached = await judge(index, data, metric, FLOORS[index_type])
    print(f"faiss {index_type} {metric}: {reached:.3f}")
    await index.close()


@pytest.mark.parametrize("metric", METRICS)
async def test_memory(data: Data, metric: Metric) -> None:
    index = await memory.prepare(settings_of("auto"), chosen(metric), ITEMS)
    await fill(index, data)
    await judge(index, data, metric, FLOORS["FLAT"])


async def test_milvus(stack: Any, data: Data, module_namespace: str) -> None:
    """All at once: most of the time goes by while the server builds, and merges what it has built.

    Not every type and metric, for the time that takes; that FLAT is exact under every metric is said in
    test_item_index.py, as of Milvus Lite.
    """

    async def one(index_type: IndexType, metric: Metric) -> None:
        settings = settings_of(index_type, milvus_uri=stack.milvus_uri)
        collection = Collection(f"{module_namespace}_{index_type}_{metric}", DIM, metric, "v1")
        index = await prepare_index(settings, collection, ITEMS)
        await fill(index, data)
        await seal(settings, collection)
        segments = await merged(settings, collection, MERGED_WITHIN_S)
        reached = await judge(index, data, metric, FLOORS[index_type])
        print(f"milvus {index_type} {metric}: {reached:.3f}, {segments} segments")
        await index.close()

    await asyncio.gather(*(one(*case) for case in MILVUS))
