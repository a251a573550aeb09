"""The index in Milvus, or in Milvus Lite behind the same protocol.

Searches are Bounded: an upsert or delete is seen within the server's time tick, not at once (in Lite at once).
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from workers.errors import DependencyUnavailable
from workers.filters import Filter
from workers.index import milvus_expression
from workers.index import milvus_wire as wire
from workers.index.effort import EVERYTHING, MAX_EF, Shares, ef_for, probes_for
from workers.index.milvus_client import DEPENDENCY, MilvusClient, NotLoaded
from workers.index.schema import (
    ATTRIBUTES,
    EMBEDDING,
    ITEM_ID,
    Collection,
    check_queries,
    check_rows,
    last_of_each,
)
from workers.ports import MAX_SEARCH_DEPTH, Float32, Hits, IndexRows, UInt64

NPROBE: Final = "nprobe"
SLICES: Final = 32  # of about 3 % of the items each: below about 7 % Milvus leaves the graph alone


class MilvusItemIndex:
    """ItemIndex of one collection that exists and is loaded; `milvus_collection` opens it.

    Every call to the server ends after `timeout_s`; an upsert or delete of more than 1,000 rows is several calls.
    """

    def __init__(
        self,
        client: MilvusClient,
        collection: Collection,
        index_type: str,
        ef: int,
        timeout_s: float,
        *,
        lite: bool = False,
        probes: tuple[int, int] | None = None,
    ) -> None:
        """`probes`: of an IVF_FLAT index, how many of how many lists a search reads."""
        self._probes = probes
        self._client = client
        self._collection = collection
        self._ef = ef if index_type == "HNSW" else None
        self._timeout_s = timeout_s
        self._lite = lite
        self._shares = Shares(self._counted)
        self._sign = -1.0 if collection.metric == "L2" else 1.0

    async def search(self, vectors: Float32, k: int, where: Filter = ()) -> Hits:
        """The k best items of each of float32[B, D] for which the filter holds, in one call; k is cut to 16,384."""
        collection = self._collection
        check_queries(DEPENDENCY, vectors, collection.dim)
        if not len(vectors):
            return Hits([], [])
        depth = min(k, MAX_SEARCH_DEPTH)
        told = milvus_expression.expression(where, lite=self._lite)
        for params in await self._efforts(depth, told):
            request = wire.search_request(
                collection.name, vectors, depth, collection.metric, params, told, lite=self._lite
            )
            hits = wire.read_hits((await self._call("Search", request)).results, len(vectors), self._sign)
            if all(len(ids) == depth for ids in hits.item_ids):
                break
        return hits

    async def exact(self, vector: Float32, k: int) -> Hits:
        """The k best items, at most 16,384, of float32[1, D], all scores computed whatever the index; not for serving.

        Slice by slice of the items' hashes: of so few rows the server computes every score.
        """
        collection, depth = self._collection, min(k, MAX_SEARCH_DEPTH)
        params = {"ef": MAX_EF} if self._ef is not None else {}
        if self._probes is not None:
            params = {NPROBE: self._probes[1]}
        found: list[tuple[float, str]] = []
        for told in wire.slices(SLICES):
            request = wire.search_request(
                collection.name, vector, depth, collection.metric, params, told, lite=self._lite
            )
            hits = wire.read_hits((await self._call("Search", request)).results, 1, self._sign)
            found += zip((-hits.scores[0]).tolist(), hits.item_ids[0], strict=True)
        found = sorted(found)[:depth]
        scores = -np.array([negated for negated, _ in found], dtype=np.float32)
        return Hits([[item_id for _, item_id in found]], [scores])

    async def upsert(self, rows: IndexRows) -> None:
        """Write rows; of a repeated id the last one counts (the server would keep both vectors)."""
        check_rows(DEPENDENCY, rows, self._collection.dim)
        for request in wire.upsert_requests(self._collection.name, rows, last_of_each(rows.item_ids)):
            await self._call("Upsert", request)

    async def delete(self, item_ids: Sequence[str]) -> None:
        """Remove items."""
        for request in wire.delete_requests(self._collection.name, item_ids, lite=self._lite):
            await self._call("Delete", request)

    async def count(self) -> int:
        """Items that a search may find now."""
        return await self._counted(EVERYTHING)

    async def ids(self, part: int, parts: int) -> list[str]:
        """The ids of one part of the items, as a search would see them now."""
        response = await self._call(
            "Query", wire.query_request(self._collection.name, wire.slice_of(part, parts), ITEM_ID)
        )
        return [item_id for field in response.fields_data for item_id in field.scalars.string_data.data]

    async def rows(self, hashes: UInt64) -> IndexRows:
        """The rows of these item hashes, as a search would see them now."""
        if not len(hashes):
            return IndexRows([], np.zeros((0, self._collection.dim), dtype=np.float32), [])
        expression = wire.hashes_expression(hashes)
        request = wire.query_request(self._collection.name, expression, ITEM_ID, EMBEDDING, ATTRIBUTES)
        return wire.read_rows(await self._call("Query", request), self._collection.dim)

    async def visible(self, item_ids: Sequence[str]) -> list[bool]:
        """Whether each of these items is there now. A search may be one time tick (see docs) behind."""
        if not item_ids:
            return []
        expression = wire.ids_expression(item_ids, lite=self._lite)
        request = wire.query_request(self._collection.name, expression, ITEM_ID)
        response = await self._call("Query", request)
        found = {item_id for field in response.fields_data for item_id in field.scalars.string_data.data}
        return [item_id in found for item_id in item_ids]

    async def ping(self) -> None:
        """One short question. Raises DependencyError when the server does not answer, or is not healthy."""
        health = await self._call("CheckHealth", wire.health_request())
        if not health.isHealthy:
            raise DependencyUnavailable(DEPENDENCY, f"not healthy: {'; '.join(health.reasons) or 'no reason given'}")

    async def close(self) -> None:
        """Close the channel."""
        await self._client.close()

    async def _efforts(self, depth: int, told: str) -> list[dict[str, int]]:
        """What a search is to look at: of lists the nearest, and all of them where these hold too little."""
        if self._ef is not None:
            return [{"ef": ef_for(depth, self._ef, await self._share(told))}]
        if self._probes is None:
            return [{}]
        few = probes_for(*self._probes, await self._share(told))
        return [{NPROBE: few}, {NPROBE: self._probes[1]}] if few < self._probes[1] else [{NPROBE: few}]

    async def _share(self, told: str) -> float:
        return 1.0 if told == EVERYTHING else await self._shares.of(told)

    async def _counted(self, told: str) -> int:
        response = await self._call("Query", wire.query_request(self._collection.name, told, "count(*)"))
        return int(response.fields_data[0].scalars.long_data.data[0])

    async def _call(self, method: str, request: Any) -> Any:
        """One call; a collection that a restart has left unloaded (Lite does) is loaded first, and asked again."""
        try:
            return await self._client.call(method, request, self._timeout_s)
        except NotLoaded:
            await self._client.call("LoadCollection", wire.load_request(self._collection.name), self._timeout_s)
        return await self._client.call(method, request, self._timeout_s)
