"""The item table in memory, for one process and for tests: the same bytes, fence and feed as in Redis."""

from collections.abc import AsyncIterator, Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.records import ItemRecord, hash64, item_vectors
from workers.ports import Float32, Intent, ItemChanges, ItemHeads, UInt64
from workers.stores.item_bytes import heads_of, pack_intent, read_each, unpack_intent

MAX_CHANGES = 100_000


class MemoryItemTable:
    """ItemTable in a dict. Deleted items stay for ever; the feed keeps the newest `max_changes`.

    `whole`: all that there was is in here.
    """

    def __init__(self, dim: int, max_changes: int = MAX_CHANGES, *, whole: bool = True) -> None:
        self.whole = whole
        self._dim = dim
        self._max_changes = max_changes
        self._records: dict[int, bytes] = {}
        self._intents: dict[str, bytes] = {}
        self._feed: list[tuple[int, bool]] = []
        self._trimmed = 0  # changes that were dropped from the start of the feed

    async def read(self, hashes: UInt64) -> list[ItemRecord | None]:
        """Records by item hash. Raises RowRefused for those that cannot be read."""
        return read_each([self._records.get(item_hash) for item_hash in hashes.tolist()])

    async def read_to_write(self, hashes: UInt64, partitions: Sequence[int], intent: str) -> list[ItemRecord | None]:
        """Records by item hash, and the intent to write them."""
        self._intents[intent] = pack_intent(hashes, partitions)
        return await self.read(hashes)

    async def write(
        self, records: Sequence[ItemRecord], expected: Sequence[ItemRecord | None], intent: str | None = None
    ) -> list[bool]:
        """Compare and set each record, and announce it."""
        written = []
        for record, stood in zip(records, expected, strict=True):
            item_hash = hash64(record.item_id)
            data = self._records.get(item_hash)
            stored = None if data is None else ItemRecord.decode(data)
            fence = None if stored is None else (stored.partition, stored.offset)
            was_read = None if stood is None else (stood.partition, stood.offset)
            done = fence in {was_read, (record.partition, record.offset)}
            if done:
                self._records[item_hash] = record.encode()
                self._feed.append((item_hash, record.deleted))
            written.append(done)
        excess = len(self._feed) - self._max_changes
        if excess > 0:
            del self._feed[:excess]
            self._trimmed += excess
        if intent is not None and all(written):
            self._intents.pop(intent, None)
        return written

    async def intents(self) -> dict[str, Intent]:
        """Those that stand."""
        return {name: unpack_intent(data) for name, data in self._intents.items()}

    async def drop_intents(self, names: Sequence[str]) -> None:
        """Take some back."""
        for name in names:
            self._intents.pop(name, None)

    async def vectors(self, hashes: UInt64) -> tuple[Float32, NDArray[np.bool_], NDArray[np.bool_]]:
        """History vectors by item hash."""
        values = [self._records.get(item_hash) for item_hash in hashes.tolist()]
        lacking = np.array([data is None and not self.whole for data in values], dtype=np.bool_)
        return *item_vectors(values, self._dim), lacking

    async def changes(self, cursor: str | None) -> ItemChanges:
        """Changes after `cursor`, a count of changes. Incomplete when some of them were dropped."""
        end = self._trimmed + len(self._feed)
        start = end if cursor is None else int(cursor)
        complete = start >= self._trimmed
        new = self._feed[start - self._trimmed :] if complete else []
        hashes = np.array([item_hash for item_hash, _ in new], dtype=np.uint64)
        deleted = np.array([gone for _, gone in new], dtype=np.bool_)
        return ItemChanges(str(end), hashes, deleted, complete)

    async def heads(self) -> AsyncIterator[ItemHeads]:
        """All records at once."""
        yield heads_of(list(self._records), list(self._records.values()))

    async def close(self) -> None:
        """Nothing to give back."""
