"""What item records begin with, read from bytes."""

from collections.abc import Sequence

import numpy as np

from schemas.records import RECORD_FORMAT, item_heads
from workers.ports import ItemHeads


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
