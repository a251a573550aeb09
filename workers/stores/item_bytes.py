"""Item records read from stored bytes: whole, or what they begin with."""

from collections.abc import Sequence

import numpy as np

from schemas.records import RECORD_FORMAT, ItemRecord, RecordFormatError, item_heads
from workers.errors import RowRefused
from workers.ports import ItemHeads
from workers.stores.connect import DEPENDENCY


def read_each(stored: Sequence[bytes | None]) -> list[ItemRecord | None]:
    """Whole records. Raises RowRefused, with their positions, when some cannot be read."""
    records: list[ItemRecord | None] = []
    unreadable: list[int] = []
    for position, data in enumerate(stored):
        try:
            records.append(None if data is None else ItemRecord.decode(data))
        except RecordFormatError:
            unreadable.append(position)
    if unreadable:
        raise RowRefused(DEPENDENCY, f"{len(unreadable)} item records cannot be read", unreadable)
    return records


def heads_of(hashes: Sequence[int], stored: Sequence[bytes]) -> ItemHeads:
    """Heads of stored records, or of their first bytes; those that are empty have gone meanwhile and are left out."""
    there = [position for position, data in enumerate(stored) if data]
    heads = item_heads([stored[position] for position in there])
    return ItemHeads(
        hashes=np.array([hashes[position] for position in there], dtype=np.uint64),
        partitions=heads["partition"].astype(np.int64),
        offsets=heads["offset"].astype(np.uint64),
        deleted=(heads["deleted"] & 1).astype(np.bool_),
        readable=heads["format"] == RECORD_FORMAT,
    )
