"""From search hits to a candidate list: drop what must not be shown, order, cut to k. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.recall import Removed
from schemas.records import hash64
from workers.ports import Float32, UInt64


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


def search_depth(k: int, removable: int, limit: int) -> int:
    """How many hits to ask for so that k remain after `removable` known items may have been dropped.

    Rounded up to a power of two times 64, so that requests of a batch share few distinct searches, and cut to `limit`.
    """
    depth = 64
    while depth < k + removable:
        depth *= 2
    return min(depth, limit)


def candidates(
    item_ids: Sequence[str], scores: Float32, *, k: int, seen: UInt64, excluded: UInt64, deleted: DeletedItems
) -> Selection:
    """Select at most k of the hits (best first, scores in descending order).

    Equal scores are ordered by item id; an item that stands twice is kept once, with its best score. Hits are hashed in
    pieces, because most lists are full long before the last hit; what stands behind the last kept one is not counted.
    """
    ids, ordered, duplicates = _unique(*_order_ties(list(item_ids), scores))
    kept: list[int] = []
    counts = {"seen": 0, "excluded": 0, "deleted": 0}
    piece = k + 32
    for start in range(0, len(ids), piece):
        part = ids[start : start + piece]
        hashes = np.fromiter((hash64(item_id) for item_id in part), dtype=np.uint64, count=len(part))
        causes = {
            "seen": np.isin(hashes, seen),
            "excluded": np.isin(hashes, excluded),
            "deleted": deleted.deleted(hashes),
        }
        keep = np.flatnonzero(~np.logical_or.reduce(list(causes.values())))[: k - len(kept)]
        kept.extend((start + keep).tolist())
        full = len(kept) == k
        end = int(keep[-1]) if full else len(part)
        left = np.ones(len(part), dtype=bool)
        for name, mask in causes.items():  # an item that is seen and deleted counts once, as seen
            counts[name] += int(np.count_nonzero(mask[:end] & left[:end]))
            left &= ~mask
        if full:
            break
    removed = Removed(duplicate=duplicates, **counts)
    return Selection([ids[position] for position in kept], ordered[kept].astype(np.float32, copy=False), removed)


def _order_ties(ids: list[str], scores: Float32) -> tuple[list[str], Float32]:
    """Order equal scores by item id; the common case, no two equal, is left as it is."""
    if len(ids) < 2 or bool(np.all(scores[1:] < scores[:-1])):
        return ids, scores
    order = sorted(range(len(ids)), key=lambda position: (-float(scores[position]), ids[position]))
    return [ids[position] for position in order], scores[order]


def _unique(ids: list[str], scores: Float32) -> tuple[list[str], Float32, int]:
    """Keep the first place of each id, and say how many repeats were dropped."""
    first: dict[str, int] = {}
    for position, item_id in enumerate(ids):
        first.setdefault(item_id, position)
    repeats = len(ids) - len(first)
    return (list(first), scores[list(first.values())], repeats) if repeats else (ids, scores, 0)
