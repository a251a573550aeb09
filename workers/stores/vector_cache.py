"""History vectors near at hand: a process-local cache in front of an item table, kept fresh by the table's feed."""

from collections.abc import Callable
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from schemas.records import among
from workers.ports import Float32, ItemChanges, ItemTable, UInt64
from workers.stores.vector_table import VectorTable

MAX_ROWS = 262_144
UNKNOWN_TTL_S = 5.0
DELETED_TTL_S = 900.0
MAX_DELETED = 100_000


class VectorCache:
    """Answers `vectors` and `deleted` for recall; an ItemFollower tells it what has changed.

    Until that has found its place in the feed nothing is kept, because nothing would take it out again.
    An item that the table does not know is asked for again after `UNKNOWN_TTL_S`, or at once when the feed names it;
    where the table is not whole, it is asked for again each time.
    """

    def __init__(
        self,
        table: ItemTable,
        dim: int,
        max_rows: int = MAX_ROWS,
        now_s: Callable[[], float] = monotonic,
        looked_up: Callable[[int, int], None] = lambda _hits, _misses: None,
    ) -> None:
        """`looked_up(hits, misses)` is told how many items were cached, and how many the table was asked for."""
        self._table = table
        self._dim = dim
        self._now_s = now_s
        self._looked_up = looked_up
        self._cached = VectorTable(dim, max_rows)
        self._following = False
        self._generation = 0  # of what is cached: a read that overlaps a change is not kept
        self._unknown_until_s = now_s() + UNKNOWN_TTL_S
        self._deleted_s: dict[int, float] = {}  # item hash -> when the feed said so, oldest first
        self._deleted: UInt64 = np.zeros(0, dtype=np.uint64)  # the same, sorted

    async def vectors(self, hashes: UInt64) -> tuple[Float32, NDArray[np.bool_]]:
        """float32[B, H, D] of uint64[B, H]; zeros for 0 and for items that are unknown or deleted.

        bool[B, H]: True where the table has no record of an item, and is not whole: it may be one that is not back yet.

        Does not wait when everything is cached, else for one read of the item table, whose DependencyError it raises.
        """
        found, missing = self.at_hand(hashes)
        lacking = np.zeros(hashes.shape, dtype=np.bool_)
        if missing.any():
            self._looked_up(0, int(np.count_nonzero(missing)))
            distinct, places = np.unique(hashes[missing], return_inverse=True)
            generation = self._generation
            vectors, known, uncertain = await self._table.vectors(distinct)
            found[missing], lacking[missing] = vectors[places], uncertain[places]
            if self._following and generation == self._generation:
                self._cached.put(distinct[~uncertain], vectors[~uncertain], known[~uncertain])
        return found, lacking

    def at_hand(self, hashes: UInt64) -> tuple[Float32, NDArray[np.bool_]]:
        """float32[B, H, D] of uint64[B, H], a copy of what is cached; never waits.

        bool[B, H]: True where the table would have to be asked; there are zeros too.
        """
        self._expire_unknown()
        flat = hashes.ravel()
        rows = self._cached.rows(flat)
        missing = (rows == VectorTable.MISSING) & (flat != 0)
        self._looked_up(int(np.count_nonzero(flat)) - int(np.count_nonzero(missing)), 0)
        return self._cached.gather(rows).reshape(*hashes.shape, self._dim), missing.reshape(hashes.shape)

    def deleted(self, hashes: UInt64) -> NDArray[np.bool_]:
        """bool[N]: True where the feed said within `DELETED_TTL_S` that the item of that hash was deleted."""
        return among(hashes, self._deleted)

    def apply(self, changes: ItemChanges) -> None:
        """Forget changed items, which are read again when they are asked for. When changes were missed, forget all."""
        if not self._following:  # of what changes before this place in the feed nobody is told: keep no read of then
            self._following = True
            self._generation += 1
        if not changes.complete:
            self._generation += 1
            self._cached.clear()
            self._deleted_s.clear()
        elif len(changes.hashes):
            self._generation += 1
            self._cached.forget(changes.hashes)
        self._remember_deleted(changes.hashes, changes.deleted)

    def _remember_deleted(self, hashes: UInt64, deleted: NDArray[np.bool_]) -> None:
        now_s = self._now_s()
        remembered = self._deleted_s
        for item_hash, gone in zip(hashes.tolist(), deleted.tolist(), strict=True):
            remembered.pop(item_hash, None)
            if gone:
                remembered[item_hash] = now_s
        for item_hash, since_s in list(remembered.items()):
            if since_s + DELETED_TTL_S > now_s and len(remembered) <= MAX_DELETED:
                break
            del remembered[item_hash]
        if len(hashes) or len(remembered) != len(self._deleted):
            self._deleted = np.sort(np.fromiter(remembered, dtype=np.uint64, count=len(remembered)))

    def _expire_unknown(self) -> None:
        now_s = self._now_s()
        if now_s >= self._unknown_until_s:
            self._cached.forget_unknown()
            self._unknown_until_s = now_s + UNKNOWN_TTL_S
