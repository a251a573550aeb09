"""A hash table from 64-bit hashes to vectors that looks up thousands at once: numpy, no Python object per hash."""

import numpy as np
from numpy.typing import NDArray

from workers.ports import Float32, UInt64

FIRST_SLOTS = 1024
SLOTS_PER_HASH = 4  # sparse: a lookup of 3,200 hashes then takes a few vectorised probes, not twenty


class VectorTable:
    """Hash -> float32[D], open addressing with linear probing, at most `max_hashes`; when full, all are forgotten.

    The hashes are uniform already (XXH3): their low bits are the home slot. A slot stays with its hash until `clear`;
    what changes is the row of the matrix it points to, where two rows are zeros and mean something: MISSING (an empty
    slot or a forgotten hash) and UNKNOWN (there is no such vector). Hash 0 means none and is never stored.
    """

    MISSING = 0
    UNKNOWN = 1

    def __init__(self, dim: int, max_hashes: int) -> None:
        self._dim = dim
        self._max_hashes = max_hashes
        self.clear()

    def __len__(self) -> int:
        """Hashes that take a slot."""
        return self._used

    def clear(self) -> None:
        """Forget everything and give the memory back."""
        self._used = 0
        self._keys = np.zeros(FIRST_SLOTS, dtype=np.uint64)
        self._rows = np.zeros(FIRST_SLOTS, dtype=np.int32)
        self._matrix = np.zeros((FIRST_SLOTS // SLOTS_PER_HASH, self._dim), dtype=np.float32)
        self._next_row = 2
        self._free: list[int] = []

    def rows(self, hashes: UInt64) -> NDArray[np.int32]:
        """int32[N]: the row of each hash."""
        return self._rows.take(self._slots(hashes))

    def gather(self, rows: NDArray[np.int32]) -> Float32:
        """float32[N, D]: a copy of these rows."""
        return self._matrix.take(rows, axis=0)

    def put(self, hashes: UInt64, vectors: Float32, known: NDArray[np.bool_]) -> None:
        """Store float32[N, D] under distinct hashes; UNKNOWN where `known` is False."""
        if self._used + len(hashes) > self._max_hashes:
            self.clear()
            end = self._max_hashes
            hashes, vectors, known = hashes[:end], vectors[:end], known[:end]
        self._reserve(self._used + len(hashes))
        slots = self._claim(hashes)
        rows = self._rows[slots]
        fresh = known & (rows <= self.UNKNOWN)
        rows[fresh] = self._new_rows(int(np.count_nonzero(fresh)))
        self._free += rows[~known & (rows > self.UNKNOWN)].tolist()
        rows[~known] = self.UNKNOWN
        self._rows[slots] = rows
        self._matrix[rows[known]] = vectors[known]

    def forget(self, hashes: UInt64) -> None:
        """Make these MISSING, those that are stored."""
        slots = np.unique(self._slots(hashes))  # a hash named twice must not give its row back twice
        rows = self._rows[slots]
        self._free += rows[rows > self.UNKNOWN].tolist()
        self._rows[slots] = self.MISSING

    def forget_unknown(self) -> None:
        """Make every UNKNOWN hash MISSING."""
        self._rows[self._rows == self.UNKNOWN] = self.MISSING

    def _slots(self, hashes: UInt64) -> NDArray[np.intp]:
        """The slot of each hash, or the empty one where it would stand."""
        last = len(self._keys) - 1
        slots = (hashes & np.uint64(last)).astype(np.intp)
        keys = self._keys.take(slots)
        seeking = np.flatnonzero((keys != hashes) & (keys != 0))
        while len(seeking):
            further = (slots[seeking] + 1) & last
            slots[seeking] = further
            keys = self._keys.take(further)
            seeking = seeking[(keys != hashes[seeking]) & (keys != 0)]
        return slots

    def _claim(self, hashes: UInt64) -> NDArray[np.intp]:
        """The slot of each hash, taken for it where it had none."""
        waiting = hashes
        while len(waiting):
            slots = self._slots(waiting)
            self._used += int(np.count_nonzero(self._keys[np.unique(slots)] == 0))
            self._keys[slots] = waiting  # of several that want one empty slot, one gets it and the others look on
            waiting = waiting[self._keys[slots] != waiting]
        return self._slots(hashes)

    def _new_rows(self, count: int) -> NDArray[np.int32]:
        """Rows that nothing points to; the matrix grows by doubling."""
        reused = [self._free.pop() for _ in range(min(count, len(self._free)))]
        end = self._next_row + count - len(reused)
        size = len(self._matrix)
        if end > size:
            while size < end:
                size *= 2
            grown = np.zeros((size, self._dim), dtype=np.float32)
            grown[: self._next_row] = self._matrix[: self._next_row]
            self._matrix = grown
        rows = np.array([*reused, *range(self._next_row, end)], dtype=np.int32)
        self._next_row = end
        return rows

    def _reserve(self, hashes: int) -> None:
        """Slots for so many hashes."""
        size = len(self._keys)
        if hashes * SLOTS_PER_HASH <= size:
            return
        while size < hashes * SLOTS_PER_HASH:
            size *= 2
        taken = self._keys != 0
        keys, rows = self._keys[taken], self._rows[taken]
        self._keys = np.zeros(size, dtype=np.uint64)
        self._rows = np.zeros(size, dtype=np.int32)
        self._used = 0
        self._rows[self._claim(keys)] = rows
