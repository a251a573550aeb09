"""Faults of Kafka, of its topics, of clocks, and the cap of dead letters."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.chaos import shifted_clock
from tests.chaos.log import ACTIVITY, INPUTS, REQUESTS
from tests.chaos.processes import ROOT, Worker
from tests.chaos.rig import READY_WITHIN_S, Rig
from workers.kafka_client import admin_client, connected
from workers.local.workers import environment
from workers.settings import AGENT_KINDS, AgentKind

MORE_PARTITIONS = 2
TAKEN_IN_WITHIN_S = 240.0  # a client looks for new partitions every 300 s by itself
HOUR_S = 3600
LETTERS_PER_MINUTE = 200
TOPIC_OF: dict[AgentKind, str] = {"activity": "user-activity", "items": "item-updates", "recall": "recall-requests"}


async def refuses(rig: Rig) -> None:
    """The broker is away for a minute: connections are refused."""
    broker = rig.service("kafka")
    await rig.feeder.steps_more(rig.random.randint(1, 10))
    broker.kill()
    await asyncio.sleep(rig.unreachable_s)
    await rig.restart(broker)


async def silent(rig: Rig) -> None:
    """The broker takes connections and says nothing, for a minute."""
    broker = rig.service("kafka")
    await rig.feeder.steps_more(rig.random.randint(1, 10))
    assert broker.process is not None
    os.kill(broker.process.pid, signal.SIGSTOP)
    await asyncio.sleep(rig.unreachable_s)
    os.kill(broker.process.pid, signal.SIGCONT)


async def topic_recreated(rig: Rig) -> None:
    """Activity and requests are deleted, once taken in, and created again while their workers run."""
    anew = (ACTIVITY, REQUESTS)
    await rig.feeder.steps_more(50)  # so that there are offsets to go back from
    rig.feeder.held |= {*anew}
    await rig.feeder.steps_more(1)
    await rig.feeder.acknowledged()
    await rig.taken_in(anew, TAKEN_IN_WITHIN_S)
    for topic in anew:
        await rig.logs.keep(topic)
    for worker in (*rig.workers.of("activity"), *rig.workers.of("recall")):
        worker.topic_anew = True
    names = [rig.settings.topic(topic) for topic in anew]
    admin = admin_client(rig.settings)
    async with connected(rig.settings, admin):
        await admin.delete_topics(names)

        async def gone() -> bool:
            return not {*names} & {*await admin.list_topics()}

        await rig.until_async(gone, 30.0, "the topics are still there")
    await asyncio.sleep(rig.random.random() * 3)  # somebody may look in between
    await rig.apply_topics(rig.feeder.workload.activity_partitions)
    rig.fault_ended()
    for kind in AGENT_KINDS:
        await rig.working(kind)
    rig.feeder.held.clear()
    await rig.feeder.steps_more(1)  # little, while the new topic could be taken for the old one
    await rig.taken_in(INPUTS, TAKEN_IN_WITHIN_S)
    await rig.feeder.steps_more(10)
    await rig.taken_in(INPUTS, TAKEN_IN_WITHIN_S)


async def partitions_added(rig: Rig) -> None:
    """Every topic but item-updates grows, while users are active whose events come through other partitions then."""
    workload = rig.feeder.workload
    before = workload.moving(rig.now_ms())
    await rig.feeder.send(before)
    await rig.feeder.acknowledged()
    await rig.apply_topics(workload.activity_partitions + MORE_PARTITIONS)
    rig.fault_ended()
    await rig.feeder.knows(ACTIVITY, workload.activity_partitions + MORE_PARTITIONS)
    workload.activity_partitions += MORE_PARTITIONS
    await rig.feeder.send(workload.moved(before, rig.now_ms()))
    await rig.feeder.steps_more(20)
    await rig.taken_in(INPUTS, TAKEN_IN_WITHIN_S)


async def clock_jump(rig: Rig) -> None:
    """The clock of one worker of each kind goes forward by an hour, back by two, and is right again."""
    clock = rig.settings.data_dir / f"{rig.settings.namespace}-clock"
    _set(clock, 0)
    usual = [rig.random.choice(rig.workers.of(kind)) for kind in AGENT_KINDS]
    shifted = [rig.workers.start(kind, [shifted_clock.__name__], chaos_clock=clock) for kind in AGENT_KINDS]
    await _instead(rig, usual, shifted)
    for shift_s in (HOUR_S, -HOUR_S, 0):
        _set(clock, shift_s)
        await rig.feeder.steps_more(rig.random.randint(10, 30))
        await rig.taken_in(INPUTS, TAKEN_IN_WITHIN_S)
    await _instead(rig, shifted, [rig.workers.start(kind) for kind in AGENT_KINDS])


def _set(clock: Path, shift_s: int) -> None:
    """At once for who reads it."""
    new = clock.with_suffix(".new")
    new.write_text(str(shift_s))
    new.replace(clock)


async def _instead(rig: Rig, old: list[Worker], new: list[Worker]) -> None:
    """Let workers go once others are there, which have just been started, and wait until those have all the work."""
    rig.fault_ended()  # where these are the usual ones again
    await rig.until(lambda: all(worker.ready() for worker in new), READY_WITHIN_S, "the new workers are not ready")
    for worker in old:
        rig.workers.terminate(worker)

    def gone() -> bool:
        return all(worker.process.poll() is not None for worker in old)

    await rig.until(gone, READY_WITHIN_S, "workers that were told to end have not ended")
    for kind in {worker.kind for worker in new}:
        partitions = len(await rig.ends(TOPIC_OF[kind]))

        def have_all(kind: AgentKind = kind, partitions: int = partitions) -> bool:
            return partitions == sum(
                worker.gauges().get("recall_assigned_partitions", 0) for worker in rig.workers.of(kind)
            )

        await rig.until(have_all, READY_WITHIN_S, f"{kind} workers do not have all partitions")
        await rig.working(kind)


def letters_paused(kind: AgentKind) -> Callable[[Rig], Awaitable[None]]:
    """More dead letters than the cap allows: the workers pause until they are told to go on.

    To go on is told to workers of all kinds: nobody tells them before all that are meant to have paused.
    """

    async def fault(rig: Rig) -> None:
        rig.to_pause.add(kind)
        usual, topic = rig.workers.of(kind), TOPIC_OF[kind]
        capped = [rig.workers.start(kind, dead_letters_per_minute=LETTERS_PER_MINUTE) for _ in usual]
        await _instead(rig, usual, capped)
        await rig.feeder.send(rig.feeder.workload.rubbish(topic, 3 * LETTERS_PER_MINUTE))
        await rig.feeder.acknowledged()
        sent = await rig.ends(topic)

        def paused() -> bool:
            return all("dead-letters resume" in worker.waits_for() for worker in capped)

        await rig.until(paused, TAKEN_IN_WITHIN_S, "the workers have not paused")
        if not all(worker.live() for worker in capped):
            rig.wrong(f"a paused {kind} worker is not alive")
        await rig.feeder.steps_more(10)
        done = await rig.committed(topic)
        if all(done.get(partition, 0) >= end for partition, end in sent.items()):
            rig.wrong(f"paused {kind} workers have gone on")
        rig.to_pause.discard(kind)
        await rig.until(lambda: not rig.to_pause, TAKEN_IN_WITHIN_S, "workers of another kind have not paused")

        async def through() -> bool:
            await _resume(rig)
            done = await rig.committed(topic)
            return all(done.get(partition, 0) >= end for partition, end in sent.items())

        await rig.until_async(through, TAKEN_IN_WITHIN_S, "what was held is not through")
        await _instead(rig, capped, [rig.workers.start(kind) for _ in usual])

    return fault


async def _resume(rig: Rig) -> None:
    """As an operator does it."""
    env = os.environ | environment(rig.settings) | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "workers.cli.main", "dead-letters", "resume"]
    done = await asyncio.create_subprocess_exec(*command, env=env, stdout=asyncio.subprocess.DEVNULL)
    if await done.wait():
        rig.wrong(f"`recall dead-letters resume` ended with {done.returncode}")


KAFKA_FAULTS: dict[str, Callable[[Rig], Awaitable[None]]] = {
    "kafka_refuses": refuses,
    "kafka_silent": silent,
    "topic_recreated": topic_recreated,
    "partitions_added": partitions_added,
    "clock_jump": clock_jump,
    **{f"letters_paused_{kind}": letters_paused(kind) for kind in AGENT_KINDS},
}
