"""Items in columns, in memory: ids, vectors and attributes by slot. For indexes that live in the process.

Slots 0 to n - 1 are taken, always: the last item moves into the slot of one that is deleted. Whoever keeps something by
slot is told which slots have changed. Nothing here locks: one thread at a time.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from schemas.records import hash64_each
from workers.filters import Filter, holds
from workers.index.schema import encode_attributes
from workers.ports import Float32, IndexRows, UInt64

FIRST_SLOTS = 1024
REMEMBERED_FILTERS = 64
MAX_CHANGES = 100_000  # that a remembered filter may be behind

Slots = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Catalogue:
    """The items. `matrix` is float32[n, D], as it was given."""

    def __init__(self, dim: int) -> None:
        self.ids: list[str] = []
        self._slots: dict[str, int] = {}
        self._attributes: list[dict[str, Any]] = []
        self._vectors = np.zeros((FIRST_SLOTS, dim), dtype=np.float32)
        self._hashes = np.zeros(FIRST_SLOTS, dtype=np.uint64)
        self._masks = Masks(self._attributes)

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, item_id: str) -> bool:
        return item_id in self._slots

    @property
    def matrix(self) -> Float32:
        """float32[n, D], no copy."""
        return self._vectors[: len(self.ids)]

    @property
    def hashes(self) -> UInt64:
        """uint64[n], no copy."""
        return self._hashes[: len(self.ids)]

    def put(self, item_ids: Sequence[str], vectors: Float32, attributes: Sequence[Mapping[str, Any]]) -> Slots:
        """Write items, none twice; their slots."""
        self._make_room(len(self.ids) + len(item_ids))
        hashes = hash64_each(item_ids)
        slots = np.zeros(len(item_ids), dtype=np.int64)
        for n, item_id in enumerate(item_ids):
            slot = self._slots.setdefault(item_id, len(self.ids))
            stored = orjson.loads(encode_attributes(attributes[n]))
            if slot == len(self.ids):
                self.ids.append(item_id)
                self._attributes.append(stored)
            else:
                self._attributes[slot] = stored
            slots[n] = slot
        self._vectors[slots] = vectors
        self._hashes[slots] = hashes
        self._masks.changed(slots)
        return slots

    def drop(self, item_id: str) -> tuple[int, int]:
        """Remove an item that is there: the slot that it had, and that of the item which has it now (may be itself)."""
        slot, last = self._slots.pop(item_id), len(self.ids) - 1
        if slot != last:
            self.ids[slot] = self.ids[last]
            self._attributes[slot] = self._attributes[last]
            self._vectors[slot] = self._vectors[last]
            self._hashes[slot] = self._hashes[last]
            self._slots[self.ids[slot]] = slot
        self.ids.pop()
        self._attributes.pop()
        self._masks.changed([slot])
        return slot, last

    def fitting(self, where: Filter) -> Mask:
        """bool[n]: for which items a filter holds."""
        return self._masks.of(where)

    def rows(self, slots: Slots) -> IndexRows:
        """Copies."""
        chosen = slots.tolist()
        return IndexRows(
            [self.ids[slot] for slot in chosen], self._vectors[slots], [dict(self._attributes[n]) for n in chosen]
        )

    def part(self, part: int, parts: int) -> list[str]:
        """The ids whose hashes, signed and with 2^63 added, stand in one of so many even parts of their range."""
        lowest, end = (-(-(n << 64) // parts) for n in (part, part + 1))
        shifted = self.hashes ^ np.uint64(1 << 63)
        inside = (shifted >= np.uint64(lowest)) & (shifted <= np.uint64(end - 1))
        return [self.ids[slot] for slot in np.flatnonzero(inside).tolist()]

    def _make_room(self, items: int) -> None:
        if items > len(self._hashes):
            room = max(items, 2 * len(self._hashes))
            self._vectors = np.resize(self._vectors, (room, self._vectors.shape[1]))
            self._hashes = np.resize(self._hashes, room)


class Masks:
    """For which slots filters hold: remembered, and brought up to date by what has changed since."""

    def __init__(self, attributes: list[dict[str, Any]]) -> None:
        self._attributes = attributes
        self._known: dict[Filter, tuple[Mask, int]] = {}  # with how many of the changes are in it
        self._changes: list[int] = []

    def changed(self, slots: Slots | Sequence[int]) -> None:
        """These slots hold something else now, or nothing."""
        if not self._known:
            return
        self._changes.extend(int(slot) for slot in slots)
        if len(self._changes) > MAX_CHANGES:
            self._known.clear()
            self._changes.clear()

    def of(self, where: Filter) -> Mask:
        """bool[n]."""
        size = len(self._attributes)
        mask, taken_in = self._known.pop(where, (None, 0))
        if mask is None or len(self._changes) - taken_in > size:
            mask = np.fromiter((holds(where, each) for each in self._attributes), np.bool_, size)
        else:
            grown = np.zeros(size, dtype=np.bool_)
            kept = min(size, len(mask))
            grown[:kept] = mask[:kept]
            mask = grown
            for slot in {slot for slot in self._changes[taken_in:] if slot < size}:
                mask[slot] = holds(where, self._attributes[slot])
        self._known[where] = mask, len(self._changes)
        if len(self._known) > REMEMBERED_FILTERS:
            del self._known[next(iter(self._known))]  # the one that was not asked for the longest
        return mask
