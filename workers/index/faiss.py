"""The index in this process, with Faiss: all scores, or a graph or lists in their place once there are enough items.

Searches and writes run in one thread of their own, writes in pieces between which searches get their turn. What is
built from all items is built in another thread, while searches go on. The next search finds what a write has written.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import faiss
import numpy as np

from schemas.records import among
from workers.errors import DependencyTimeout, DependencyUnavailable
from workers.filters import Filter
from workers.index.adapter import IndexAdapter
from workers.index.catalogue import Catalogue, Slots
from workers.index.faiss_graphs import ROWS_PER_LIST, SCORES_A_STEP, Graph, Hnsw, Ivf
from workers.index.schema import Collection, Metric, check_queries, check_rows, last_of_each
from workers.ports import MAX_SEARCH_DEPTH, Float32, Hits, IndexRows, UInt64
from workers.settings import Settings

DEPENDENCY = "faiss"
PIECE = 50  # rows of a write: some 10 ms in a graph

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Parameters:
    """As the settings that begin with `index_`. `index_type` auto: a graph from `flat_below` items on."""

    index_type: str = "auto"
    flat_below: int = 10_000
    m: int = 16
    ef_construction: int = 200
    ef: int = 200
    lists: int = 128
    probes: int = 16
    timeout_s: float = 1.5

    @staticmethod
    def of(settings: Settings) -> "Parameters":
        """Those of the settings."""
        return Parameters(
            settings.index_type,
            settings.index_flat_below,
            settings.index_m,
            settings.index_ef_construction,
            settings.index_ef,
            settings.index_nlist,
            settings.index_nprobe,
            settings.index_timeout_ms / 1000,
        )


class FaissItemIndex:
    """ItemIndex in this process. Everything is gone with it."""

    def __init__(self, collection: Collection, parameters: Parameters) -> None:
        self._collection = collection
        self._parameters = parameters
        self._metric = faiss.METRIC_L2 if collection.metric == "L2" else faiss.METRIC_INNER_PRODUCT
        self._items = Catalogue(collection.dim)
        self._graph: Graph | None = None
        self._thread = ThreadPoolExecutor(1, "faiss", partial(faiss.omp_set_num_threads, 1))
        self._builder = ThreadPoolExecutor(1, "faiss-build", partial(faiss.omp_set_num_threads, 1))
        self._writing = asyncio.Lock()
        self._closed = False

    async def search(self, vectors: Float32, k: int, where: Filter = ()) -> Hits:
        """The k best items of each of float32[B, D] for which the filter holds; k is cut to 16,384."""
        check_queries(DEPENDENCY, vectors, self._collection.dim)
        if not len(vectors):
            return Hits([], [])
        try:
            async with asyncio.timeout(self._parameters.timeout_s):
                return await self._run(lambda: self._search(vectors, min(k, MAX_SEARCH_DEPTH), where))
        except TimeoutError as error:
            raise DependencyTimeout(DEPENDENCY, f"no answer in {self._parameters.timeout_s:g} s") from error

    async def exact(self, vector: Float32, k: int) -> Hits:
        """The k best items of float32[1, D], all scores computed."""
        check_queries(DEPENDENCY, vector, self._collection.dim)
        return await self._run(lambda: self._search(vector, min(k, MAX_SEARCH_DEPTH), (), all_scores=True))

    async def upsert(self, rows: IndexRows) -> None:
        """Write rows; of a repeated id the last one counts. Waits for what is to be built anew, searches do not."""
        check_rows(DEPENDENCY, rows, self._collection.dim)
        positions = last_of_each(rows.item_ids)
        vectors = scaled(rows.vectors, self._collection.metric)
        async with self._writing:
            for start in range(0, len(positions), PIECE):
                piece = positions[start : start + PIECE]
                await self._run(partial(self._put, rows, vectors, piece))
            await self._build()

    async def delete(self, item_ids: Sequence[str]) -> None:
        """Remove items."""
        async with self._writing:
            for start in range(0, len(item_ids), PIECE):
                await self._run(partial(self._drop, item_ids[start : start + PIECE]))
            await self._build()

    async def count(self) -> int:
        """Items that a search may find."""
        return await self._run(lambda: len(self._items))

    async def ids(self, part: int, parts: int) -> list[str]:
        """The ids of one part of the items."""
        return await self._run(lambda: self._items.part(part, parts))

    async def rows(self, hashes: UInt64) -> IndexRows:
        """The rows of these item hashes; vectors of unit length under COSINE."""
        wanted = np.sort(hashes)
        return await self._run(lambda: self._items.rows(np.flatnonzero(among(self._items.hashes, wanted))))

    async def visible(self, item_ids: Sequence[str]) -> list[bool]:
        """Whether a search may find each of these items."""
        return await self._run(lambda: [item_id in self._items for item_id in item_ids])

    async def ping(self) -> None:
        """Whether it takes work. Raises DependencyUnavailable once it is closed."""
        await self._run(lambda: None)

    async def close(self) -> None:
        """Take no more work; what is under way ends by itself."""
        self._closed = True
        self._thread.shutdown(wait=False)
        self._builder.shutdown(wait=False)

    async def _run(self, work: Callable[[], T]) -> T:
        if self._closed:
            raise DependencyUnavailable(DEPENDENCY, "it is closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _put(self, rows: IndexRows, vectors: Float32, positions: Sequence[int]) -> None:
        chosen = vectors[list(positions)]
        slots = self._items.put([rows.item_ids[n] for n in positions], chosen, [rows.attributes[n] for n in positions])
        if self._graph is not None:
            self._graph.put(slots, chosen)

    def _drop(self, item_ids: Sequence[str]) -> None:
        for item_id in item_ids:
            if item_id in self._items:
                slot, last = self._items.drop(item_id)
                if self._graph is not None:
                    self._graph.move(slot, last, self._items.matrix[slot] if slot != last else self._items.matrix[:0])

    async def _build(self) -> None:
        """Build what the items want by now, or let go of it.

        Nothing changes meanwhile: the writers' lock is held, and what a cancelled writer has left in the thread is over
        once the thread has answered.
        """
        kind = await self._run(self._kind)
        if kind is None:
            self._graph = None
        elif self._graph is None or await self._run(partial(self._graph.is_worn, len(self._items))):
            loop = asyncio.get_running_loop()
            self._graph = await loop.run_in_executor(self._builder, partial(self._built, kind))

    def _kind(self) -> str | None:
        """None: all scores. What is there stays until half of it is gone: building takes its time."""
        asked, items = self._parameters, len(self._items) * (1 if self._graph is None else 2)
        if asked.index_type == "IVF_FLAT":
            return "IVF_FLAT" if items >= ROWS_PER_LIST * asked.lists else None
        if asked.index_type == "HNSW":
            return "HNSW" if items > SCORES_A_STEP * asked.ef else None
        least = max(SCORES_A_STEP * asked.ef, asked.flat_below)
        return "HNSW" if asked.index_type == "auto" and items > least else None

    def _built(self, kind: str) -> Graph:
        asked, matrix = self._parameters, self._items.matrix
        if kind == "HNSW":
            return Hnsw(matrix, self._metric, asked.m, asked.ef_construction, asked.ef)
        return Ivf(matrix, self._metric, asked.lists, asked.probes)

    def _search(self, vectors: Float32, k: int, where: Filter, *, all_scores: bool = False) -> Hits:
        queries = scaled(np.ascontiguousarray(vectors, dtype=np.float32), self._collection.metric)
        fitting = self._items.fitting(where) if where else None
        fit = len(self._items) if fitting is None else int(fitting.sum())
        depth = min(k, fit)
        if not depth:
            return Hits([[] for _ in vectors], [np.zeros(0, dtype=np.float32) for _ in vectors])
        chosen = None if fitting is None else np.flatnonzero(fitting)
        graph = None if all_scores else self._graph
        if graph is None or fit <= graph.costs(depth, fit / len(self._items)):
            scores, slots = self._all_scores(queries, depth, chosen)
        else:
            scores, slots = graph.search(queries, depth, fitting)
            short = np.flatnonzero(slots[:, -1] < 0)
            if len(short):  # the walk has ended too soon
                scores[short], slots[short] = self._all_scores(queries[short], depth, chosen)
        if self._metric == faiss.METRIC_L2:
            scores, slots = self._in_full(queries, slots)
        ids = self._items.ids
        return Hits([[ids[slot] for slot in row] for row in slots.tolist()], list(scores))

    def _all_scores(self, queries: Float32, depth: int, chosen: Slots | None) -> tuple[Float32, Slots]:
        """The best of all items, or of some slots."""
        matrix = self._items.matrix if chosen is None else self._items.matrix[chosen]
        scores, found = faiss.knn(queries, matrix, depth, metric=self._metric)
        return scores, found if chosen is None else chosen[found]

    def _in_full(self, queries: Float32, slots: Slots) -> tuple[Float32, Slots]:
        """Negative squared distances, best first: Faiss' own, from products, are off by more where vectors are near."""
        scores = np.zeros(slots.shape, dtype=np.float32)
        for row, query in enumerate(queries):
            apart = self._items.matrix[slots[row]] - query
            scores[row] = -np.einsum("nd,nd->n", apart, apart)
        order = np.argsort(-scores, axis=1, kind="stable")
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(slots, order, axis=1)


def scaled(vectors: Float32, metric: Metric) -> Float32:
    """Vectors whose products are the scores: of unit length under COSINE, zeros where there is no direction."""
    if metric != "COSINE":
        return vectors
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    unit: Float32 = np.divide(
        vectors, lengths, out=np.zeros(vectors.shape, dtype=np.float32), where=lengths > 0, casting="same_kind"
    )
    return unit


async def prepare(settings: Settings, collection: Collection, rows: int) -> FaissItemIndex:  # noqa: ARG001  # any number
    """An empty one."""
    return FaissItemIndex(collection, Parameters.of(settings))


ADAPTER = IndexAdapter(prepare, in_process=True)
