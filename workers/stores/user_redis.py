"""The user table in Redis: one packed value per user, and the seen set beside it in the same hash slot."""

from collections.abc import Sequence

from workers.ports import Applied, StoredUser, UserChange
from workers.settings import Settings
from workers.stores import keys
from workers.stores.connect import Client, Script, get_each, translated

# KEYS record, seen. ARGV expected token, record, seen bytes, "1" = they replace the seen set, time to live in ms.
# Returns the length of the seen set, -1 when another token stands, -2 when a key holds something else than a string.
WRITE = """
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


class RedisUserTable:
    """UserTable on one Redis server or a Redis Cluster. Records expire `user_ttl_ms` after their last change."""

    def __init__(self, client: Client, settings: Settings) -> None:
        self._client = client
        self._settings = settings
        self._write = Script(client, WRITE)

    async def records(self, user_ids: Sequence[str]) -> list[bytes | None]:
        """The records alone, in one round trip."""
        with translated():
            return await get_each(self._client, [keys.user_record(self._settings, user_id) for user_id in user_ids])

    async def read(self, user_ids: Sequence[str]) -> list[StoredUser]:
        """Records and seen sets, in one round trip."""
        records = [keys.user_record(self._settings, user_id) for user_id in user_ids]
        seen = [keys.user_seen(self._settings, user_id) for user_id in user_ids]
        with translated():
            values = await get_each(self._client, records + seen)
        half = len(user_ids)
        return [StoredUser(record, raw or b"") for record, raw in zip(values[:half], values[half:], strict=True)]

    async def write(self, changes: Sequence[UserChange]) -> list[Applied]:
        """Compare and set, one script call per change, pipelined."""
        if not changes:
            return []
        ttl_ms = self._settings.user_ttl_ms
        calls = [
            (
                (keys.user_record(self._settings, change.user_id), keys.user_seen(self._settings, change.user_id)),
                (change.expected_token, change.record, change.seen, int(change.replace_seen), ttl_ms),
            )
            for change in changes
        ]
        with translated():
            lengths = await self._write.call_each(calls)
        return [Applied(length >= 0, max(0, length), refused=length == REFUSED) for length in lengths]

    async def close(self) -> None:
        """Close the client."""
        await self._client.aclose()
