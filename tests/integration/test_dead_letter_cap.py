"""The cap of dead letters on a real broker: what a worker does at it, and what a resume does."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiokafka import TopicPartition

from schemas import codec
from schemas.codec import DecodeError, ErrorCode
from schemas.recall import CandidateList, RecallRequest, Status
from workers import topics
from workers.agents import Context, EventAgent, RecallAgent, attach
from workers.client import RecallClient
from workers.clock import SystemClock
from workers.dead_letter_topic import read_dead_letters
from workers.dependencies import Dependencies
from workers.errors import InvalidInput
from workers.index.opening import Indexes
from workers.inflight import BatchPolicy
from workers.kafka_client import admin_client, connected, produce
from workers.metrics import Metrics
from workers.pause import send_resume
from workers.pipelines.admission import Incoming
from workers.publisher import Publisher
from workers.settings import AgentKind, Settings
from workers.transport import create_app
from workers.worker import Worker as Whole

CAP = 5
WITHIN_S = 60.0
GOOD, BAD = b"good", b"bad"
KINDS: dict[AgentKind, tuple[str, str]] = {
    "activity": ("user-activity", "recall-activity"),
    "recall": ("recall-requests", "recall-requests"),
}


@dataclass
class Result:
    errors: list[InvalidInput | None]
    outcomes: dict[str, int] = field(default_factory=dict)


class Worker:
    """The engine with the agent of one kind, whose pipelines do nothing but count."""

    def __init__(self, kind: AgentKind, settings: Settings) -> None:
        self.topic, self.group = settings.topic(KINDS[kind][0]), settings.group(KINDS[kind][1])
        self.settings = settings
        self.taken: list[bytes] = []
        self.app = create_app(self.group, settings, BatchPolicy(max_batch=1024, in_flight=1))
        metrics = Metrics()
        publisher = Publisher(self.app, settings.publish_timeout_ms)
        self.metrics = metrics
        self.context = Context(kind, settings, publisher, metrics, Dependencies(kind, metrics), SystemClock())
        self.pause = self.context.giving_up.pause
        agent: Any = EventAgent(self.context, self._decode, self._count)
        if kind == "recall":
            agent = RecallAgent(self.context, self, lambda: settings.partitions)
        attach(self.app, self.topic, agent)

    def _decode(self, record: Any) -> Any:
        self.taken.append(record.value)
        if record.value.startswith(BAD):
            raise DecodeError(ErrorCode.NOT_JSON, "bad")
        return record

    async def _count(self, events: Sequence[Any], spans: Any) -> Result:
        return Result([None] * len(events))

    async def run(self, batch: Sequence[Incoming]) -> list[CandidateList]:
        """What a recall pipeline does: one answer each."""
        return [
            CandidateList(
                request_id=incoming.request.request_id,
                user_id=incoming.request.user_id,
                scene="default",
                status=Status.OK,
                timestamp_ms=0,
            )
            for incoming in batch
        ]

    async def committed(self) -> int:
        """Of all partitions together."""
        admin = admin_client(self.settings)
        async with connected(self.settings, admin):
            places = [TopicPartition(self.topic, n) for n in range(self.settings.partitions)]
            found = await admin.list_consumer_group_offsets(self.group, partitions=places)
        return sum(max(0, entry.offset) for entry in found.values())


@asynccontextmanager
async def running(kind: AgentKind, settings: Settings) -> AsyncIterator[Worker]:
    worker = Worker(kind, settings)
    await worker.app.start()
    try:
        yield worker
    finally:
        await worker.app.stop()
        await worker.pause.close()


@pytest.fixture
async def capped(settings: Settings, tmp_path: Path) -> Settings:
    """One partition, so that there is one order."""
    capped = settings.model_copy(update={"data_dir": tmp_path, "partitions": 1, "dead_letters_per_minute": CAP})
    await topics.apply(capped)
    return capped


async def send(settings: Settings, values: Sequence[bytes], topic: str = "user-activity") -> None:
    await produce(settings, settings.topic(topic), [(b"k", value, ()) for value in values])


async def until(what: str, true: Callable[[], Awaitable[bool]]) -> None:
    end_s = time.monotonic() + WITHIN_S
    while not await true():
        assert time.monotonic() < end_s, what
        await asyncio.sleep(0.05)


async def until_paused(worker: Worker) -> str:
    """Wait until a resume would be heard; the line of /readyz."""

    async def paused() -> bool:
        return worker.pause.missing() is not None

    await until("it pauses", paused)
    return worker.pause.missing() or ""


async def until_committed(worker: Worker, offset: int) -> None:
    async def committed() -> bool:
        return await worker.committed() == offset

    await until(f"offset {offset} is committed", committed)


async def letters(settings: Settings) -> list[int]:
    """Offsets of the events that have one."""
    return sorted(letter.offset for letter in await read_dead_letters(settings))


def gauge(worker: Worker, kind: AgentKind) -> float | None:
    return worker.metrics.registry.get_sample_value("recall_dead_letters_paused", {"kind": kind})


async def test_at_the_cap_it_pauses_until_it_is_told_to_go_on(capped: Settings) -> None:
    await send_resume(capped, 1)  # before the pause: it says nothing about it
    await send(capped, [GOOD, *[BAD] * 8, GOOD])
    async with running("activity", capped) as worker:
        line = await until_paused(worker)
        assert line.startswith("`recall dead-letters resume`: over 5 dead letters in a minute, now not_json (for ")
        assert gauge(worker, "activity") == 1
        await until_committed(worker, 6)
        assert await letters(capped) == [1, 2, 3, 4, 5]

        taken = len(worker.taken)
        await send(capped, [GOOD] * 3)
        polled_s = worker.app.consumer.last_poll
        assert not worker.app.consumer.wants_poll()

        async def turned() -> bool:
            return bool(worker.app.consumer.last_poll > polled_s + 2)

        await until("the poll loop turns on", turned)
        assert len(worker.taken) == taken, "nothing more is taken"
        assert await worker.committed() == 6

        await send_resume(capped, 2)
        await until_committed(worker, 13)
        assert (worker.pause.missing(), gauge(worker, "activity")) == (None, 0)
        assert await letters(capped) == [1, 2, 3, 4, 5, 6, 7, 8], "each of them once"
        assert len(worker.taken) == 13


async def test_the_watchdog_leaves_a_paused_worker_alone(capped: Settings) -> None:
    await send(capped, [BAD] * 8)
    async with running("activity", capped) as worker, AsyncExitStack() as opened:
        await until_paused(worker)
        impatient = capped.model_copy(update={"stuck_after_ms": 100})
        known = (impatient, worker.metrics, worker.context.dependencies, opened, Indexes(impatient, opened))
        whole = Whole("activity", *known, app=worker.app)

        async def complaints() -> set[str]:
            """Of three looks, between which the poll loop turns."""
            watched = whole.watched()
            found = set()
            for _ in range(3):
                turns = worker.app.consumer.turns

                async def turned(before: int = turns) -> bool:
                    return bool(worker.app.consumer.turns > before)

                found |= {line for line in (each.stuck() for each in watched) if line}
                await until("the poll loop turns", turned)
            return found

        assert await complaints() == {"activity: the same batch has been in hand for 1 s"}
        whole.paused = worker.pause.missing
        assert await complaints() == set()


async def test_what_was_held_beyond_the_cap_pauses_it_again(capped: Settings) -> None:
    await send(capped, [BAD] * 12)
    async with running("activity", capped) as worker:
        for written in (5, 10):
            await until_paused(worker)
            await until_committed(worker, written)
            assert await letters(capped) == list(range(written))
            await send_resume(capped, written)

            async def gone(before: int = written) -> bool:
                return len(await letters(capped)) > before

            await until("more letters are written", gone)
        await until_committed(worker, 12)
        assert await letters(capped) == list(range(12))


async def test_a_stop_does_not_wait_for_what_is_held_nor_commits_past_it(capped: Settings) -> None:
    await send(capped, [GOOD, *[BAD] * 8, GOOD])
    async with running("activity", capped) as worker:
        await until_paused(worker)
        with structlog.testing.capture_logs() as said:
            await worker.app.stop()
        assert "stopped before all batches were done" not in [line["event"] for line in said]
        assert await worker.committed() == 6
    async with running("activity", capped.model_copy(update={"dead_letters_per_minute": 0})) as after:
        await until_committed(after, 10)
    assert await letters(capped) == [1, 2, 3, 4, 5, 6, 7, 8]


async def test_a_rebalance_leaves_what_is_held_to_others(capped: Settings) -> None:
    await send(capped, [BAD] * 8)
    free = capped.model_copy(update={"dead_letters_per_minute": 0})
    async with running("activity", capped) as worker:
        await until_paused(worker)
        await worker.app.consumer.on_partitions_revoked(worker.app.consumer.assignment())
        await send_resume(capped, 1)

        async def over() -> bool:
            return not worker.pause.on

        await until("the pause is over", over)
    assert await letters(capped) == list(range(5)), "they are not this worker's any more"
    async with running("activity", free) as after:
        await until_committed(after, 8)
    assert await letters(capped) == list(range(8))


async def test_requests_that_can_be_read_are_answered_during_the_pause(capped: Settings) -> None:
    await send(capped, [b"unreadable"] * 8, "recall-requests")
    async with running("recall", capped) as worker, RecallClient(capped) as client:
        await until_paused(worker)
        for n in range(3):
            answer = await client.ask(RecallRequest(request_id=f"r{n}", user_id="u", timeout_ms=30_000))
            assert answer.status == "ok"
        refused = await client.ask_raw(
            "bad", codec.encode_event(RecallRequest(request_id="bad", user_id="u", k=1))[:-2] + b"-1}"
        )
        assert refused.status == "rejected"
        await until_committed(worker, 5)
        assert await letters(capped) == list(range(5))
        await send_resume(capped, 1)
        await until_committed(worker, 12)
        assert await letters(capped) == list(range(8))


async def test_one_resume_is_for_all(capped: Settings) -> None:
    await send(capped, [BAD] * 6)
    await send(capped, [b"unreadable"] * 6, "recall-requests")
    async with running("activity", capped) as activity, running("recall", capped) as recall:
        await until_paused(activity)
        await until_paused(recall)
        await send_resume(capped, 1)
        await until_committed(activity, 6)
        await until_committed(recall, 6)
