"""The user table in Redis: one packed value per user, and the seen set beside it in the same hash slot."""

from collections.abc import Sequence

from schemas.records import is_of_nobody
from workers.errors import StoreLost
from workers.ports import Applied, StoredUser, UserChange
from workers.settings import Settings
from workers.stores import keys
from workers.stores.connect import Client, Script, close, get_each, translated
from workers.stores.markers_redis import RedisMarkers

GROUP = "recall-activity"  # whose markers tell whether the table is complete

# KEYS record, seen, perhaps markers. ARGV expected token, record, seen bytes, "1" = they replace the seen set, time to
# live in ms, the id that the markers must have. Returns the length of the seen set, -1 when another token stands, -2
# when a key holds something else than a string, -3 when the markers are gone.
WRITE = """
if KEYS[3] and redis.call('HGET', KEYS[3], 'id') ~= ARGV[6] then return -3 end
local token = redis.pcall('GETRANGE', KEYS[1], 1, 8)
if type(token) == 'table' or type(redis.pcall('STRLEN', KEYS[2])) == 'table' then return -2 end
if token ~= ARGV[1] then return -1 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[5])
if ARGV[4] == '1' then redis.call('DEL', KEYS[2]) end
if ARGV[3] ~= '' then redis.call('APPEND', KEYS[2], ARGV[3]) end
redis.call('PEXPIRE', KEYS[2], ARGV[5])
return redis.call('STRLEN', KEYS[2])
"""
REFUSED = -2
LOST = -3


class RedisUserTable:
    """UserTable on one Redis server or a Redis Cluster. Records expire `user_ttl_ms` after their last change.

    With `markers`, which must be opened first, `write` raises StoreLost where Redis has been emptied since, and writes
    nothing. In a cluster they stand on another node: there it is the one who watches them that finds out.
    """

    def __init__(self, client: Client, settings: Settings, markers: RedisMarkers | None = None) -> None:
        self._client = client
        self._settings = settings
        self._markers = None if settings.redis_cluster else markers
        self._write = Script(client, WRITE)

    async def records(self, user_ids: Sequence[str]) -> list[bytes | None]:
        """The records alone, in one round trip."""
        with translated():
            return await get_each(self._client, [keys.user_record(self._settings, user_id) for user_id in user_ids])

    async def read(self, user_ids: Sequence[str]) -> list[StoredUser]:
        """Records, seen sets, and whether the table is complete: in one round trip, and on one server at one moment."""
        if not user_ids:
            return []
        records = [keys.user_record(self._settings, user_id) for user_id in user_ids]
        seen = [keys.user_seen(self._settings, user_id) for user_id in user_ids]
        with translated():
            values = await get_each(self._client, [*records, *seen, keys.filled_whole(self._settings, GROUP)])
        half, whole = len(user_ids), values.pop() is not None
        return [
            StoredUser(record, raw or b"", uncertain=not whole and is_of_nobody(record))
            for record, raw in zip(values[:half], values[half:], strict=True)
        ]

    async def write(self, changes: Sequence[UserChange]) -> list[Applied]:
        """Compare and set, one script call per change, pipelined."""
        if not changes:
            return []
        settings, ttl_ms = self._settings, self._settings.user_ttl_ms
        guard, guarded_by = ((self._markers.key,), (self._markers.id,)) if self._markers else ((), ())
        calls = [
            (
                (keys.user_record(settings, change.user_id), keys.user_seen(settings, change.user_id), *guard),
                (change.expected_token, change.record, change.seen, int(change.replace_seen), ttl_ms, *guarded_by),
            )
            for change in changes
        ]
        with translated():
            lengths = await self._write.call_each(calls)
        if LOST in lengths:
            raise StoreLost("redis was emptied, or is another one")
        return [Applied(length >= 0, max(0, length), refused=length == REFUSED) for length in lengths]

    async def close(self) -> None:
        """Close the client."""
        await close(self._client)
