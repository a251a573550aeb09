"""Step 5: each source of a request's scene is asked, if the request has what it goes by.

One call for all that ask for the same depth and filter.
"""

import asyncio
from collections.abc import Mapping, Sequence

import numpy as np

from schemas.recall import Reason
from workers.filters import Filter
from workers.pipelines.attempts import Attempts
from workers.pipelines.rows import Found, Row
from workers.ports import CandidateSource, Hits


class Retrieval:
    """The sources by name. No call of one that waits for a backend may take longer than `limit_ms`."""

    def __init__(self, sources: Mapping[str, CandidateSource], limit_ms: int) -> None:
        self._sources = sources
        self._limit_ms = limit_ms

    async def run(self, rows: Sequence[Row], depths: Sequence[int], attempt: Attempts) -> None:
        """Set `found` of each row, source by source; rows of a call that fails have the reason added instead."""
        groups: dict[tuple[str, int, Filter], list[Row]] = {}
        for row, depth in zip(rows, depths, strict=True):
            for share in row.asked.sources:
                if self._sources[share.name].answers(row.query):
                    groups.setdefault((share.name, depth, row.asked.where), []).append(row)
                else:
                    row.found[share.name] = Found()  # whether its backend is there or not
        await asyncio.gather(*(self._ask(*group, asking, attempt) for group, asking in groups.items()))

    async def _ask(self, name: str, depth: int, where: Filter, rows: Sequence[Row], attempt: Attempts) -> None:
        source = self._sources[name]
        work = source.candidates([row.query for row in rows], depth, where)
        if source.dependency is None:  # it is there however little time is left
            hits: Hits | None = await work
        else:
            hits = await attempt(source.dependency, work, self._limit_ms)
        for n, row in enumerate(rows):
            if hits is None or not np.isfinite(hits.scores[n]).all():
                row.fail(Reason.INDEX_UNAVAILABLE)
            else:
                row.found[name] = Found(hits.item_ids[n], hits.scores[n], whole=len(hits.item_ids[n]) < depth)
