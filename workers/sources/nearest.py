"""Candidates by vector: the items of the index that are nearest to something that the towers know of the request.

History vectors and the user tower's vector are compared with the same item vectors: a history vector is what the item
says of a user who has had nothing else. So the mean of some is a query too.
"""

from collections.abc import Sequence

import numpy as np

from workers.filters import Filter
from workers.ports import Float32, Hits, ItemIndex, Query

MILVUS = "milvus"


class TowerSource:
    """The items nearest to the user tower's vector."""

    def __init__(self, index: ItemIndex, dependency: str = MILVUS) -> None:
        self.dependency = dependency
        self._index = index

    def answers(self, query: Query) -> bool:
        """Those with an embedding."""
        return query.embedding is not None

    async def candidates(self, queries: Sequence[Query], depth: int, where: Filter) -> Hits:
        """One search for all."""
        return await self._index.search(
            np.stack([query.embedding for query in queries if query.embedding is not None]), depth, where
        )


class SessionSource:
    """The items nearest to the mean of the session's items: what the user is after now."""

    def __init__(self, index: ItemIndex, dependency: str = MILVUS) -> None:
        self.dependency = dependency
        self._index = index

    def answers(self, query: Query) -> bool:
        """Those of users with a known item in the session."""
        return bool(query.session.any())

    async def candidates(self, queries: Sequence[Query], depth: int, where: Filter) -> Hits:
        """One search for all."""
        return await self._index.search(np.stack([_mean(query.session) for query in queries]), depth, where)


class SimilarSource:
    """The items nearest to the mean of the anchors of a request: more like these. The anchors are not among them."""

    def __init__(self, index: ItemIndex, dependency: str = MILVUS) -> None:
        self.dependency = dependency
        self._index = index

    def answers(self, query: Query) -> bool:
        """Those with an anchor that is a known item."""
        return bool(query.anchors.any())

    async def candidates(self, queries: Sequence[Query], depth: int, where: Filter) -> Hits:
        """One search for all."""
        return await self._index.search(np.stack([_mean(query.anchors) for query in queries]), depth, where)


def _mean(vectors: Float32) -> Float32:
    """float32[D] of float32[n, D]: the mean of those that are not zeros, which stand for unknown items."""
    mean: Float32 = vectors[vectors.any(axis=1)].mean(axis=0)
    return mean
