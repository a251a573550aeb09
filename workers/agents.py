"""The three agents: take a batch, decode it, run the pipeline, publish, acknowledge. Glue only.

`batch.done(...)` is the one line after which offsets may be committed; before it every effect is confirmed.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import msgspec
import structlog

from schemas import codec
from schemas.codec import DecodeError, ErrorCode
from schemas.recall import REPLY_PARTITION, CandidateList, Reason, Status
from workers.dependencies import Dependencies
from workers.engine import serve
from workers.errors import InvalidInput
from workers.giving_up import Gate, GivingUp, Problem
from workers.inflight import Batch, Record
from workers.intake import Entry, Intake
from workers.metrics import Metrics
from workers.outbox import Outbox
from workers.pipelines.admission import Incoming, by_time_left, without_items
from workers.pipelines.opening import Answers
from workers.pipelines.popular_counts import Spans
from workers.ports import Clock, UserTable
from workers.publisher import Outgoing, Publisher, header_bytes, record_bytes
from workers.retry import until_done
from workers.runners import Runners
from workers.settings import AgentKind, Settings
from workers.stopwatch import Stopwatch
from workers.transport import batch_topic
from workers.waiting import WaitingPolicy, WaitingRoom

MAX_COPIED_HEADERS_BYTES = 4096
REQUEST_ID = "request_id"
MAX_READ_ON = 262_144  # requests while dead letters are paused: none of them can be committed
MAX_DIGITS = 9  # of a partition's number; Python refuses to read numbers of thousands of digits

E = TypeVar("E")


class BatchResult(Protocol):
    """What a pipeline says of a batch: per event None or why it is a dead letter, and counts by outcome."""

    errors: list[InvalidInput | None]
    outcomes: dict[str, int]


class Context:
    """What all agents of a worker share: where to publish, what to count, what time it is."""

    def __init__(
        self,
        kind: AgentKind,
        settings: Settings,
        publisher: Publisher,
        metrics: Metrics,
        dependencies: Dependencies,
        clock: Clock,
    ) -> None:
        self.kind = kind
        self.settings = settings
        self.metrics = metrics
        self.dependencies = dependencies
        self.clock = clock
        self.outbox = Outbox(publisher, dependencies)
        dead_letters = partial(self.outbox.send, settings.topic("recall-dead-letters"))
        self.giving_up = GivingUp(kind, settings, dead_letters, metrics, dependencies, clock)

    def observe(self, step: str, elapsed_ms: float) -> None:
        """Take in the time of one step."""
        self.metrics.step_ms.labels(self.kind, step).observe(elapsed_ms)

    def count_batch(self, records: int, started: float) -> None:
        """Count a finished batch."""
        self.metrics.batch_records.labels(self.kind).observe(records)
        self.metrics.batch_ms.labels(self.kind).observe((time.perf_counter() - started) * 1000)

    def count_events(self, outcomes: dict[str, int]) -> None:
        """Count events by what came of them."""
        for outcome, events in outcomes.items():
            self.metrics.events.labels(self.kind, outcome).inc(events)


class EventAgent(Generic[E]):
    """user-activity -> user table, and item-updates -> index and item table: events that ask for no answer."""

    def __init__(
        self, context: Context, decode: Callable[[Any], E], run: Callable[[Sequence[E], Spans], Awaitable[BatchResult]]
    ) -> None:
        """`run` is told which offsets of each partition the batch covers: what could not be decoded is part of it."""
        self._context = context
        self._decode = decode
        self._run = run
        self.gate = Gate(context.giving_up, context.outbox)

    async def handle(self, batch: Batch) -> None:
        """One batch, all of it."""
        context, started = self._context, time.perf_counter()
        name_place(batch)
        watch = Stopwatch(context.observe)
        problems: list[tuple[Any, Problem]] = []
        records: list[Any] = []
        events: list[E] = []
        for record in batch.records:
            try:
                events.append(self._decode(record))
                records.append(record)
            except DecodeError as error:
                problems.append((record, error))
        watch.lap_ms("decode")
        spans = {partition: span for (_, partition), span in batch.spans.items()}
        try:
            result = await until_done(lambda: self._unless_over(batch, events, spans), context.dependencies)
        except _OverError:
            return
        problems += [(r, error) for r, error in zip(records, result.errors, strict=True) if error is not None]
        held = await context.giving_up.write(batch, [each for each in problems if not batch.repeats(each[0])])
        batch.done(settles_in_ms=context.settings.redis_durability_ms)
        context.count_events(result.outcomes)
        context.count_batch(len(batch.records), started)
        batch.keep(batch.records[:1])  # a letter that waits keeps no poll in memory
        await context.giving_up.write_later(batch, held)

    async def _unless_over(self, batch: Batch, events: Sequence[E], spans: Spans) -> BatchResult:
        if batch.over:  # who has its partitions now does it, and it would keep its records until then
            raise _OverError
        return await self._run(events, spans)


class _OverError(Exception):
    """The batch is not to be tried again."""


class RecallAgent:
    """recall-requests -> recall-candidates.

    A request is read, waits for its event if it names one, waits for its turn, and is answered in a batch.
    """

    def __init__(
        self,
        context: Context,
        pipeline: Answers,
        reply_partitions: Callable[[], int],
        users: Callable[[], UserTable | None] = lambda: None,
    ) -> None:
        self._context = context
        self._pipeline = pipeline
        self._reply_partitions = reply_partitions
        self.backlog = Intake(context.clock)
        self.gate = Gate(context.giving_up, context.outbox, self.backlog, MAX_READ_ON)
        self._runners = Runners(self.backlog, self._answer, self._refuse)
        self._room = WaitingRoom(
            WaitingPolicy(context.settings.wait_for_event_ms),
            users,
            self._runners,
            context.clock,
            context.dependencies,
            context.metrics.event_waits,
        )

    async def handle(self, batch: Batch) -> None:
        """Take in what one poll brought; whatever cannot be read is answered, or is a dead letter, here.

        While dead letters are paused, requests that can be read are answered all the same.
        """
        context = self._context
        name_place(batch)
        self.gate.took(batch)
        rejections: list[tuple[Batch, Any, CandidateList]] = []
        problems: list[tuple[Any, Problem]] = []
        size = self.backlog.policy.max_batch
        for start in range(0, len(batch.records), size):
            for record, error in self._take_in(batch, batch.records[start : start + size]):
                rejection = self._rejection(record, error)
                if rejection is None:
                    problems.append((record, error))
                else:
                    rejections.append((batch, record, rejection))
            await asyncio.sleep(0)  # the first are worked on while the others are read
        await self._publish(rejections)
        for _, record, _ in rejections:
            batch.hold(record)  # whose answer is not out yet
        held = await context.giving_up.write(batch, problems)
        batch.done()
        context.count_events({"unreadable": len(problems)})
        batch.keep([record for record, _ in held] or batch.records[:1])  # one that waits keeps no poll in memory
        del rejections, problems  # which this frame would hold as long
        await context.giving_up.write_later(batch, held)

    def _take_in(self, batch: Batch, records: Sequence[Any]) -> list[tuple[Any, DecodeError]]:
        """Read some requests and let them wait; those that cannot be read."""
        watch = Stopwatch(self._context.observe)
        problems: list[tuple[Any, DecodeError]] = []
        ready: list[Entry] = []
        after_events: list[Entry] = []
        for record in records:
            try:
                incoming = Incoming(codec.decode_request(record.value), record.timestamp)
            except DecodeError as error:
                problems.append((record, error))
                continue
            batch.hold(record)
            waits = incoming.request.after_event_id is not None
            (after_events if waits else ready).append(Entry(record, batch, incoming, record_bytes(record)))
        watch.lap_ms("decode")
        if after_events:
            self._room.enter(after_events)
        self._runners.put(ready)
        return problems

    async def _answer(self, entries: Sequence[Entry]) -> None:
        """One batch, all of it. Who has little time is neither held back by the others nor cuts them short."""
        started = time.perf_counter()
        name_record(entries[0].record)
        groups = by_time_left([entry.incoming for entry in entries], self._context.clock.now_ms())
        await asyncio.gather(*(self._answer_together([entries[n] for n in group]) for group in groups))
        self._context.count_batch(len(entries), started)

    async def _answer_together(self, entries: Sequence[Entry]) -> None:
        answers = await self._pipeline.run([entry.incoming for entry in entries])
        watch = Stopwatch(self._context.observe)
        await self._finish(entries, answers)
        watch.lap_ms("publish")

    async def _refuse(self, entries: Sequence[Entry]) -> None:
        """Requests that the intake has shed."""
        now_ms = self._context.clock.now_ms()
        await self._finish(entries, [_refusal(entry.incoming, now_ms) for entry in entries])

    async def _finish(self, entries: Sequence[Entry], answers: Sequence[CandidateList]) -> None:
        await self._publish([(entry.batch, entry.record, a) for entry, a in zip(entries, answers, strict=True)])

    def _count(self, answers: Sequence[CandidateList]) -> None:
        metrics = self._context.metrics
        said = Counter((answer.status, answer.reasons[0] if answer.reasons else "none") for answer in answers)
        for (status, reason), count in said.items():
            metrics.answers.labels(status, reason).inc(count)
        for answer in answers:
            if answer.feature_age_ms is not None:
                metrics.feature_age_ms.observe(answer.feature_age_ms)
        self._context.count_events({"answered": len(answers)})

    def _rejection(self, record: Any, error: DecodeError) -> CandidateList | None:
        """The answer to a request that cannot be done but names itself and its user; None when it does not."""
        identity = codec.identify_request(record.value)
        if identity is None:
            return None
        in_filter = (error.field or "").startswith("filter")
        reason = Reason.INVALID_FILTER if in_filter else Reason.INVALID_REQUEST
        return CandidateList(
            request_id=identity[0],
            user_id=identity[1],
            scene="default",
            status=Status.REJECTED,
            timestamp_ms=self._context.clock.now_ms(),
            reasons=[str(reason)],
            error_field=error.field,
        )

    async def _publish(self, answers: Sequence[tuple[Batch, Any, CandidateList]]) -> None:
        """Publish answers and finish each request when its own is acknowledged, which may be after this returns."""
        # An answer that has to wait is kept as its message; without its lists beside it.
        left = {n: (batch, record, _listless(answer)) for n, (batch, record, answer) in enumerate(answers)}

        def told(positions: Sequence[int], acknowledged: bool) -> None:
            some = [left.pop(position) for position in positions]
            if not acknowledged:
                for each in some:
                    self._runners.spawn(self._shorten(*each))
                return
            for batch, record, _ in some:
                batch.done(record)
            self._count([answer for _, _, answer in some])

        topic = self._context.settings.topic("recall-candidates")
        await self._context.outbox.send(topic, [self._message(record, answer) for _, record, answer in answers], told)
        for batch, record, _ in left.values():
            batch.owe(record)

    async def _shorten(self, batch: Batch, record: Any, answer: CandidateList) -> None:
        """An answer that is too large is sent without its list, and its request is a dead letter."""
        context, short = self._context, _without_list(answer)
        batch.owe(record)  # it is tried for as long as it takes
        await context.outbox.send_all(context.settings.topic("recall-candidates"), [self._message(record, short)])
        self._count([short])
        line = f"the answer is larger than {codec.MAX_VALUE_BYTES} bytes"
        await context.giving_up.write_or_leave_out(batch, record, InvalidInput(ErrorCode.ANSWER_TOO_LARGE, line))

    def _message(self, record: Any, answer: CandidateList) -> Outgoing:
        """An answer as message: the request's headers (4 KiB of them) and its id; to the partition it asked for."""
        headers: list[tuple[str, bytes]] = []
        left_bytes = MAX_COPIED_HEADERS_BYTES
        count = self._reply_partitions()
        partition = record.partition % count
        for name, value in record.headers:
            size_bytes = header_bytes(name, value)
            if name == REPLY_PARTITION:
                partition = _reply_partition(value, count, partition)
            if size_bytes <= left_bytes and name != REQUEST_ID:  # one that is too large keeps out no other
                headers.append((name, value))
                left_bytes -= size_bytes
        headers.append((REQUEST_ID, answer.request_id.encode()))
        value = codec.encode_candidates(answer)
        return Outgoing(answer.user_id.encode(), value, tuple(headers), partition, record_bytes(record))


