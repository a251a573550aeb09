"""Entries of the feed of item changes: packed rows of (item hash, deleted), a batch of writes in a few entries."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.records import ItemRecord, hash64

CHANGE = np.dtype([("item", "<u8"), ("deleted", "?")])
ROWS_PER_ENTRY = 128
MAX_ENTRIES = 4096
"""Together at most 512k changes, 4.7 MB; at a trickle of 100 writes a second a reader may be away for 40 seconds."""


def pack(records: Sequence[ItemRecord]) -> list[bytes]:
    """The entries that announce these records, in order."""
    rows = np.array([(hash64(record.item_id), record.deleted) for record in records], dtype=CHANGE)
    return [rows[start : start + ROWS_PER_ENTRY].tobytes() for start in range(0, len(rows), ROWS_PER_ENTRY)]


def unpack(entries: Iterable[bytes]) -> NDArray[np.void]:
    """CHANGE[N]: the changes of entries, in order; read-only."""
    return np.frombuffer(b"".join(entries), dtype=CHANGE)
