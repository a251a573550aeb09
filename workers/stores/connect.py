"""Connections to Redis, single server or cluster, and the translation of what can go wrong with them."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from redis import asyncio as redis_asyncio
from redis import exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from workers.errors import ConfigurationError, DependencyTimeout, DependencyUnavailable
from workers.resets import is_reset
from workers.settings import Settings

DEPENDENCY = "redis"
POOL_SIZE = 32

Client = Any  # redis.asyncio.Redis or RedisCluster: the commands used here are the same for both


def connect(settings: Settings) -> Client:
    """A client of the configured server or cluster; connects at the first command. Close it with `close`."""
    timeout_s = settings.store_timeout_ms / 1000
    url = settings.redis_url.get_secret_value()
    try:
        if settings.redis_cluster:
            return redis_asyncio.RedisCluster.from_url(
                url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, max_connections=POOL_SIZE
            )
        return redis_asyncio.Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            max_connections=POOL_SIZE,
            retry=Retry(NoBackoff(), 1),  # once, for a connection that the server closed meanwhile
        )
    except ValueError:  # its text may hold a part of a password that was not percent-encoded: not to be shown
        line = "redis_url: not redis://[[user]:password@]host:port/db (what is special in a password percent-encoded)"
        raise ConfigurationError(line) from None


async def close(client: Client) -> None:
    """Close a client; one whose server no longer says goodbye is let go of."""
    with suppress(exceptions.RedisError, OSError, TimeoutError):
        await client.aclose()


async def ping(client: Client) -> None:
    """One short question. Raises DependencyError when it is not answered."""
    with translated():
        await client.ping()


@contextmanager
def translated() -> Iterator[None]:
    """Turn exceptions of the client library into errors of ours."""
    try:
        yield
    except (exceptions.TimeoutError, TimeoutError) as error:
        raise DependencyTimeout(DEPENDENCY, "no answer in time") from error
    except (exceptions.RedisError, exceptions.RedisClusterException, OSError) as error:
        raise DependencyUnavailable(DEPENDENCY, f"{type(error).__name__}: {error}") from error
    except RuntimeError as error:
        if not is_reset(error):
            raise
        raise DependencyUnavailable(DEPENDENCY, "the connection was reset") from error


class Script:
    """A Lua script, sent once per server and then called by its SHA1; works on one server and on a cluster."""

    def __init__(self, client: Client, source: str) -> None:
        self._client = client
        self._source = source
        self._sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()

    async def call_each(self, calls: Sequence[tuple[Sequence[bytes], Sequence[bytes | int]]]) -> list[Any]:
        """Run the script once per (keys of one slot, arguments), pipelined; results in order.

        Raises what the client raises for the first call that failed.
        """
        results = await self._pipelined("EVALSHA", self._sha, calls)
        missing = [n for n, result in enumerate(results) if isinstance(result, exceptions.NoScriptError)]
        if missing:  # a new server, or one that was restarted: send the source with each of these calls
            again = await self._pipelined("EVAL", self._source, [calls[n] for n in missing])
            for n, result in zip(missing, again, strict=True):
                results[n] = result
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results

    async def _pipelined(
        self, command: str, script: str, calls: Sequence[tuple[Sequence[bytes], Sequence[bytes | int]]]
    ) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for keys, arguments in calls:
            pipeline.execute_command(command, script, len(keys), *keys, *arguments)  # evalsha() fails in a cluster
        results: list[Any] = await pipeline.execute(raise_on_error=False)
        return results


async def get_each(client: Client, keys: Sequence[bytes]) -> list[bytes | None]:
    """Values of many keys in one round trip per server, in order."""
    if not keys:
        return []
    if hasattr(client, "mget_nonatomic"):
        values: list[bytes | None] = await client.mget_nonatomic(*keys)
    else:
        values = await client.mget(keys)
    return values
