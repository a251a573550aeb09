"""The item table in Redis: one packed value per item, looked up by item hash, and a stream of recent changes.

The stream stands in a slot of its own, so an announcement follows its record in a second command. A worker that dies
between the two has not committed the offset: the update comes again, is written again (an equal offset is no conflict)
and announced then. Intents stand in a hash, a field for each; they come and go with commands that are sent anyway.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.records import ITEM_HEAD, ItemRecord, hash64, item_fence, item_vectors
from workers.errors import RowRefused
from workers.ports import Float32, Intent, ItemChanges, ItemHeads, UInt64
from workers.settings import Settings
from workers.stores import item_feed, keys
from workers.stores.connect import DEPENDENCY, Client, Script, close, get_each, translated
from workers.stores.item_bytes import heads_of, pack_intent, read_each, unpack_intent

DELETED_TTL_MS = 14 * 86_400_000  # how long the fence of a deleted item stands; live items never expire
KEYS_PER_READ = 1000
KEYS_PER_SCAN = 1000  # keys of every kind that one step of a walk looks at
ENTRIES_PER_READ = 1024
HASH_PATTERN = b"[0-9a-f]" * 16
FIELD = b"c"
BEGINNING = "0-0"

# KEYS record. ARGV the fence of the record that was read ('' = none), the new record, time to live in ms (0 = none).
# Returns whether it was written, -2 when the key holds something else than a string.
WRITE = """
local stored = redis.pcall('GETRANGE', KEYS[1], 2, 13)
if type(stored) == 'table' then return string.find(stored.err, 'WRONGTYPE') and -2 or stored end
if stored ~= ARGV[1] and stored ~= string.sub(ARGV[2], 3, 14) then return 0 end
if ARGV[3] == '0' then redis.call('SET', KEYS[1], ARGV[2])
else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return 1
"""
REFUSED = -2
NO_RECORD = b"\0"  # of a format that nobody writes


class RedisItemTable:
    """ItemTable of one collection, on one Redis server or a Redis Cluster.

    `dim` is that of the history vectors; without it only `read` and `write` make sense.
    """

    def __init__(self, client: Client, settings: Settings, collection: str, dim: int = 0) -> None:
        self._client = client
        self._settings = settings
        self._collection = collection
        self._dim = dim
        self._feed = keys.item_feed(settings, collection)
        self._intents = keys.item_intents(settings, collection)
        self._whole = keys.filled_whole(settings, keys.items_group(collection))
        self._write = Script(client, WRITE)

    async def read(self, hashes: UInt64) -> list[ItemRecord | None]:
        """Records by item hash, in one round trip per thousand. Raises RowRefused for those that cannot be read."""
        return read_each(await self._values(hashes.tolist()))

    async def read_to_write(self, hashes: UInt64, partitions: Sequence[int], intent: str) -> list[ItemRecord | None]:
        """Records by item hash; the intent goes to the server at the same time."""
        values, _ = await asyncio.gather(self._values(hashes.tolist()), self._intend(hashes, partitions, intent))
        return read_each(values)

    async def write(
        self, records: Sequence[ItemRecord], expected: Sequence[ItemRecord | None], intent: str | None = None
    ) -> list[bool]:
        """Compare and set each record, then announce those that were written, and take the intent back.

        Raises RowRefused, with the positions, where the key holds something else than a string: nothing is announced.
        """
        if not records:
            if intent is not None:
                await self.drop_intents([intent])
            return []
        calls = [
            (
                (self._key(hash64(record.item_id)),),
                (
                    b"" if stood is None else item_fence(stood.partition, stood.offset),
                    record.encode(),
                    DELETED_TTL_MS if record.deleted else 0,
                ),
            )
            for record, stood in zip(records, expected, strict=True)
        ]
        with translated():
            results = await self._write.call_each(calls)
            if REFUSED in results:
                refused = [row for row, result in enumerate(results) if result == REFUSED]
                raise RowRefused(DEPENDENCY, f"{len(refused)} keys of items hold something else", refused)
            written = [result == 1 for result in results]
            announced = [record for record, done in zip(records, written, strict=True) if done]
            await self._announce(announced, intent if all(written) else None)
        return written

    async def intents(self) -> dict[str, Intent]:
        """Those that stand, in one command."""
        with translated():
            found = await self._client.hgetall(self._intents)
        return {name.decode(): unpack_intent(data) for name, data in found.items()}

    async def drop_intents(self, names: Sequence[str]) -> None:
        """Take some back."""
        if names:
            with translated():
                await self._client.hdel(self._intents, *names)

    async def vectors(self, hashes: UInt64) -> tuple[Float32, NDArray[np.bool_], NDArray[np.bool_]]:
        """History vectors by item hash, and whether the table is complete: in one round trip per thousand.

        On one server that is of the same moment.
        """
        values: list[bytes | None] = []
        lacking: list[bool] = []
        wanted = hashes.tolist()
        with translated():
            for start in range(0, len(wanted), KEYS_PER_READ):
                piece = [self._key(item_hash) for item_hash in wanted[start : start + KEYS_PER_READ]]
                *found, whole = await get_each(self._client, [*piece, self._whole])
                values += found
                lacking += [data is None and whole is None for data in found]
        return *item_vectors(values, self._dim), np.array(lacking, dtype=np.bool_)

    async def changes(self, cursor: str | None) -> ItemChanges:
        """Changes after `cursor`, the id of a stream entry. Incomplete when the stream no longer reaches back to it."""
        with translated():
            if cursor is None:
                return _changes(await self._newest(), [])
            entries: list[bytes] = []
            page = await self._page(cursor)
            if not await self._reaches(cursor, page):
                return _changes(await self._newest(), [], complete=False)
            while True:
                new = page[1:] if page and page[0][0] == cursor else page
                entries += [entry for _, entry in new]
                if new:
                    cursor = new[-1][0]
                if len(page) < ENTRIES_PER_READ:
                    return _changes(cursor, entries)
                page = await self._page(cursor)

    async def heads(self) -> AsyncIterator[ItemHeads]:
        """All records, by walking the keys of the server, or of every primary of a cluster."""
        prefix = keys.item_records(self._settings, self._collection)
        found: list[bytes] = []
        with translated():
            async for key in self._client.scan_iter(match=prefix + HASH_PATTERN, count=KEYS_PER_SCAN):
                found.append(key)
                if len(found) == KEYS_PER_READ:
                    yield await self._heads(found, len(prefix))
                    found = []
            if found:
                yield await self._heads(found, len(prefix))

    async def close(self) -> None:
        """Close the client."""
        await close(self._client)

    def _key(self, item_hash: int) -> bytes:
        return keys.item_record(self._settings, self._collection, item_hash)

    async def _values(self, hashes: Sequence[int]) -> list[bytes | None]:
        values: list[bytes | None] = []
        with translated():
            for start in range(0, len(hashes), KEYS_PER_READ):
                piece = hashes[start : start + KEYS_PER_READ]
                values += await get_each(self._client, [self._key(item_hash) for item_hash in piece])
        return values

    async def _heads(self, found: Sequence[bytes], prefix_bytes: int) -> ItemHeads:
        pipeline = self._client.pipeline(transaction=False)
        for key in found:
            pipeline.getrange(key, 0, ITEM_HEAD.itemsize - 1)
        heads = [_head(answer) for answer in await pipeline.execute(raise_on_error=False)]
        return heads_of([int(key[prefix_bytes:], 16) for key in found], heads)

    async def _intend(self, hashes: UInt64, partitions: Sequence[int], intent: str) -> None:
        with translated():
            await self._client.hset(self._intents, intent, pack_intent(hashes, partitions))

    async def _announce(self, records: Sequence[ItemRecord], done: str | None) -> None:
        if not records:
            return
        pipeline = self._client.pipeline(transaction=False)
        for entry in item_feed.pack(records):
            pipeline.xadd(self._feed, {FIELD: entry}, maxlen=item_feed.MAX_ENTRIES, approximate=True)
        if done is not None:
            pipeline.hdel(self._intents, done)
        await pipeline.execute()

    async def _page(self, cursor: str) -> list[tuple[str, bytes]]:
        """Entries from `cursor` on, itself included."""
        page = await self._client.xrange(self._feed, min=cursor, count=ENTRIES_PER_READ)
        return [(entry_id.decode(), fields[FIELD]) for entry_id, fields in page]

    async def _newest(self) -> str:
        newest = await self._client.xrevrange(self._feed, count=1)
        return newest[0][0].decode() if newest else BEGINNING

    async def _reaches(self, cursor: str, page: Sequence[tuple[str, bytes]]) -> bool:
        """Whether nothing after `cursor` was trimmed: its entry is still there, or the stream was never trimmed."""
        if cursor == BEGINNING:
            return int(await self._client.xlen(self._feed)) < item_feed.MAX_ENTRIES
        return bool(page) and page[0][0] == cursor


def _head(answer: bytes | Exception) -> bytes:
    """What a record begins with; of a key of another type what cannot be read either."""
    if not isinstance(answer, Exception):
        return answer
    if "WRONGTYPE" in str(answer):
        return NO_RECORD
    raise answer


def _changes(cursor: str, entries: Sequence[bytes], *, complete: bool = True) -> ItemChanges:
    rows = item_feed.unpack(entries)
    return ItemChanges(cursor, rows["item"], rows["deleted"], complete)
