"""The index in memory: exact search in numpy. For one process, for tests, and as the measure of the others."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from schemas.records import hash64
from workers.filters import Filter, holds
from workers.index.adapter import IndexAdapter
from workers.index.schema import (
    Collection,
    check_queries,
    check_rows,
    encode_attributes,
    last_of_each,
    part_of,
)
from workers.ports import MAX_SEARCH_DEPTH, Float32, Hits, IndexRows, UInt64
from workers.settings import Settings

DEPENDENCY = "memory"


class MemoryItemIndex:
    """ItemIndex in a dict of vectors. Equal scores come in the order of item ids."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._vectors: dict[str, Float32] = {}
        self._attributes: dict[str, dict[str, Any]] = {}
        self._sorted: tuple[list[str], Float32] | None = None  # ids and matrix, until the next write

    async def search(self, vectors: Float32, k: int, where: Filter = ()) -> Hits:
        """The k best items of each of float32[B, D] for which the filter holds, all scores computed."""
        check_queries(DEPENDENCY, vectors, self._collection.dim)
        ids, matrix = self._matrix()
        if where:
            kept = [n for n, item_id in enumerate(ids) if holds(where, self._attributes[item_id])]
            ids, matrix = [ids[n] for n in kept], matrix[kept]
        depth = min(k, MAX_SEARCH_DEPTH, len(ids))
        scores = self._scores(vectors, matrix)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
        return Hits(
            item_ids=[[ids[position] for position in row] for row in best.tolist()],
            scores=[row[order] for row, order in zip(scores, best, strict=True)],
        )

    async def exact(self, vector: Float32, k: int) -> Hits:
        """The k best items of float32[1, D]: every search here computes all scores."""
        return await self.search(vector, k)

    async def upsert(self, rows: IndexRows) -> None:
        """Write rows; of a repeated id the last one counts."""
        check_rows(DEPENDENCY, rows, self._collection.dim)
        for position in last_of_each(rows.item_ids):
            item_id = rows.item_ids[position]
            self._vectors[item_id] = rows.vectors[position].astype(np.float32)
            self._attributes[item_id] = orjson.loads(encode_attributes(rows.attributes[position]))
            self._sorted = None

    async def delete(self, item_ids: Sequence[str]) -> None:
        """Remove items."""
        for item_id in item_ids:
            self._vectors.pop(item_id, None)
            self._attributes.pop(item_id, None)
            self._sorted = None

    async def count(self) -> int:
        """Items that a search may find."""
        return len(self._vectors)

    async def ids(self, part: int, parts: int) -> list[str]:
        """The ids of one part of the items."""
        return [item_id for item_id in self._vectors if part_of(item_id, parts) == part]

    async def rows(self, hashes: UInt64) -> IndexRows:
        """The rows of these item hashes."""
        wanted = set(hashes.tolist())
        ids = [item_id for item_id in self._vectors if hash64(item_id) in wanted]
        vectors = np.array([self._vectors[item_id] for item_id in ids], dtype=np.float32)
        return IndexRows(ids, vectors.reshape(len(ids), self._collection.dim), [self._attributes[i] for i in ids])

    async def visible(self, item_ids: Sequence[str]) -> list[bool]:
        """Whether a search may find each of these items."""
        return [item_id in self._vectors for item_id in item_ids]

    async def ping(self) -> None:
        """It is always there."""

    async def close(self) -> None:
        """Nothing to give back."""

    def _matrix(self) -> tuple[list[str], Float32]:
        if self._sorted is None:
            ids = sorted(self._vectors)
            matrix = np.zeros((len(ids), self._collection.dim), dtype=np.float32)
            for position, item_id in enumerate(ids):
                matrix[position] = self._vectors[item_id]
            self._sorted = ids, matrix
        return self._sorted

    def _scores(self, vectors: Float32, matrix: Float32) -> Float32:
        """float32[B, N], higher is better; a zero vector has cosine 0 with everything."""
        products: Float32 = _products(vectors, matrix)
        if self._collection.metric == "IP":
            return products
        if self._collection.metric == "COSINE":
            scale = np.linalg.norm(vectors, axis=1)[:, None] * np.linalg.norm(matrix, axis=1)[None, :]
            cosines: Float32 = np.divide(products, scale, out=np.zeros_like(products), where=scale > 0)
            return cosines
        wide, rows = vectors.astype(np.float64), matrix.astype(np.float64)  # 32 bits would cancel near a match
        distances = (wide**2).sum(axis=1)[:, None] - 2 * _products(wide, rows) + (rows**2).sum(axis=1)[None, :]
        negated: Float32 = -distances.astype(np.float32)
        return negated


def _products(vectors: NDArray[Any], matrix: NDArray[Any]) -> NDArray[Any]:
    """[B, N], row by row: one product of two matrices rounds differently for another B, which reorders near ties."""
    products: NDArray[Any] = np.zeros((len(vectors), len(matrix)), dtype=vectors.dtype)
    for row, vector in enumerate(vectors):
        products[row] = matrix @ vector.copy()
    return products


async def prepare(_: Settings, collection: Collection, rows: int) -> MemoryItemIndex:  # noqa: ARG001  # any number
    """An empty one."""
    return MemoryItemIndex(collection)


ADAPTER = IndexAdapter(prepare, in_process=True)
