"""Every adapter of an item index, and a test's own part of the collections that all tests share. The fixtures are
imported where they are used."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pytest

from tests.conftest import drop_collections
from workers.index.faiss import FaissItemIndex, Parameters
from workers.index.memory import MemoryItemIndex
from workers.index.milvus import MilvusItemIndex
from workers.index.milvus_collection import open_index, prepare_index
from workers.index.schema import Collection, Metric
from workers.local.milvus_lite import MilvusLite
from workers.ports import Float32, Hits, IndexRows
from workers.settings import Settings, load_settings

METRICS = get_args(Metric)
SHAPES = [(64, metric) for metric in METRICS] + [(dim, "IP") for dim in (32, 128, 256)]  # each dim, each metric
VERSION = "contract"
OURS = f"contract_{uuid.uuid4().hex[:8]}"
VISIBLE_WITHIN_S = 10.0
HOSTILE = [
    "it's", 'say "x"', "back\\slash", "\\", "new\nline", "tab\t", "nul\0", "🎬 film", "é" * 122, "%_*?", "a,b]", "'",
    "\u2028", "or 1 == 1", "bell\a", "\b\f", "\\n", "\\u0041", "\r\n", "\x7f",
]  # fmt: skip

Index = MemoryItemIndex | FaissItemIndex | MilvusItemIndex
FAISS = {
    "faiss-flat": Parameters("FLAT", timeout_s=5.0),
    "faiss-hnsw": Parameters("HNSW", ef=2, timeout_s=5.0),
    "faiss-ivf": Parameters("IVF_FLAT", lists=4, probes=4, timeout_s=5.0),
}


def collection(dim: int, metric: Metric) -> Collection:
    return Collection(f"{OURS}_{dim}_{metric.lower()}", dim, metric, VERSION)


def new_collection(dim: int, metric: Metric) -> Collection:
    """One that is not there yet."""
    return Collection(f"{OURS}_{uuid.uuid4().hex[:8]}", dim, metric, VERSION)


@pytest.fixture(scope="module")
def server_settings(stack: Any) -> Iterator[Settings]:
    """Settings of the run's Milvus, which holds every collection."""
    yield _with_collections(stack.settings(index_timeout_ms=5000))
    drop_collections(stack, OURS)


@pytest.fixture(scope="module")
def lite_settings(lite: MilvusLite) -> Settings:
    """The same of Milvus Lite."""
    return _with_collections(load_settings(milvus_uri=lite.address, index_timeout_ms=5000))


@pytest.fixture(params=["server_settings", "lite_settings"], ids=["milvus", "milvus-lite"])
def collections(request: pytest.FixtureRequest) -> Settings:
    """Settings of each server in turn."""
    found: Settings = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=["memory", *FAISS, "milvus", "milvus-lite"])
def backend(request: pytest.FixtureRequest) -> Settings | str:
    """Settings of each adapter's server in turn; the name of an index in the process."""
    servers = {"milvus": "server_settings", "milvus-lite": "lite_settings"}
    found: Settings | str = request.param
    if request.param in servers:
        found = request.getfixturevalue(servers[request.param])
    return found


def _with_collections(settings: Settings) -> Settings:
    """Make them all at once: it takes little longer than one."""

    async def make() -> None:
        prepared = await asyncio.gather(*(prepare_index(settings, collection(d, m), 100) for d, m in SHAPES))
        await asyncio.gather(*(index.close() for index in prepared))

    asyncio.run(make())
    return settings


@dataclass(frozen=True)
class Shelf:
    """An index and this test's part of it."""

    index: Index
    dim: int
    metric: Metric
    prefix: str
    away: Float32  # float32[dim]: where this test's items lie

    def ids(self, *names: str) -> list[str]:
        return [f"{self.prefix}{name}" for name in names]

    def vectors(self, count: int, seed: int = 0) -> Float32:
        """Vectors about this test's direction: under every metric nearer to its queries than other tests' are."""
        noise = np.random.default_rng(seed).standard_normal((count, self.dim)).astype(np.float32)
        return self.away + 0.3 * noise

    def scores(self, queries: Float32, vectors: Float32) -> Float32:
        """float64[B, N] by the definition of the metric."""
        wide, rows = queries.astype(np.float64), vectors.astype(np.float64)
        if self.metric == "L2":
            return -((wide[:, None, :] - rows[None, :, :]) ** 2).sum(axis=2)
        products = wide @ rows.T
        if self.metric == "COSINE":
            products /= np.linalg.norm(wide, axis=1)[:, None] * np.linalg.norm(rows, axis=1)[None, :]
        return products

    async def upsert(self, ids: Sequence[str], vectors: Float32, attributes: dict[str, Any] | None = None) -> None:
        await self.index.upsert(IndexRows(ids, vectors, [attributes or {}] * len(ids)))
        await self.until(self.found(ids, there=True))

    async def delete(self, ids: Sequence[str]) -> None:
        await self.index.delete(ids)
        await self.until(self.found(ids, there=False))

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        """Ask until it holds: what was written is seen a moment later."""
        end = time.monotonic() + VISIBLE_WITHIN_S
        while not await condition():
            assert time.monotonic() < end, "not seen in time"
            await asyncio.sleep(0.01)

    async def search(self, queries: Float32, k: int) -> Hits:
        hits = await self.index.search(queries, k)
        assert len(hits.item_ids) == len(hits.scores) == len(queries)
        for ids, scores in zip(hits.item_ids, hits.scores, strict=True):
            assert scores.dtype == np.float32
            assert scores.shape == (len(ids),)
            assert len(set(ids)) == len(ids)
            assert (np.diff(scores) <= 0).all()
        return hits

    def assert_best(self, hits: Hits, queries: Float32, ids: Sequence[str], vectors: Float32, k: int) -> None:
        """The k best and their scores, in order; items whose scores 32 bits cannot tell apart may change places."""
        exact = self.scores(queries, vectors)
        error = 4e-6 * np.abs(exact).max()
        position = {item_id: n for n, item_id in enumerate(ids)}
        for found, scores, row in zip(hits.item_ids, hits.scores, exact, strict=True):
            assert len(found) == k
            assert np.allclose(scores, np.sort(row)[::-1][:k], rtol=0, atol=error)
            assert np.allclose(scores, row[[position[item_id] for item_id in found]], rtol=0, atol=error)

    def found(self, ids: Sequence[str], *, there: bool) -> Callable[[], Awaitable[bool]]:
        """Whether searches find all of them, or none: a search may see a write a little later than a query."""

        async def check() -> bool:
            everything = set((await self.index.search(self.away[None], 16_384)).item_ids[0])
            return all((item_id in everything) is there for item_id in ids)

        return check


def _away(prefix: str, dim: int) -> Float32:
    direction = np.random.default_rng(list(prefix.encode())).standard_normal(dim)
    return (direction / np.linalg.norm(direction) * 10).astype(np.float32)


@pytest.fixture
async def shelf(backend: Settings | str, dim: int, metric: Metric) -> AsyncIterator[Shelf]:
    index: Index = MemoryItemIndex(collection(dim, metric))
    if isinstance(backend, Settings):
        index = await open_index(backend, collection(dim, metric))
    elif backend in FAISS:
        index = FaissItemIndex(collection(dim, metric), FAISS[backend])
    prefix = f"{uuid.uuid4().hex[:8]}:"
    yield Shelf(index, dim, metric, prefix, _away(prefix, dim))
    await index.close()
