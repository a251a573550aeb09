"""Which partitions a Redis holds all retained events of: what an emptied one does not say, and a filled one does.

A hash per consumer group: a field for every partition that is complete, `partitions`, how many there are, `fed_ms`,
when a worker of the group was there last by the clock of Redis, and `id`, made at random with the hash: whoever knows
the id can tell whether this is still the Redis that it has written to.
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
local whole = true
for n = 0, partitions - 1 do whole = whole and redis.call('HEXISTS', KEYS[1], n) == 1 end
if whole then redis.call('SET', KEYS[2], ARGV[1]) else redis.call('DEL', KEYS[2]) end
return redis.call('HGETALL', KEYS[1])
"""

# KEYS hash. ARGV id. Whether the hash has that id; then somebody is there now.
STAND = """
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'fed_ms', redis.call('TIME')[1] * 1000)
return 1
"""

# KEYS hash. How long ago somebody was there, in milliseconds.
AWAY = """
local now_ms = redis.call('TIME')[1] * 1000
return now_ms - tonumber(redis.call('HGET', KEYS[1], 'fed_ms') or now_ms)
"""


class RedisMarkers:
    """The markers of one consumer group, on one Redis server or a Redis Cluster. They never expire."""

    def __init__(self, client: Client, settings: Settings, group: str) -> None:
        """`group` without the namespace."""
        self.id = b""  # of the hash that was opened
        self.key = keys.filled(settings, group)
        self._client = client
        self._whole = keys.filled_whole(settings, group)
        self._partitions = 0
        self._update, self._stand, self._away = (Script(client, text) for text in (UPDATE, STAND, AWAY))

    async def open(self, partitions: int) -> dict[int, str]:
        """Values of the partitions that are complete, of so many that the topic has."""
        self._partitions = partitions
        found = await self._call(os.urandom(8).hex().encode(), partitions)
        self.id = found[b"id"]
        return {int(name): value.decode() for name, value in found.items() if name.isdigit()}

    async def mark(self, partition: int, value: str) -> bool:
        """Say that a partition is complete; False when the Redis that was opened has been emptied since."""
        return bool(await self._call(self.id, self._partitions, partition, value.encode()))

    async def stand(self) -> bool:
        """Whether this is still the Redis that was opened, and not emptied since. Notes that somebody is there."""
        with translated():
            return await self._stand.call_each([((self.key,), (self.id,))]) == [1]

    async def away_ms(self) -> int:
        """For how long nobody of the group was there; 0 where that is not known."""
        with translated():
            [away_ms] = await self._away.call_each([((self.key,), ())])
        return int(away_ms)

    async def _call(self, *arguments: bytes | int) -> dict[bytes, bytes]:
        with translated():
            [found] = await self._update.call_each([((self.key, self._whole), arguments)])
        return dict(zip(found[::2], found[1::2], strict=True))
