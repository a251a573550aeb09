"""The history vectors of anchors: what a source goes by that looks for more like them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from schemas.recall import Reason
from schemas.records import hash64_each
from workers.pipelines.attempts import Attempts
from workers.pipelines.rows import Row
from workers.ports import HistoryVectors


async def read_anchors(rows: Sequence[Row], items: HistoryVectors, attempt: Attempts, limit_ms: int) -> None:
    """Set `anchors` of the queries of rows that have some; where one is not to be had, the reason is added.

    Nothing is read in vain: a request with anchors has a source that goes by them (`admit`). What is in memory is no
    answer of Redis: it does not close its breaker, and is there while that is open.
    """
    asking = [row for row in rows if row.asked.request.anchor_items]
    if not asking:
        return
    counts = [len(row.asked.request.anchor_items) for row in asking]
    hashes = np.zeros((len(asking), max(counts)), dtype=np.uint64)
    for n, row in enumerate(asking):
        hashes[n, : counts[n]] = hash64_each(row.asked.request.anchor_items)
    vectors, missing = items.at_hand(hashes)
    lacking = missing
    if missing.any():
        read = await attempt("redis", items.vectors(np.where(missing, hashes, np.uint64(0))), limit_ms)
        if read is not None:
            vectors[missing], lacking = read[0][missing], read[1]
    for n, row in enumerate(asking):
        row.query = replace(row.query, anchors=vectors[n, : counts[n]])
        if lacking[n].any():
            row.fail(Reason.FEATURES_UNAVAILABLE)  # and what the source finds by the others is kept
