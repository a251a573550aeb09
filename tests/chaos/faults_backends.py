"""Faults of Redis and Milvus beyond their death and their silence, which stand in faults.py."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Redis as Client

from tests.chaos.formats import hash64
from tests.chaos.log import ACTIVITY, ITEMS
from tests.chaos.redis_losses import until_ended
from tests.chaos.rig import RECOVERED_WITHIN_S, NotRecoveredError, Rig, say
from tests.chaos.workload import WRONGED

STEPS = 100
SLOWER_S = 0.5
SLOW_FOR_S = 15.0
ASKED = 10
STEPS_BETWEEN_COMMITS = 15
STEPS_KNOWN = 20
REFUSALS = 5


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
    """Everything in Redis is deleted at once, under load; until then everybody was known for certain."""
    await rig.feeder.steps_more(STEPS_KNOWN)
    await rig.taken_in([ACTIVITY, ITEMS], RECOVERED_WITHIN_S)
    rig.refilled_from_ms = rig.taken_in_by[-1].until_ms
    await rig.feeder.steps_more(rig.random.randint(1, 10))
    async with client(rig.service("redis").address) as redis, redis.pipeline(transaction=True) as at_once:
        at_once.flushall()
        at_once.rpush(wronged_key(rig), "no record")
        await at_once.execute()
    rig.fault_ended()
    say(f"  answer: {await rig.ask()}")
    await until_ended(rig)


async def milvus_slow(rig: Rig) -> None:
    """Every call to Milvus takes half a second more, for a while. Whether all is answered, the model sees."""
    rig.milvus.delay_s = SLOWER_S
    try:
        end = time.monotonic() + SLOW_FOR_S
        said = Counter([await rig.ask() for _ in range(ASKED)])
        await asyncio.sleep(end - time.monotonic())
        await rig.taken_in([ITEMS], RECOVERED_WITHIN_S)
    finally:
        rig.milvus.delay_s = 0.0
    say(f"  answers: {dict(said)}")


async def milvus_slow_and_kill(rig: Rig) -> None:
    """Whoever searches or feeds a slow Milvus is killed, with what it has had in hand for longer than commits take."""
    await rig.working("recall")
    rig.milvus.delay_s = SLOWER_S
    try:
        await rig.feeder.steps_more(STEPS_BETWEEN_COMMITS)
        workers = [*rig.workers.of("recall"), *rig.workers.of("items")]
        await rig.in_hand(workers)
        for worker in workers:
            rig.workers.kill(worker)
            rig.workers.start(worker.kind)
    finally:
        rig.milvus.delay_s = 0.0


async def refused_row(rig: Rig) -> None:
    """What a backend refuses, among good ones: an item the index, an item the tower, and a user who has no place."""
    await plant(rig)
    for _ in range(REFUSALS):
        await rig.feeder.send(rig.feeder.workload.refused(rig.now_ms(), rig.bundle.version, rig.bundle.dim))
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
    "milvus_slow": milvus_slow,
    "milvus_slow_and_kill": milvus_slow_and_kill,
    "refused_row": refused_row,
}
