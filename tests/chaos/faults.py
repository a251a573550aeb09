"""The faults: each breaks something under load and makes it whole again. What follows is told by docs/failures.md."""

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable, Sequence

from tests.chaos import redis_losses
from tests.chaos.faults_backends import BACKEND_FAULTS
from tests.chaos.faults_kafka import KAFKA_FAULTS
from tests.chaos.faults_towers import TOWER_FAULTS
from tests.chaos.log import ACTIVITY, ITEMS, REQUESTS
from tests.chaos.rig import BUSY_WITHIN_S, RECOVERED_WITHIN_S, Rig, busy
from workers.local.service import Service
from workers.settings import AGENT_KINDS, AgentKind

Fault = Callable[[Rig], Awaitable[None]]

SESSION_TIMEOUT_S = 10.0  # of a worker's consumer: silent for so long, it loses its partitions


async def quiet(rig: Rig) -> None:
    """No fault: traffic alone."""
    await rig.feeder.steps_more(100)


def kill(kind: AgentKind) -> Fault:
    """kill -9 of one worker at a random moment, and a new one at once."""

    async def fault(rig: Rig) -> None:
        await rig.working(kind)
        await rig.feeder.steps_more(rig.random.randint(1, 20))
        await asyncio.sleep(rig.random.random() * 0.1)  # anywhere within a step
        rig.workers.kill(rig.random.choice(rig.workers.of(kind)))
        rig.workers.start(kind)

    return fault


def terminate(kind: AgentKind) -> Fault:
    """SIGTERM: one worker drains and leaves, a new one joins."""

    async def fault(rig: Rig) -> None:
        await rig.working(kind)
        rig.workers.terminate(rig.random.choice(rig.workers.of(kind)))
        rig.workers.start(kind)

    return fault


def freeze(kind: AgentKind) -> Fault:
    """SIGSTOP for longer than the session timeout, in the middle of a backlog; then SIGCONT: a zombie that writes."""

    async def fault(rig: Rig) -> None:
        await rig.working(kind)
        chance = rig.random
        worker = chance.choice(rig.workers.of(kind))
        await _backlog(rig, kind)
        await rig.in_hand([worker])
        worker.send(signal.SIGSTOP)
        await asyncio.sleep(SESSION_TIMEOUT_S)
        await _taken_over(rig, kind)
        worker.send(signal.SIGCONT)

    return fault


async def _backlog(rig: Rig, kind: AgentKind) -> None:
    """More of a kind's events than it can do at once."""
    workload, now_ms = rig.feeder.workload, rig.now_ms()
    if kind == "items":
        messages = [message for _ in range(40) for message in workload.race(now_ms)]
        messages += [workload.item(now_ms) for _ in range(1200)]
    elif kind == "activity":
        messages = [message for _ in range(20) for message in workload.burst(now_ms)]
    else:
        messages = [workload.request() for _ in range(500)]
    await rig.feeder.send(messages)


async def _taken_over(rig: Rig, kind: AgentKind) -> None:
    """Wait until others have done what the frozen one left, and what came since."""
    await _backlog(rig, kind)
    await rig.taken_in([{"activity": ACTIVITY, "items": ITEMS, "recall": REQUESTS}[kind]], RECOVERED_WITHIN_S)


async def storm(rig: Rig) -> None:
    """Workers of every kind join and leave in quick succession, while versions of the same items come."""
    for _ in range(3):
        joined = [rig.workers.start(kind) for kind in AGENT_KINDS]
        await rig.feeder.steps_more(rig.random.randint(5, 40))
        for worker in rig.random.sample(joined, len(joined)):
            rig.workers.terminate(worker)
            rig.fault_ended()
            await rig.feeder.send(rig.feeder.workload.race(rig.now_ms()))
            await rig.feeder.steps_more(rig.random.randint(0, 10))


def crash(name: str, down_steps: int = 20) -> Fault:
    """kill -9 of a server, which comes back with its data after a while."""

    async def fault(rig: Rig) -> None:
        service = rig.service(name)
        await rig.feeder.steps_more(rig.random.randint(1, 10))
        service.kill()
        await asyncio.sleep(down_steps * 0.1)  # the feeder may stand still meanwhile
        await rig.restart(service)
        if name == "redis":
            await redis_losses.until_ended(rig)

    return fault


def stall(name: str, seconds: float, *, anew: bool = False) -> Fault:
    """SIGSTOP of a server for a while: it takes connections and never answers. `anew`: it is started again then."""

    async def fault(rig: Rig) -> None:
        service = rig.service(name)
        await rig.feeder.send([rig.feeder.workload.request() for _ in range(500)])
        await rig.until(lambda: any(map(busy, rig.workers.of("recall"))), BUSY_WITHIN_S, "no answer is in hand")
        _signal(service, signal.SIGSTOP)
        await asyncio.sleep(seconds)
        if anew:
            service.kill()
            await rig.restart(service)
        else:
            _signal(service, signal.SIGCONT)

    return fault


async def stall_and_kill(rig: Rig) -> None:
    """Redis stalls, and the activity workers are killed with what they have in hand."""
    redis = rig.service("redis")
    await rig.working("activity")
    _signal(redis, signal.SIGSTOP)
    workers = rig.workers.of("activity")
    await rig.in_hand(workers)  # where it stays
    await rig.feeder.steps_more(25)  # long enough for a commit meanwhile
    for worker in workers:
        rig.workers.kill(worker)
        rig.workers.start("activity")
    _signal(redis, signal.SIGCONT)


def _signal(service: Service, number: signal.Signals) -> None:
    assert service.process is not None
    os.kill(service.process.pid, number)


FAULTS: dict[str, Fault] = {
    "quiet": quiet,
    **{f"kill_{kind}": kill(kind) for kind in AGENT_KINDS},
    **{f"terminate_{kind}": terminate(kind) for kind in AGENT_KINDS},
    **{f"freeze_{kind}": freeze(kind) for kind in AGENT_KINDS},
    "storm": storm,
    "redis_kill": crash("redis"),
    "redis_tail_lost": redis_losses.tail_lost,
    "redis_failover": redis_losses.failover,
    "kafka_kill": crash("kafka"),
    "milvus_kill": crash("milvus"),
    "redis_stall": stall("redis", 5.0),
    "redis_stall_and_kill": stall_and_kill,
    "kafka_stall": stall("kafka", 8.0),
    "milvus_stall": stall("milvus", 4.0, anew=True),  # it may end by itself when it finds that it was away
    **KAFKA_FAULTS,
    **BACKEND_FAULTS,
    **TOWER_FAULTS,
}
SHORT = tuple(name for name in FAULTS if name != "quiet")
TOGETHER = [  # on different workers, which do not know of each other
    {f"{name}_{kind}" for kind in AGENT_KINDS} for name in ("kill", "terminate", "freeze", "letters_paused")
]


def grouped(names: Sequence[str], chance: random.Random) -> list[tuple[str, ...]]:
    """All of these in an order made from the seed; those that may come together do.

    A topic is made anew only once Redis was emptied: what the old one held could not come back afterwards.
    """
    groups = [tuple(name for name in names if name in together) for together in TOGETHER]
    groups += [(name,) for name in names if not any(name in together for together in TOGETHER)]
    found = [group for group in groups if group]
    order = chance.sample(found, len(found))
    if (emptied := ("redis_emptied",)) in order and (anew := ("topic_recreated",)) in order:
        places = sorted((order.index(emptied), order.index(anew)))
        order[places[0]], order[places[1]] = emptied, anew
    return order
