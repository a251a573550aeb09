"""Popular counts in Redis: of each partition one hash, and a sorted set per epoch and segment in the same slot.

The hash holds `next`, the offset that is expected next, `epoch`, the newest one, and a field `EPOCH:SEGMENT` for every
sorted set, which stands under the hash's key with that name behind it. Members are item hashes in 8 bytes, big-endian.
The scripts make these names themselves: they cannot be known before the hash is read, and are in its slot in any case.
"""

import struct
from collections.abc import Mapping, Sequence

import numpy as np

from workers.popularity import EPOCHS_KEPT, EpochCounts, merged
from workers.ports import PopularChange, PopularItems
from workers.settings import Settings
from workers.stores import keys
from workers.stores.connect import Client, Script, close, translated

MAX_ITEMS = 10_000
EXPIRES_LATER = 1.1  # than user_ttl_ms: so that all that belongs together is renewed together, and seldom
ROW = np.dtype([("item", ">u8"), ("amount", "<f8")])

# KEYS hash. ARGV first offset, end offset, time to live in ms, when to renew it, items kept in a set, epochs kept, then
# of each set epoch, segment and packed ROWs. Returns the offset that was expected, and 1 when all of the partition was
# given new time to live.
ADD = """
local hash, ttl, most, kept = KEYS[1], ARGV[3], tonumber(ARGV[5]), tonumber(ARGV[6])
local expected = tonumber(redis.call('HGET', hash, 'next') or 0)
if expected ~= tonumber(ARGV[1]) then return {expected, 0} end
local before = tonumber(redis.call('HGET', hash, 'epoch') or -1)
local newest = before
for n = 7, #ARGV, 3 do newest = math.max(newest, tonumber(ARGV[n])) end
for n = 7, #ARGV, 3 do
  if tonumber(ARGV[n]) > newest - kept then
    local set, rows = ARGV[n] .. ':' .. ARGV[n + 1], ARGV[n + 2]
    local key = hash .. ':' .. set
    for at = 1, #rows, 16 do
      redis.call('ZINCRBY', key, (struct.unpack('<d', rows, at + 8)), string.sub(rows, at, at + 7))
    end
    redis.call('ZREMRANGEBYRANK', key, 0, -most - 1)
    redis.call('PEXPIRE', key, ttl)
    redis.call('HSET', hash, set, '')
  end
end
redis.call('HSET', hash, 'next', ARGV[2])
if newest > before then redis.call('HSET', hash, 'epoch', newest) end
local renew = redis.call('PTTL', hash) < tonumber(ARGV[4])
if renew then redis.call('PEXPIRE', hash, ttl) end
if renew or newest > before then
  for _, set in ipairs(redis.call('HKEYS', hash)) do
    local epoch = tonumber(string.match(set, '^(%d+):'))
    if epoch and epoch <= newest - kept then
      redis.call('UNLINK', hash .. ':' .. set)
      redis.call('HDEL', hash, set)
    elseif epoch then
      redis.call('PEXPIRE', hash .. ':' .. set, ttl)
    end
  end
end
return {expected, renew and 1 or 0}
"""

# KEYS hash. ARGV segment, how many items, epochs kept. Returns the newest epoch, and packed ROWs of it and of each one
# before it, strongest first; nothing where nothing was counted. Packed, a thousand rows cost the server
# .7 ms instead of .3, and the reader's event loop .03 ms instead of 1.
TOP = """
local newest = redis.call('HGET', KEYS[1], 'epoch')
if not newest then return {} end
local found = {tonumber(newest)}
for age = 0, tonumber(ARGV[3]) - 1 do
  local key = KEYS[1] .. ':' .. (newest - age) .. ':' .. ARGV[1]
  local best, rows = redis.call('ZREVRANGE', key, 0, ARGV[2] - 1, 'WITHSCORES'), {}
  for n = 1, #best, 2 do rows[#rows + 1] = best[n] .. struct.pack('<d', tonumber(best[n + 1])) end
  found[#found + 1] = table.concat(rows)
end
return found
"""

_pack_row = struct.Struct(">Q").pack
_pack_amount = struct.Struct("<d").pack


