"""Which partitions a Redis holds all retained events of: what an emptied one does not say, and a filled one does.

A hash per consumer group: a field for every partition that is complete, `partitions`, how many there are, `fed_ms`,
when a worker of the group was there last by the clock of Redis, and `id`, made at random with the hash: whoever knows
the id can tell whether this is still the Redis that it has written to. `missed_ms` is there while deletions may be
missing, because nobody was there for longer than the topic keeps them: when that was noticed. Whoever looks or stands
sets it before `fed_ms` is renewed, and it stays until it is mended.
Beside it a string says that every partition is complete: one key more for whoever reads user records.
"""

import os

from workers.settings import Settings
from workers.stores import keys
from workers.stores.connect import Client, Script, translated

# KEYS hash, whole. ARGV id, partitions of the topic, and perhaps a partition that is complete and its value. With one,
# nothing happens unless the hash has that id; else the id is given to a hash that has none. Returns the hash.
UPDATE = """
if ARGV[3] then
  if redis.call('HGET', KEYS[1], 'id') ~= ARGV[1] then return {} end
  redis.call('HSET', KEYS[1], ARGV[3], ARGV[4])
else
  redis.call('HSETNX', KEYS[1], 'id', ARGV[1])
end
local partitions = math.max(tonumber(ARGV[2]), tonumber(redis.call('HGET', KEYS[1], 'partitions') or 0))
redis.call('HSET', KEYS[1], 'partitions', partitions)
local whole = partitions > 0
for n = 0, partitions - 1 do whole = whole and redis.call('HEXISTS', KEYS[1], n) == 1 end
if whole then redis.call('SET', KEYS[2], ARGV[1]) else redis.call('DEL', KEYS[2]) end
return redis.call('HGETALL', KEYS[1])
"""

# What both of the next begin with. ARGV[1] is for how long the topic keeps deletions, '' = that is no matter. With the
# mark the time begins anew: one that is taken away before somebody stands does not come back.
NOTICE = """
local now_ms = redis.call('TIME')[1] * 1000
local function notice()
  local fed_ms = tonumber(redis.call('HGET', KEYS[1], 'fed_ms') or now_ms)
  if ARGV[1] ~= '' and now_ms - fed_ms > tonumber(ARGV[1]) then
    redis.call('HSET', KEYS[1], 'missed_ms', now_ms, 'fed_ms', now_ms)
  end
  return redis.call('HGET', KEYS[1], 'missed_ms')
end
"""

# KEYS hash. Returns the mark.
LOOK = f"""{NOTICE}
return notice()
"""

# KEYS hash. ARGV[2] id. Whether the hash has that id, and the mark; then somebody is there now.
STAND = f"""{NOTICE}
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[2] then return {{0, false}} end
local missed_ms = notice()
redis.call('HSET', KEYS[1], 'fed_ms', now_ms)
return {{1, missed_ms}}
"""

# KEYS hash. ARGV the mark that is to go. Whether it was that one.
MENDED = """
if redis.call('HGET', KEYS[1], 'missed_ms') ~= ARGV[1] then return 0 end
return redis.call('HDEL', KEYS[1], 'missed_ms')
"""

# KEYS hash, whole. Whether there is a hash: it keeps `partitions` and when somebody was there.
FORGET = """
redis.call('DEL', KEYS[2])
for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
  if tonumber(name) or name == 'id' then redis.call('HDEL', KEYS[1], name) end
end
return redis.call('EXISTS', KEYS[1])
"""


class RedisMarkers:
    """The markers of one consumer group, on one Redis server or a Redis Cluster. They never expire."""

    def __init__(self, client: Client, settings: Settings, group: str) -> None:
        """`group` without the namespace."""
        self.id = b""  # of the hash that was opened
        self.missed_ms: int | None = None  # the mark, as of the last look or stand
        self.key = keys.filled(settings, group)
        self._client = client
        self._whole = keys.filled_whole(settings, group)
        self._partitions = 0
        self._update, self._stand, self._look, self._mended, self._forget = (
            Script(client, text) for text in (UPDATE, STAND, LOOK, MENDED, FORGET)
        )

    async def open(self, partitions: int) -> dict[int, str]:
        """Values of the partitions that are complete, of so many that the topic has."""
        self._partitions = partitions
        found = await self._call(os.urandom(8).hex().encode(), partitions)
        self.id = found[b"id"]
        return {int(name): value.decode() for name, value in found.items() if name.isdigit()}

    async def whole(self) -> bool:
        """Whether every partition is complete. Only asks: nothing needs to be opened."""
        with translated():
            return bool(await self._client.exists(self._whole))

    async def mark(self, partition: int, value: str) -> bool:
        """Say that a partition is complete; False when the Redis that was opened has been emptied since."""
        return bool(await self._call(self.id, self._partitions, partition, value.encode()))

    async def forget(self) -> bool:
        """No partition is complete any more; False when nobody ever opened. Whoever has finds that he stands no longer.

        When somebody was there last, and the mark, stay.
        """
        with translated():
            return await self._forget.call_each([((self.key, self._whole), ())]) == [1]

    async def stand(self, deletions_ms: int | None = None) -> bool:
        """Whether this is still the Redis that was opened, and not emptied since. Notes that somebody is there.

        `deletions_ms` as in `look`, which this does first.
        """
        with translated():
            [(same, missed_ms)] = await self._stand.call_each([((self.key,), (_kept(deletions_ms), self.id))])
        self.missed_ms = _time(missed_ms)
        return bool(same)

    async def look(self, deletions_ms: int | None = None) -> int | None:
        """When it was noticed that deletions may be missing, by the clock of Redis; None = they are not, or are mended.

        It is noticed, and marked, when nobody was there for longer than `deletions_ms`; without that, this only asks.
        Where it is not known when somebody was there last, nothing is marked.
        """
        with translated():
            [missed_ms] = await self._look.call_each([((self.key,), (_kept(deletions_ms),))])
        self.missed_ms = _time(missed_ms)
        return self.missed_ms

    async def mended(self, missed_ms: int) -> bool:
        """Take a mark away; False when there is none, or one of another time. Idempotent."""
        with translated():
            return await self._mended.call_each([((self.key,), (missed_ms,))]) == [1]

    async def _call(self, *arguments: bytes | int) -> dict[bytes, bytes]:
        with translated():
            [found] = await self._update.call_each([((self.key, self._whole), arguments)])
        return dict(zip(found[::2], found[1::2], strict=True))


def _kept(deletions_ms: int | None) -> bytes:
    return b"" if deletions_ms is None else b"%d" % deletions_ms


def _time(stored: bytes | None) -> int | None:
    return None if stored is None else int(stored)
