"""From search hits to a candidate list: drop what must not be shown, order, cut to k. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.recall import Removed
from schemas.records import among, hash64_each
from workers.ports import Float32, UInt64

SEEN_AMONG_BEST = 0.6


class DeletedItems(Protocol):
    """Knows which items were deleted a moment ago."""

    def deleted(self, hashes: UInt64) -> NDArray[np.bool_]:
        """bool[N]: True where the item of that hash was deleted recently."""
        ...


@dataclass(frozen=True, slots=True)
class Selection:
    """The list of one request: ids and float32[n] scores in parallel, n <= k, and what was taken out on the way."""

    item_ids: list[str]
    scores: Float32
    removed: Removed


def first_depth(k: int, seen: int, excluded: int, limit: int) -> int:
    """How many hits to ask for first, so that k are nearly always left and few are fetched in vain.

    Excluded items are counted whole: a request excludes what it was shown, which stands at the top. Of n seen items
    only those among the best hits matter: measured on MovieLens (docs/performance.md), .6 * sqrt(n * k) of them at most
    for 98 of 100 users at k = 100 and for 93 of 100 at k = 1000. The others need a search of `full_depth` as well, but
    only when the first one brought as many hits as it asked for: fewer are all there are.
    """
    return _in_steps(k + excluded + min(seen, math.ceil(SEEN_AMONG_BEST * math.sqrt(seen * k))), limit)


def full_depth(k: int, removable: int, limit: int) -> int:
    """How many hits are enough whatever stands where: k remain after all `removable` items have been dropped."""
    return _in_steps(k + removable, limit)


def _in_steps(wanted: int, limit: int) -> int:
    """Round up to 64, 96, 128, 192, 256, ... (2^n and 3 * 2^n) and cut to `limit`.

    So requests of a batch share few distinct searches and none asks for half as much again as it needs.
    """
    depth = 64
    while depth < wanted:
        depth *= 2
    if depth > 64 and depth * 3 // 4 >= wanted:
        depth = depth * 3 // 4
    return min(depth, limit)


def candidates(
    item_ids: Sequence[str], scores: Float32, *, k: int, seen: UInt64, excluded: UInt64, deleted: DeletedItems
) -> Selection:
    """Select at most k of the hits (best first, scores in descending order). `seen` and `excluded` are sorted hashes.

    Equal scores are ordered by item id; an item that stands twice is kept once, with its best score. Hits are hashed in
    pieces, because most lists are full long before the last hit; what stands behind the last kept one is not counted.
    """
    ids, ordered, duplicates = _unique(*_order_ties(list(item_ids), scores))
    kept: list[int] = []
    counts = {"seen": 0, "excluded": 0, "deleted": 0}
    piece = k + 32
    for start in range(0, len(ids), piece):
        part = ids[start : start + piece]
        hashes = hash64_each(part)
        causes = {"seen": among(hashes, seen), "excluded": among(hashes, excluded), "deleted": deleted.deleted(hashes)}
        keep = np.flatnonzero(~(causes["seen"] | causes["excluded"] | causes["deleted"]))[: k - len(kept)].tolist()
        kept += [start + position for position in keep] if start else keep
        full = len(kept) == k
        end = keep[-1] if full else len(part)
        if len(keep) < end + full:  # something was taken out: an item that is seen and deleted counts once, as seen
            left = np.ones(end, dtype=np.bool_)
            for name, mask in causes.items():
                counts[name] += int(np.count_nonzero(mask[:end] & left))
                left &= ~mask[:end]
        if full:
            break
    removed = Removed(duplicate=duplicates, **counts)
    return Selection([ids[position] for position in kept], ordered[kept].astype(np.float32, copy=False), removed)


def _order_ties(ids: list[str], scores: Float32) -> tuple[list[str], Float32]:
    """Order equal scores by item id. Nearly all hits come in order: only runs of equal scores are touched."""
    steps = scores[1:] - scores[:-1]
    if bool((steps < 0).all()):
        return ids, scores
    if bool((steps > 0).any()):
        order = sorted(range(len(ids)), key=lambda position: (-float(scores[position]), ids[position]))
        return [ids[position] for position in order], scores[order]
    borders = [0, *(np.flatnonzero(steps < 0) + 1).tolist(), len(ids)]
    for start, end in pairwise(borders):
        if end - start > 1:
            ids[start:end] = sorted(ids[start:end])
    return ids, scores


def _unique(ids: list[str], scores: Float32) -> tuple[list[str], Float32, int]:
    """Keep the first place of each id, and say how many repeats were dropped."""
    repeats = len(ids) - len(set(ids))
    if not repeats:
        return ids, scores, 0
    first: dict[str, int] = {}
    for position, item_id in enumerate(ids):
        first.setdefault(item_id, position)
    return list(first), scores[list(first.values())], repeats
