"""Item events and item records as columns of numpy arrays: about 33 bytes for each, whatever the items hold.

A place is where an event stands in the topic: its partition in the upper 16 bits, its offset in the lower 48.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from schemas.records import hash64
from workers.pipelines.item_order import ItemEvent
from workers.ports import ItemHeads, UInt64

Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

OFFSET_BITS = 48
MAX_OFFSET = (1 << OFFSET_BITS) - 1
NO_VERSION = -1
NO_COPY = -1
FIRST_MERGE = 65_536
NOWHERE = np.uint64(2**64 - 1)  # the place of a record that cannot be read


def place(partition: int, offset: int) -> int:
    """Where an event stands; of one partition the later one is greater."""
    return partition << OFFSET_BITS | min(offset, MAX_OFFSET)


def partition_and_offset(of: int) -> tuple[int, int]:
    """The other way round."""
    return of >> OFFSET_BITS, of & MAX_OFFSET


@dataclass(frozen=True, slots=True)
class Columns:
    """Rows [N] in parallel, sorted by hash and place; no two of one hash and partition."""

    hashes: UInt64
    places: UInt64
    versions: Int64  # NO_VERSION = none
    deleted: Bool
    afters: Int64  # of winners' copies; NO_COPY = it is none

    def take(self, chosen: NDArray[np.intp] | Bool) -> "Columns":
        """Some of the rows."""
        return Columns(*(getattr(self, each.name)[chosen] for each in fields(self)))

    def find(self, hashes: UInt64) -> NDArray[np.intp]:
        """Position of the first row of each hash; -1 where there is none."""
        if not len(self.hashes):
            return np.full(len(hashes), -1, dtype=np.intp)
        at = np.minimum(self.hashes.searchsorted(hashes), len(self.hashes) - 1)
        return np.where(self.hashes[at] == hashes, at, -1)

    @property
    def partitions(self) -> Int64:
        """The partition of each row."""
        return (self.places >> np.uint64(OFFSET_BITS)).astype(np.int64)

    @property
    def offsets(self) -> Int64:
        """The offset of each row."""
        return (self.places & np.uint64(MAX_OFFSET)).astype(np.int64)


NO_ROWS = Columns(
    np.zeros(0, dtype=np.uint64),
    np.zeros(0, dtype=np.uint64),
    np.zeros(0, dtype=np.int64),
    np.zeros(0, dtype=np.bool_),
    np.zeros(0, dtype=np.int64),
)


class Winners:
    """Which event counts, of each item and partition: the rules of `item_order`, on columns.

    Events of a partition are to be added in the order of its log. Memory: the rows kept, and while they are merged with
    those that were added since, about three times as much.
    """

    def __init__(self) -> None:
        self._kept = NO_ROWS
        self._new: list[Columns] = []
        self._count = 0

    def add(self, events: Sequence[ItemEvent]) -> None:
        """Take events in."""
        if events:
            self.add_columns(columns_of(events))

    def add_columns(self, rows: Columns) -> None:
        """The same, as columns, in any order."""
        self._new.append(rows)
        self._count += len(rows.hashes)
        if self._count > max(FIRST_MERGE, len(self._kept.hashes) // 2):
            self._merge()

    def rows(self) -> Columns:
        """The events that count."""
        self._merge()
        return self._kept

    def _merge(self) -> None:
        rows = _sorted(_joined([self._kept, *self._new]))
        self._new.clear()
        self._count = 0
        again = np.zeros(len(rows.hashes), dtype=np.bool_)  # whether the row before is of the same item and partition
        again[1:] = (rows.hashes[1:] == rows.hashes[:-1]) & (rows.partitions[1:] == rows.partitions[:-1])
        last = np.ones(len(again), dtype=np.bool_)
        last[:-1] = ~again[1:]
        doubtful = np.zeros(len(again), dtype=np.bool_)  # it may be refused, or outdated
        lower = (rows.versions[1:] != NO_VERSION) & (rows.versions[1:] < rows.versions[:-1])
        doubtful[1:] = again[1:] & (lower | (rows.afters[1:] != NO_COPY))
        starts = np.flatnonzero(~again)
        for group in np.unique(starts.searchsorted(np.flatnonzero(doubtful), side="right") - 1).tolist():
            start = int(starts[group])
            end = int(starts[group + 1]) if group + 1 < len(starts) else len(again)
            last[start:end] = False
            last[start + _accepted_last(rows.take(np.arange(start, end)))] = True
        self._kept = rows.take(last)


def _accepted_last(rows: Columns) -> int:
    """Position of the last event of one item that is accepted when each is compared with the accepted one before it."""
    versions, afters, offsets = rows.versions.tolist(), rows.afters.tolist(), rows.offsets.tolist()
    stands = 0
    for position in range(1, len(versions)):
        if afters[position] != NO_COPY:  # of two that know of the same both say what stands
            accepted = afters[position] >= offsets[stands] or afters[position] == afters[stands]
        else:
            accepted = NO_VERSION in {versions[position], versions[stands]} or versions[position] >= versions[stands]
        if accepted:
            stands = position
    return stands


def columns_of(events: Sequence[ItemEvent]) -> Columns:
    """Events as columns, in their order."""
    return Columns(
        np.array([hash64(event.item_id) for event in events], dtype=np.uint64),
        np.array([place(event.partition, event.offset) for event in events], dtype=np.uint64),
        np.array([NO_VERSION if event.version is None else event.version for event in events], dtype=np.int64),
        np.array([event.deletes for event in events], dtype=np.bool_),
        np.array([NO_COPY if event.after is None else event.after for event in events], dtype=np.int64),
    )


def table_columns(pages: Iterable[ItemHeads]) -> Columns:
    """Heads of records as columns, each hash once; a record that cannot be read stands NOWHERE."""
    found = [NO_ROWS]
    for heads in pages:
        offsets = np.minimum(heads.offsets, np.uint64(MAX_OFFSET))
        places = heads.partitions.astype(np.uint64) << np.uint64(OFFSET_BITS) | offsets
        places[~heads.readable] = NOWHERE
        none = np.full(len(places), -1, dtype=np.int64)
        found.append(Columns(heads.hashes, places, none, heads.deleted, none))
    rows = _sorted(_joined(found))
    last = np.ones(len(rows.hashes), dtype=np.bool_)
    last[:-1] = rows.hashes[1:] != rows.hashes[:-1]
    return rows.take(last)


def one_each(rows: Columns, table: Columns) -> Columns:
    """One row of each item: that of the partition where the table has it, else one that lives, of the lowest.

    So whoever may live where the table knows nothing is suspected to be missing, and looked at with all of its rows.
    """
    first = np.ones(len(rows.hashes), dtype=np.bool_)
    first[1:] = rows.hashes[1:] != rows.hashes[:-1]
    if first.all():
        return rows
    at = table.find(rows.hashes)
    home = np.where(at < 0, -1, table.partitions[at] if len(table.hashes) else -1)
    order = np.lexsort((rows.places, rows.deleted, rows.partitions != home, rows.hashes))
    return rows.take(order[first])  # the groups of equal hashes stand where they stood


def _joined(parts: Sequence[Columns]) -> Columns:
    return Columns(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(Columns)))


def _sorted(rows: Columns) -> Columns:
    return rows.take(np.lexsort((rows.places, rows.hashes)))
