"""Candidates by vector: the items of the index that are nearest to something that the towers know of the request.

History vectors and the user tower's vector are compared with the same item vectors: a history vector is what the item
says of a user who has had nothing else. So the mean of some is a query too.
"""

from collections.abc import Sequence

import numpy as np

from workers.filters import Filter
from workers.ports import Float32, Hits, ItemIndex, Query

MILVUS = "milvus"
NOTHING = np.zeros(0, dtype=np.float32)


class TowerSource:
    """The items nearest to the user tower's vector."""

    def __init__(self, index: ItemIndex, dependency: str = MILVUS) -> None:
        self.dependency = dependency
        self._index = index

    async def candidates(self, queries: Sequence[Query], depth: int, where: Filter) -> Hits:
        """None for a query without embedding."""
        return await _nearest(self._index, [query.embedding for query in queries], depth, where)


class SessionSource:
    """The items nearest to the mean of the session's items: what the user is after now."""

    def __init__(self, index: ItemIndex, dependency: str = MILVUS) -> None:
        self.dependency = dependency
        self._index = index

    async def candidates(self, queries: Sequence[Query], depth: int, where: Filter) -> Hits:
        """None for a user without events in the session."""
        return await _nearest(self._index, [_mean(query.session) for query in queries], depth, where)


class SimilarSource:
    """The items nearest to the mean of the anchors of a request: more like these. The anchors are not among them."""

    def __init__(self, index: ItemIndex, dependency: str = MILVUS) -> None:
        self.dependency = dependency
        self._index = index

    async def candidates(self, queries: Sequence[Query], depth: int, where: Filter) -> Hits:
        """None for a query without an anchor that is a known item."""
        return await _nearest(self._index, [_mean(query.anchors) for query in queries], depth, where)


def _mean(vectors: Float32) -> Float32 | None:
    """float32[D] of float32[n, D]: the mean of those that are not zeros, which stand for unknown items."""
    known = vectors[vectors.any(axis=1)] if len(vectors) else vectors
    mean: Float32 | None = known.mean(axis=0) if len(known) else None
    return mean


async def _nearest(index: ItemIndex, vectors: Sequence[Float32 | None], depth: int, where: Filter) -> Hits:
    """One search for all that are there."""
    hits = Hits([[] for _ in vectors], [NOTHING for _ in vectors], asked=any(v is not None for v in vectors))
    rows = [row for row, vector in enumerate(vectors) if vector is not None]
    if rows:
        asked = np.stack([vector for vector in vectors if vector is not None])
        found = await index.search(asked, depth, where)
        for row, item_ids, scores in zip(rows, found.item_ids, found.scores, strict=True):
            hits.item_ids[row], hits.scores[row] = item_ids, scores
    return hits
