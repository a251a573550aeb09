"""Values about users in Redis: one hash a user, `PREFIX{user_id}`, whose fields are the features."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson

from workers.errors import ConfigurationError, DependencyTimeout, DependencyUnavailable
from workers.features.given import Given
from workers.stores import connect
from workers.stores.connect import Client


class RedisFeatureSource:
    """FeatureSource on one Redis server or a Redis Cluster: one HMGET a user, all in one pipeline.

    A field holds JSON (a number, true, false, a list, a quoted text); whatever is no JSON is text as it is.
    """

    def __init__(self, dependency: str, client: Client, prefix: str, timeout_ms: int) -> None:
        self._dependency = dependency
        self._client = client
        self._prefix = prefix
        self._timeout_s = timeout_ms / 1000
        self._free = asyncio.Semaphore(connect.POOL_SIZE)  # the client refuses what has no connection

    async def values(self, user_ids: Sequence[str], names: Sequence[str]) -> list[Mapping[str, Any]]:
        """One round trip per server."""
        if not user_ids or not names:
            return [{} for _ in user_ids]
        async with self._call():
            pipeline = self._client.pipeline(transaction=False)
            for user_id in user_ids:
                pipeline.hmget(f"{self._prefix}{user_id}".encode(), names)
            found = await pipeline.execute(raise_on_error=False)
        rows: list[Mapping[str, Any]] = []
        for row in found:  # a key that holds something else than a hash is an error of its own: nothing is known
            stored = row if isinstance(row, list) else ()
            if isinstance(row, Exception) and "WRONGTYPE" not in str(row):
                raise DependencyUnavailable(self._dependency, f"{type(row).__name__}: {row}")
            rows.append(
                {name: _decoded(value) for name, value in zip(names, stored, strict=False) if value is not None}
            )
        return rows

    async def check(self, _names: Sequence[str], /) -> str | None:
        """Users may have any fields."""
        await self.ping()
        return None

    async def ping(self) -> None:
        """A PING."""
        async with self._call():
            await self._client.ping()

    async def close(self) -> None:
        """Close the client."""
        await connect.close(self._client)

    @asynccontextmanager
    async def _call(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout_s), self._free:
                with connect.translated():
                    yield
        except (DependencyTimeout, TimeoutError) as error:
            raise DependencyTimeout(self._dependency, f"no answer in {self._timeout_s * 1000:.0f} ms") from error
        except DependencyUnavailable as error:
            reason = str(error).removeprefix(f"{error.dependency}: ")
            raise DependencyUnavailable(self._dependency, reason) from error


def _decoded(value: bytes) -> Any:
    try:
        return orjson.loads(value)
    except ValueError:
        return value.decode(errors="replace")


def open_redis(given: Given) -> RedisFeatureSource:
    """Connects at the first call: to its own url, else to the Redis of the workers. Raises ConfigurationError."""
    changes: dict[str, Any] = {"store_timeout_ms": given.source.timeout_ms}
    if given.source.url.get_secret_value():
        changes |= {"redis_url": given.source.url, "redis_cluster": False}
    try:
        client = connect.connect(given.settings.model_copy(update=changes))
    except ConfigurationError as error:
        line = str(error).removeprefix("redis_url: ")
        raise ConfigurationError(f"{given.dependency.replace('features', 'sources', 1)}.url: {line}") from error
    return RedisFeatureSource(given.dependency, client, given.source.prefix, given.source.timeout_ms)
