"""Item records read from stored bytes: whole, or what they begin with; and intents, to bytes and back."""

import struct
import time
from collections.abc import Sequence

import numpy as np

from schemas.records import RECORD_FORMAT, ItemRecord, RecordFormatError, item_heads
from workers.errors import RowRefused
from workers.ports import Intent, ItemHeads, UInt64
from workers.stores.connect import DEPENDENCY

INTENT_ROW = np.dtype([("item", "<u8"), ("partition", "<u4")])
_SINCE = struct.Struct("<Q")


def pack_intent(hashes: UInt64, partitions: Sequence[int]) -> bytes:
    """An intent as of now: epoch ms, then INTENT_ROWs."""
    rows = np.empty(len(hashes), dtype=INTENT_ROW)
    rows["item"], rows["partition"] = hashes, partitions
    return _SINCE.pack(time.time_ns() // 1_000_000) + rows.tobytes()


def unpack_intent(data: bytes) -> Intent:
    """What was packed."""
    rows = np.frombuffer(data, dtype=INTENT_ROW, offset=_SINCE.size)
    return Intent(_SINCE.unpack_from(data)[0], rows["item"], rows["partition"])


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
