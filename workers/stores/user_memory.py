"""The user table in this process: for trials and for pipelines without a Redis."""

from collections.abc import Sequence
from dataclasses import replace

from schemas.records import TOKEN_SLICE, is_of_nobody
from workers.ports import Applied, StoredUser, UserChange


class MemoryUserTable:
    """UserTable in a dict. Nothing expires, nothing outlives the process. `whole`: all that there was is in here."""

    def __init__(self, *, whole: bool = True) -> None:
        self.whole = whole
        self._users: dict[str, StoredUser] = {}

    async def records(self, user_ids: Sequence[str]) -> list[bytes | None]:
        """The records alone."""
        return [user.record for user in await self.read(user_ids)]

    async def read(self, user_ids: Sequence[str]) -> list[StoredUser]:
        """Records and seen sets."""
        found = [self._users.get(user_id, StoredUser(record=None, seen=b"")) for user_id in user_ids]
        return [replace(user, uncertain=not self.whole and is_of_nobody(user.record)) for user in found]

    async def write(self, changes: Sequence[UserChange]) -> list[Applied]:
        """Compare and set."""
        return [self._apply(change) for change in changes]

    async def close(self) -> None:
        """Nothing to give back."""

    def _apply(self, change: UserChange) -> Applied:
        stored = self._users.get(change.user_id, StoredUser(record=None, seen=b""))
        token = b"" if stored.record is None else stored.record[TOKEN_SLICE]
        if token != change.expected_token:
            return Applied(written=False)
        seen = change.seen if change.replace_seen else stored.seen + change.seen
        self._users[change.user_id] = StoredUser(change.record, seen)
        return Applied(written=True, seen_bytes=len(seen))