class RedisPopularTable:
    """PopularTable of one definition of popularity, on one Redis server or a Redis Cluster.

    A set keeps the `max_items` with the greatest counts. What a partition has counted expires when nothing was added to
    it for between `user_ttl_ms` and a tenth more.
    """

    def __init__(self, client: Client, settings: Settings, definition: str, max_items: int = MAX_ITEMS) -> None:
        self._client = client
        self._settings = settings
        self._definition = definition
        self._max_items = max_items
        self._announced: set[int] = set()
        self._partitions = keys.popular_partitions(settings, definition)
        self._add = Script(client, ADD)
        self._top = Script(client, TOP)

    async def add(self, changes: Sequence[PopularChange]) -> list[int]:
        """Add what is expected next, one script call per partition, pipelined."""
        if not changes:
            return []
        ttl_ms, renew_ms = self._ttl_ms, self._settings.user_ttl_ms
        calls = []
        for change in changes:
            arguments: list[bytes | int] = [change.first_offset, change.end_offset, ttl_ms, renew_ms]
            arguments += [self._max_items, EPOCHS_KEPT]
            for (epoch, segment), counts in change.additions.items():
                arguments += [epoch, segment.encode(), _packed(counts)]
            calls.append(((self._key(change.partition),), arguments))
        with translated():
            results = await self._add.call_each(calls)
            renewed = {change.partition for change, (_, new) in zip(changes, results, strict=True) if new}
            await self._announce(renewed | {change.partition for change in changes} - self._announced)
        return [int(expected) for expected, _ in results]

    async def expected(self, partitions: Sequence[int]) -> list[int]:
        """The offset that each partition expects next, in one round trip."""
        pipeline = self._client.pipeline(transaction=False)
        for partition in partitions:
            pipeline.hget(self._key(partition), "next")
        with translated():
            return [int(offset or 0) for offset in await pipeline.execute()]

    async def expect(self, offsets: Mapping[int, int]) -> None:
        """Let partitions expect these offsets next."""
        pipeline = self._client.pipeline(transaction=False)
        for partition, offset in offsets.items():
            pipeline.hset(self._key(partition), "next", offset)
            pipeline.pexpire(self._key(partition), self._ttl_ms)
        with translated():
            await pipeline.execute()

    async def top(self, segments: Sequence[str], n: int) -> list[PopularItems]:
        """The most popular items of each segment, in two round trips."""
        if not segments:
            return []
        with translated():
            partitions = sorted(int(number) for number in await self._client.smembers(self._partitions))
            calls = [
                ((self._key(number),), (segment.encode(), n, EPOCHS_KEPT))
                for segment in segments
                for number in partitions
            ]
            answers = await self._top.call_each(calls) if calls else []
        found = [_parts(answer) for answer in answers]
        step = len(partitions)
        return [
            merged([part for parts in found[at * step : (at + 1) * step] for part in parts], n)
            for at in range(len(segments))
        ]

    async def close(self) -> None:
        """Close the client."""
        await close(self._client)

    async def _announce(self, partitions: set[int]) -> None:
        """Tell readers of partitions: new and renewed ones, and each once per process, in case the last one died."""
        if partitions:
            await self._client.sadd(self._partitions, *partitions)
            await self._client.pexpire(self._partitions, self._ttl_ms)
            self._announced |= partitions

    @property
    def _ttl_ms(self) -> int:
        return int(self._settings.user_ttl_ms * EXPIRES_LATER)

    def _key(self, partition: int) -> bytes:
        return keys.popular_counts(self._settings, self._definition, partition)


def _packed(counts: Mapping[int, int]) -> bytes:
    return b"".join([_pack_row(item) + _pack_amount(amount) for item, amount in counts.items()])


def _parts(answer: Sequence[bytes | int]) -> list[EpochCounts]:
    """What TOP returned of one partition and segment."""
    if not answer:
        return []
    newest, *epochs = answer
    rows = [np.frombuffer(packed, dtype=ROW) for packed in epochs]  # type: ignore[arg-type]  # bytes, behind the epoch
    return [
        EpochCounts(int(newest) - age, found["item"].astype(np.uint64), found["amount"])
        for age, found in enumerate(rows)
    ]
