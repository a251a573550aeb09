"""A feature source asked for the same few names: answers are kept for a moment, nobody is asked for twice at once."""

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import monotonic
from typing import Any

from cachetools import TLRUCache

from workers.cancelling import cancel
from workers.ports import FeatureSource

Values = Mapping[str, Any]


class CachedFeatures:
    """Values of `names`. An answer counts for `ttl_ms`, or a little less, so that not all end at once; 0 = never.

    That a user is unknown is kept as well. A failure is not.
    """

    def __init__(
        self,
        source: FeatureSource,
        names: Sequence[str],
        *,
        ttl_ms: int,
        size: int,
        now_s: Callable[[], float] = monotonic,
        jitter: Callable[[], float] = lambda: random.uniform(0.8, 1.0),  # noqa: S311  # jitter, not a secret
    ) -> None:
        self.source = source
        self.names = tuple(names)
        self._kept: TLRUCache[str, Values] | None = None
        if ttl_ms:
            self._kept = TLRUCache(size, lambda _user, _values, now: now + ttl_ms / 1000 * jitter(), now_s)
        self._flights: dict[str, asyncio.Task[dict[str, Values]]] = {}

    def kept(self, user_ids: Iterable[str]) -> dict[str, Values]:
        """Those of these users whose values are known, without asking anybody."""
        if self._kept is None:
            return {}
        found = {user_id: self._kept.get(user_id) for user_id in user_ids}
        return {user_id: values for user_id, values in found.items() if values is not None}

    async def ask(self, user_ids: Sequence[str]) -> dict[str, Values]:
        """The values of different users, from the source. Raises DependencyError.

        Who is being asked about already is waited for; that goes on when who asked first gives up.
        """
        if self._kept is None:
            return dict(zip(user_ids, await self.source.values(user_ids, self.names), strict=True))
        new = [user_id for user_id in user_ids if user_id not in self._flights]
        if new:
            flight = asyncio.create_task(self._fetch(new))
            flight.add_done_callback(_noticed)
            self._flights.update(dict.fromkeys(new, flight))
        found: dict[str, Values] = {}
        for flight in {self._flights[user_id] for user_id in user_ids}:
            found |= await asyncio.shield(flight)
        return {user_id: found[user_id] for user_id in user_ids}

    def expire(self) -> None:
        """Let go of answers that no longer count."""
        if self._kept is not None:
            self._kept.expire()

    async def close(self) -> None:
        """Give up what is being asked, and close the source."""
        await cancel(*set(self._flights.values()))
        await self.source.close()

    async def _fetch(self, user_ids: Sequence[str]) -> dict[str, Values]:
        assert self._kept is not None  # noqa: S101  # for the types: else nothing is fetched here
        try:
            found = dict(zip(user_ids, await self.source.values(user_ids, self.names), strict=True))
            self._kept.update(found)
            return found
        finally:
            for user_id in user_ids:
                del self._flights[user_id]


def _noticed(flight: asyncio.Task[dict[str, Values]]) -> None:
    """A failure that nobody waits for any more is told by who gave up."""
    if not flight.cancelled():
        flight.exception()
