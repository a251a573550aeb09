"""Redis loses the acknowledged writes of two seconds: its file's tail, or what a replica had not."""

import asyncio
import shutil
import time
from functools import partial

import redis

from tests.chaos.processes import all_ended
from tests.chaos.rig import RECOVERED_WITHIN_S, NotRecoveredError, Rig
from workers.local.process import free_ports
from workers.local.redis import Redis

AWAY_STEPS = 10
OLDEST_LOST_S = 2.0
BEHIND_S = 2.0
LIMIT_S = 2.7  # a little less than `redis_durability_ms`: what is lost must be younger
TRIES = 5


async def tail_lost(rig: Rig) -> None:
    """kill -9, and what was written in the last two seconds is not in the append-only file."""
    server = _server(rig)
    (log,) = (server.data / "appendonlydir").glob("*.incr.aof")
    sizes: list[tuple[float, int]] = []
    goal = rig.feeder.steps + 20
    while rig.feeder.steps < goal or _cut(sizes) == log.stat().st_size:
        sizes.append((time.monotonic(), log.stat().st_size))
        await asyncio.sleep(0.05)
    server.kill()
    with log.open("r+b") as file:
        file.truncate(_cut(sizes))
    await rig.feeder.steps_more(AWAY_STEPS)
    await rig.restart(server)
    await until_ended(rig)


def _cut(sizes: list[tuple[float, int]]) -> int:
    """The size that the file had a while ago."""
    now_s = time.monotonic()
    return next((size for at_s, size in sizes if now_s - at_s < OLDEST_LOST_S), sizes[-1][1] if sizes else 0)


async def failover(rig: Rig) -> None:
    """A replica that lags takes the place of a Redis that is killed."""
    server = _server(rig)
    replica = Redis(server.data.with_name("redis-replica"), server.log.with_name("redis-replica.log"), server.cache)
    replica.ports = free_ports(1)
    replica.start()
    try:
        await rig.until(replica.probe, replica.ready_within_s, "the replica is not ready")
        for _ in range(TRIES):
            await asyncio.to_thread(_follow, replica, server)
            await rig.feeder.steps_more(20)
            if await asyncio.to_thread(_promoted_and_killed, replica, server):
                break
        else:
            raise NotRecoveredError("the replica was always behind by too much")
    finally:
        replica.stop()
    shutil.rmtree(server.data)
    replica.data.rename(server.data)
    await rig.feeder.steps_more(AWAY_STEPS)
    await rig.restart(server)
    await until_ended(rig)


def _follow(replica: Redis, server: Redis) -> None:
    with redis.Redis.from_url(server.address) as ours, redis.Redis.from_url(replica.address) as theirs:
        ours.config_set("repl-diskless-sync-delay", 0)
        theirs.replicaof("127.0.0.1", server.ports[0])
        end_s = time.monotonic() + 30
        while not _follows(theirs.info()):
            if time.monotonic() > end_s:
                raise NotRecoveredError("the replica does not follow")
            time.sleep(0.05)


def _follows(info: dict[str, object]) -> bool:
    """Whether it is in step, and has an append-only file of what it was sent."""
    busy = info["aof_rewrite_in_progress"] or info["aof_rewrite_scheduled"]
    return info["master_link_status"] == "up" and not busy


def _promoted_and_killed(replica: Redis, server: Redis) -> bool:
    """Whether the replica is without some writes, none of them too old. Blocks, so that nothing else delays it."""
    with redis.Redis.from_url(server.address) as ours, redis.Redis.from_url(replica.address) as theirs:
        had = theirs.info("replication")["master_repl_offset"]
        apart_s = time.monotonic()
        theirs.replicaof("NO", "ONE")
        time.sleep(BEHIND_S)
        missing = ours.info("replication")["master_repl_offset"] - had
        if not missing or time.monotonic() - apart_s > LIMIT_S:
            return False
        server.kill()
    if time.monotonic() - apart_s > LIMIT_S + 0.1:
        raise NotRecoveredError("it took too long to kill Redis")
    return True


async def until_ended(rig: Rig) -> None:
    """Wait until every worker that writes to Redis has seen that it is another one, or empty, and has ended."""
    workers = [*rig.workers.of("activity"), *rig.workers.of("items")]
    await rig.until(partial(all_ended, workers), RECOVERED_WITHIN_S, "a worker goes on with another Redis")


def _server(rig: Rig) -> Redis:
    server = rig.service("redis")
    assert isinstance(server, Redis)
    return server
