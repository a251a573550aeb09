"""Faults of Redis and Milvus beyond their death and their silence, which stand in faults.py."""

import asyncio
import os
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from redis.asyncio import Redis as Client

from tests.chaos.formats import hash64
from tests.chaos.log import ITEMS
from tests.chaos.rig import NotRecoveredError, Rig, say
from tests.chaos.workload import WRONGED
from workers.local.process import free_ports
from workers.local.redis import Redis
from workers.local.service import Service

STEPS = 100
SLOWER_S = 0.5
SLOW_FOR_S = 15.0
ASKED = 10
BACKLOG = 200
REFUSALS = 5
BEHIND_S = 1.9  # so far a replica is behind: what is two seconds old must not be lost
TAIL_S = 1.0  # so much of its file a server may lose
TOLERANCE_S = 0.08
TRIES = 10


@asynccontextmanager
async def client(address: str) -> AsyncIterator[Any]:
    """A connection to a Redis server."""
    async with Client.from_url(address) as opened:
        yield opened


async def redis_full(rig: Rig) -> None:
    """Redis takes no write any more, for ten seconds."""
    async with client(rig.service("redis").address) as redis:
        before = await _refusals(redis)
        await redis.config_set("maxmemory", 1)
        try:
            await rig.feeder.steps_more(STEPS)
            await rig.answered("ok")  # nobody writes for a request
            if await _refusals(redis) == before:
                raise NotRecoveredError("a full Redis has refused nothing")
        finally:
            await redis.config_set("maxmemory", 0)


async def _refusals(redis: Any) -> int:
    errors = await redis.info("errorstats")
    return int(errors.get("errorstat_OOM", {}).get("count", 0))


async def redis_emptied(rig: Rig) -> None:
    """Everything in Redis is deleted at once, under load."""
    await rig.feeder.steps_more(rig.random.randint(1, 10))
    async with client(rig.service("redis").address) as redis, redis.pipeline(transaction=True) as at_once:
        at_once.flushall()
        at_once.rpush(wronged_key(rig), "no record")
        await at_once.execute()


async def redis_failover(rig: Rig) -> None:
    """Redis dies, and in its place comes a replica that was cut off a little less than two seconds before."""
    master = rig.service("redis")
    replica = Redis(rig.stack.data_dir / "redis-replica", rig.stack.data_dir / "logs" / "redis-replica.log", Path())
    replica.ports = free_ports(1)
    replica.start()
    try:
        await rig.until(replica.probe, 30.0, "the replica does not answer")
        async with client(replica.address) as redis:
            await _until_killed(rig, master, BEHIND_S, partial(_cut_off, rig, redis, master.ports[0]))
        replica.stop()  # which writes its file
        shutil.rmtree(master.data)
        replica.data.rename(master.data)
    finally:
        replica.stop()
        shutil.rmtree(replica.data, ignore_errors=True)
    await rig.restart(master)


async def _cut_off(rig: Rig, replica: Any, port: int) -> None:
    """Let a replica catch up with its master, and be a master of its own from then on."""

    async def follows() -> bool:
        replication, persistence = await replica.info("replication"), await replica.info("persistence")
        rewrites = persistence["aof_rewrite_in_progress"] or persistence["aof_rewrite_scheduled"]
        return replication["master_link_status"] == "up" and not rewrites

    await replica.replicaof("127.0.0.1", port)
    await rig.until_async(follows, 60.0, "the replica does not follow")
    await replica.replicaof("NO", "ONE")


async def redis_lost_tail(rig: Rig) -> None:
    """kill -9 of Redis, and its append-only file has lost the last second, as a crash of its machine may leave it."""
    redis = rig.service("redis")
    stood: dict[Path, int] = {}

    async def note() -> None:
        stood.update((file, file.stat().st_size) for file in redis.data.rglob("*.aof"))

    await rig.feeder.steps_more(rig.random.randint(1, 10))
    await _until_killed(rig, redis, TAIL_S, note)
    cut = 0
    for file, size in stood.items():
        cut += file.stat().st_size - size
        os.truncate(file, size)
    say(f"  {cut} bytes of Redis' file are lost")
    await rig.restart(redis)


async def _until_killed(rig: Rig, redis: Service, after_s: float, last: Callable[[], Awaitable[None]]) -> None:
    """Kill Redis so long after `last` has begun; where this machine stood still meanwhile, do it once more."""
    for _ in range(TRIES):
        await rig.working("activity")
        began = time.monotonic()
        await last()
        await asyncio.sleep(began + after_s - time.monotonic())
        if time.monotonic() < began + after_s + TOLERANCE_S:
            redis.kill()
            return
    raise NotRecoveredError("this machine is too slow for losses of a known age")


async def milvus_slow(rig: Rig) -> None:
    """Every call to Milvus takes half a second more, for a while."""
    rig.milvus.delay_s = SLOWER_S
    try:
        end = time.monotonic() + SLOW_FOR_S
        said = Counter([await rig.ask() for _ in range(ASKED)])
        await asyncio.sleep(end - time.monotonic())
        await rig.until_async(lambda: rig.lag_below(ITEMS, BACKLOG), 60.0, "items do not go on")
    finally:
        rig.milvus.delay_s = 0.0
    say(f"  answers: {dict(said)}")
    if said["nothing"]:
        raise NotRecoveredError("a request was not answered")


async def refused_row(rig: Rig) -> None:
    """What a backend refuses, among good ones: an item the index, an item the tower, and a user who has no place."""
    await plant(rig)
    for _ in range(REFUSALS):
        await rig.feeder.send(rig.feeder.workload.refused(rig.now_ms()))
        await rig.feeder.steps_more(1)


async def plant(rig: Rig) -> None:
    """Put something else in one user's place."""
    async with client(rig.service("redis").address) as redis:
        await redis.rpush(wronged_key(rig), "no record")


def wronged_key(rig: Rig) -> str:
    """The record of the user whose activities find no place."""
    return f"{rig.settings.namespace}:user:{{{hash64(WRONGED):016x}}}:record:{WRONGED}"


BACKEND_FAULTS: dict[str, Callable[[Rig], Awaitable[None]]] = {
    "redis_full": redis_full,
    "redis_emptied": redis_emptied,
    "redis_failover": redis_failover,
    "redis_lost_tail": redis_lost_tail,
    "milvus_slow": milvus_slow,
    "refused_row": refused_row,
}
