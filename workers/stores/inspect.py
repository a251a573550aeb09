"""What a Redis server says of itself: version, memory, persistence, its part in replication, and its clock.

INFO alone decides where it can, because managed servers refuse CONFIG; what only CONFIG knows is None then.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from redis import exceptions

from workers.clock import Skew
from workers.errors import DependencyError
from workers.settings import Settings
from workers.stores.connect import DEPENDENCY, Client, close, connect, translated

NODE_TIMEOUT_S = 2.0

Ask = Callable[..., Awaitable[Any]]
"""Send a command, in words, to one server."""


@dataclass(frozen=True, slots=True)
class Node:
    """One server. Sizes in bytes; `maxmemory` 0 means no limit, `save` and `fsync` are None where CONFIG is refused."""

    address: str
    product: str
    version: tuple[int, ...]  # of the Redis whose commands it speaks: a fork counts its own versions
    clustered: bool
    replica: bool
    loading: bool
    used_memory: int
    maxmemory: int
    policy: str
    aof: bool
    aof_written: bool  # whether the last write to the append-only file went well
    snapshot_written: bool
    save: str | None
    fsync: str | None


@dataclass(frozen=True, slots=True)
class Unknown:
    """A node that did not tell: it is away, or INFO is not allowed here (`refused`)."""

    address: str
    reason: str
    refused: bool = False


async def inspect_nodes(settings: Settings) -> list[Node | Unknown]:
    """Every server of the cluster, or the one. Raises DependencyError when none answers, ConfigurationError."""
    async with _servers(settings) as servers:
        tried = await asyncio.gather(*(_node(*server) for server in servers.items()), return_exceptions=True)
        found: list[Node | Unknown] = []
        for address, result in zip(servers, tried, strict=True):
            if isinstance(result, DependencyError):
                refused = isinstance(result.__cause__, exceptions.ResponseError)
                found.append(Unknown(address, str(result).removeprefix(f"{DEPENDENCY}: "), refused))
            elif isinstance(result, BaseException):
                raise result
            else:
                found.append(result)
    if not any(isinstance(node, Node) or node.refused for node in found):
        raise next(result for result in tried if isinstance(result, DependencyError))
    return found


async def clock_skews(settings: Settings) -> list[Skew]:
    """The clock of every server against ours; those that do not answer are left out. Raises DependencyError."""
    async with _servers(settings) as servers:
        tried = await asyncio.gather(*(_skew(*server) for server in servers.items()), return_exceptions=True)
    for result in tried:
        if isinstance(result, BaseException) and not isinstance(result, DependencyError):
            raise result
    return [result for result in tried if isinstance(result, Skew)]


@asynccontextmanager
async def _servers(settings: Settings) -> AsyncIterator[dict[str, Ask]]:
    """Address of each server -> how to ask it. What is no cluster node is one server, whatever the settings say."""
    async with AsyncExitStack() as opened:
        single = connect(settings.model_copy(update={"redis_cluster": False}))
        opened.push_async_callback(close, single)
        parts = urlsplit(settings.redis_url.get_secret_value())
        address = f"{parts.hostname}:{parts.port or 6379}" if parts.hostname else parts.path
        if not settings.redis_cluster or not await _is_clustered(single):
            yield {address: single.execute_command}
            return
        cluster = connect(settings)
        opened.push_async_callback(close, cluster)
        with translated():
            await cluster.initialize()
        yield {node.name: partial(cluster.execute_command, target_nodes=node) for node in cluster.get_nodes()}


async def _is_clustered(client: Client) -> bool:
    """Whether a server is the node of a cluster; True where it may not be asked."""
    try:
        with translated():
            return bool((await client.info("cluster")).get("cluster_enabled"))
    except DependencyError as error:
        if isinstance(error.__cause__, exceptions.NoPermissionError):
            return True
        raise


async def _node(address: str, ask: Ask) -> Node:
    info = await _answered(ask("INFO"))
    return _node_of(address, info, await _config(ask, "save"), await _config(ask, "appendfsync"))


def _node_of(address: str, info: Mapping[str, Any], save: str | None, fsync: str | None) -> Node:
    fork = info.get("valkey_version")
    return Node(
        address=address,
        product=f"Valkey {fork}" if fork else f"Redis {info.get('redis_version', 'of unknown version')}",
        version=_version(str(info.get("redis_version", ""))),
        clustered=bool(info.get("cluster_enabled")),
        replica=info.get("role") == "slave",
        loading=bool(info.get("loading")),
        used_memory=int(info.get("used_memory", 0)),
        maxmemory=int(info.get("maxmemory", 0)),
        policy=str(info.get("maxmemory_policy", "")),
        aof=bool(info.get("aof_enabled")),
        aof_written=info.get("aof_last_write_status", "ok") == "ok",
        snapshot_written=info.get("rdb_last_bgsave_status", "ok") == "ok",
        save=save,
        fsync=fsync,
    )


def _version(text: str) -> tuple[int, ...]:
    found = re.match(r"(\d+)\.(\d+)", text)
    return tuple(int(part) for part in found.groups()) if found else ()


async def _config(ask: Ask, name: str) -> str | None:
    try:
        found: Mapping[str, str] = await _answered(ask("CONFIG GET", name))
    except DependencyError:
        return None  # managed servers do not allow it
    return found.get(name)


async def _skew(address: str, ask: Ask) -> Skew:
    await _answered(ask("TIME"))  # connects, which takes more than one way there and back
    before_s, start_s = time.time(), time.perf_counter()
    seconds, microseconds = await _answered(ask("TIME"))
    took_s = time.perf_counter() - start_s
    ahead_s = seconds + microseconds / 1e6 - (before_s + took_s / 2)
    return Skew(address, ahead_s * 1000, took_s * 500)


async def _answered(answer: Awaitable[Any]) -> Any:
    with translated():
        async with asyncio.timeout(NODE_TIMEOUT_S):
            return await answer