def _reply_partition(value: bytes | None, partitions: int, otherwise: int) -> int:
    """The partition that a header names; `otherwise` when it names none that exists."""
    digits = value or b""
    asked = int(digits) if digits.isdigit() and len(digits) <= MAX_DIGITS else partitions
    return asked if asked < partitions else otherwise


def _refusal(incoming: Incoming, now_ms: int) -> CandidateList:
    """The answer to a request that cannot be in time: too late already, or only if it were tried."""
    if now_ms >= incoming.deadline_ms:
        return without_items(incoming, now_ms, Status.EXPIRED, Reason.DEADLINE_EXCEEDED, None)
    return without_items(incoming, now_ms, Status.REJECTED, Reason.OVERLOADED, None)


def _listless(answer: CandidateList) -> CandidateList:
    return msgspec.structs.replace(answer, item_ids=[], scores=[], sources=[])


def _without_list(answer: CandidateList) -> CandidateList:
    return CandidateList(
        request_id=answer.request_id,
        user_id=answer.user_id,
        scene=answer.scene,
        status=Status.REJECTED,
        timestamp_ms=answer.timestamp_ms,
        reasons=[str(Reason.ANSWER_TOO_LARGE)],
        error_field="k",
        model_version=answer.model_version,
        collection=answer.collection,
    )


def name_place(batch: Batch) -> None:
    """Let every log line of this batch's task say where it stands: topic, partition and offset of its first record."""
    name_record(batch.records[0])


def name_record(record: Record) -> None:
    """The same for work on records of several batches, of which this is the first."""
    structlog.contextvars.bind_contextvars(topic=record.topic, partition=record.partition, offset=record.offset)


def attach(app: Any, topic: str, agent: EventAgent[Any] | RecallAgent) -> None:
    """Make the app's agent: every batch of the topic goes through `agent.handle`."""

    async def run(stream: Any) -> None:
        await serve(stream, agent.handle, agent.gate)

    app.agent(batch_topic(app, topic), name=topic)(run)
