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
    while True:
        sizes.append((time.monotonic(), log.stat().st_size))
        kept_s, kept = _a_while_ago(sizes)
        if rig.feeder.steps >= goal and kept < sizes[-1][1]:  # there is something to cut off
            break
        await asyncio.sleep(0.05)
    if _kill(server) - kept_s > LIMIT_S:
        raise NotRecoveredError("it took too long to kill Redis")
    with log.open("r+b") as file:
        file.truncate(kept)
    await rig.feeder.steps_more(AWAY_STEPS)
    await rig.restart(server)
    await until_ended(rig)


def _a_while_ago(sizes: list[tuple[float, int]]) -> tuple[float, int]:
    """The first of the sizes that were seen in the two seconds before the last of them, and when."""
    return next((at_s, size) for at_s, size in sizes if sizes[-1][0] - at_s < OLDEST_LOST_S)


def _kill(server: Redis) -> float:
    """kill -9; when it was sent, not when the process was gone."""
    assert server.process is not None
    server.process.kill()
    killed_s = time.monotonic()
    server.kill()
    return killed_s


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
        killed_s = _kill(server)
    if killed_s - apart_s > LIMIT_S + 0.1:
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
