"""The batch transport: Faust's app, agents, rebalances and commits, with batches in place of single messages.

One poll is one merged, cut set of batches over all partitions; the next poll waits until a slot is free and no batch
waits, so that batches grow with load by themselves. An agent with a backlog of its own has a say in it too. Offsets are
committed as the longest finished prefix.

Only this, positions.py and liveness.py touch what Faust is made of; tests/contract/test_engine_internals.py names it.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import aiokafka
import faust
import structlog
import uvloop
from faust.transport import drivers
from faust.transport.drivers import aiokafka as driver
from faust.types.tuples import ConsumerMessage

from workers import coordinator, kafka_patches
from workers.ending import end_process
from workers.errors import DependencyError
from workers.inflight import Backlog, BatchPolicy, InFlight
from workers.kafka_client import READ_COMMITTED
from workers.kafka_login import login
from workers.positions import Positions, say_made_anew
from workers.refill import Refill
from workers.settings import Settings

log = structlog.get_logger()

SCHEME = "recall"
POLL_S = 1.0
OWED_WITHIN_S = 1.0  # a group waits for every drain, and a partition without a leader may take nothing for minutes
STOP_WITHIN_S = 7.0
COMMIT_WITHIN_S = 3.0
ASK_WITHIN_S = 1.0  # before a commit, and for a rebalance before the end
SESSION_TIMEOUT_S = 10.0
FETCH_WAIT_MS = 200  # the broker holds a fetch for so long, and what follows it on the connection: asking for offsets
METADATA_AGE_S = 10.0  # so late a worker learns of partitions that were added
NEVER_S = 10 * 365 * 86_400.0
PRODUCER_STOPS_WITHIN_S = 1.0
MAX_REQUEST_BYTES = 1_090_000  # what a topic of ours takes, less a record batch's own overhead


class _ConsumerThread(driver.AIOKafkaConsumerThread):
    """The thread that fetches and sends heartbeats."""

    def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:
        """Faust's consumer, but for two things.

        A wait that Faust fixes at 1.5 s: an idle partition would be assigned in 5 s. And what a producer's transaction
        has not committed is not read.
        """
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        consumer._isolation_level = READ_COMMITTED
        return consumer

    async def _commit(self, offsets: Mapping[Any, int]) -> bool:
        """Bounded: aiokafka tries without end, also for a partition that is gone, and a rebalance would wait for it."""
        try:
            async with asyncio.timeout(COMMIT_WITHIN_S):
                return bool(await super()._commit(offsets))
        except TimeoutError:
            return False


class Consumer(driver.Consumer):
    """Faust's consumer, delivering whole batches and committing finished prefixes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.policy: BatchPolicy = self.app.recall_policy
        self.wake = asyncio.Event()
        self.flight = self._new_flight()
        self.backlog: Backlog | None = None
        self.last_poll = time.monotonic()
        self.turns = 0
        self.positions = Positions(self, self.app.recall_refill)
        self._refused = False  # the last commit, by `may_commit`
        self._resumed = False  # since the last assignment
        self._drained = asyncio.Event()  # the process is ending, and what it had in hand is done and committed
        self._rebalanced = asyncio.Event()  # no rebalance is under way that began since the process is ending
        self._rebalanced.set()

    def _new_flight(self) -> InFlight:
        return InFlight(self.policy, self.wake.set)

    def wants_poll(self) -> bool:
        """Whether it is time for the next poll, to the batches in flight and to the agent's own backlog."""
        return self.flight.wants_poll() and (self.backlog is None or self.backlog.wants_poll())

    def _new_consumer_thread(self) -> _ConsumerThread:
        """Its loop is as fast as the main one."""
        loop = uvloop.new_event_loop()
        thread = _ConsumerThread(self, loop=self.loop, thread_loop=loop, beacon=self.beacon)
        thread._close_thread_loop_on_stop = True
        return thread

    async def _drain_messages(self, fetcher: Any) -> None:
        """Poll, cut and deliver until stopped. Replaces Faust's loop over single messages."""
        try:
            while not (self.should_stop or fetcher.should_stop):
                self.last_poll = time.monotonic()
                self.turns += 1
                if not self._resumed:
                    await asyncio.sleep(0.01)
                    continue
                if await self.positions.settle() and self.wants_poll() and not fetcher.should_stop:
                    await self._poll()  # which waits while Faust has stopped the flow, as it does before it stops this
                await self._deliver()
        except self.consumer_stopped_errors:
            if not self.app.should_stop:
                raise
        except asyncio.CancelledError:
            if not self.app.should_stop:
                raise

    async def _poll(self) -> None:
        flight = self.flight
        records, _ = await self._wait_next_records(POLL_S)
        if not records or self.should_stop:
            await asyncio.sleep(0)
            return
        if not self.flow_active or flight is not self.flight:
            # A rebalance began, or came and went, meanwhile. What was fetched may have been fetched after its seek, so
            # positions are put back to what is committed; nothing of this assignment has been delivered yet.
            self.positions.put_back()
            return
        polled, starts = {}, {}
        for partition, fetched in records.items():
            if not self.positions.may_deliver(partition):
                continue
            expected = self._read_offset[partition]
            if expected is not None and fetched[0].offset < expected:  # only a reset leads back within an assignment
                say_made_anew(partition, expected)
                end_process()  # what is in hand has offsets of another log; an assignment begins where it must
            polled[partition] = fetched
            starts[partition.topic, partition.partition] = fetched[0].offset if expected is None else expected
            self._read_offset[partition] = fetched[-1].offset + 1
        flight.add(polled, starts)

    async def seek_to_committed(self) -> Mapping[Any, int | None]:
        """Faust is to seek to nothing: the next poll waits until positions are where they must be."""
        self.positions.put_back()
        return {}

    async def _deliver(self) -> None:
        """Hand waiting batches to the agent while slots are free; wait for a slot when there is none."""
        while (batch := self.flight.take()) is not None:
            first: Any = batch.records[0]
            partition = self._new_topicpartition(first.topic, first.partition)
            message = ConsumerMessage(
                first.topic, first.partition, first.offset, first.timestamp / 1000, first.timestamp_type, (), None,
                batch, None, 0, 0, partition, generation_id=self.app.consumer_generation_id,
            )  # fmt: skip
            await self.callback(message)
        if not self.wants_poll() and not self.should_stop:
            self.wake.clear()
            if not self.wants_poll():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.wake.wait(), 0.05)

    def _filter_committable_offsets(self, tps: Any) -> dict[Any, int]:  # noqa: ARG002  # Faust's own bookkeeping
        return {self._new_topicpartition(*partition): offset for partition, offset in self.flight.committable().items()}

    async def _commit_offsets(self, offsets: Mapping[Any, int], start_new_transaction: bool = True) -> bool:
        flight = self.flight
        self._refused = not await self._may_commit()
        if self._refused or flight is not self.flight:
            return False
        done: bool = await super()._commit_offsets(offsets, start_new_transaction=start_new_transaction)
        if done:
            flight.confirm({(tp.topic, tp.partition): offset for tp, offset in offsets.items()})
        return done

    async def _may_commit(self) -> bool:
        """Ask whoever keeps the effects. Without an answer nothing is committed, and it is tried again."""
        try:
            async with asyncio.timeout(ASK_WITHIN_S):
                await self.app.recall_before_commit()
        except (DependencyError, TimeoutError):
            return False
        return True

    async def wait_empty(self) -> None:
        """Let what was started finish and settle, then commit until nothing is left to commit. Bounded."""
        try:
            await self._drain()
        finally:
            if self.app.should_stop:
                self._drained.set()
                with contextlib.suppress(TimeoutError):  # a consumer that is stopped amid a rebalance does not end
                    await asyncio.wait_for(self._rebalanced.wait(), ASK_WITHIN_S)

    async def _drain(self) -> None:
        begun = time.monotonic()
        end = begun + (STOP_WITHIN_S if self.app.should_stop else SESSION_TIMEOUT_S * 0.8)
        self.flight.drop_waiting()
        while self.flight.unfinished(owed=time.monotonic() < begun + OWED_WITHIN_S) and time.monotonic() < end:
            self.wake.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.wake.wait(), 0.05)
        if self.flight.unfinished(owed=False):
            log.warning("stopped before all batches were done", running=self.flight.counts[0])
        await asyncio.sleep(max(0.0, min(self.flight.unsettled_s(), end - time.monotonic())))
        for _ in range(10):
            await self.commit_and_end_transactions()
            if self._refused or not self.flight.committable() or time.monotonic() >= end:
                return

    async def commit_and_end_transactions(self) -> None:
        """Commit now: Faust skips a commit while another one is under way, and the last one must not be skipped."""
        while self._commit_fut is not None:
            await self.maybe_wait_for_commit_to_finish()
            await asyncio.sleep(0)
        await self.commit(start_new_transaction=False)

    async def on_start(self) -> None:
        """Faust's start; from then on the group's coordinator is heard."""
        await super().on_start()
        self.add_future(coordinator.hear(self._of_consumer))

    async def _of_consumer(self, ask: Callable[[Any], Awaitable[bool]]) -> bool:
        """In its thread; True while there is none."""
        consumer = self._thread._consumer
        return consumer is None or bool(await self._thread.call_thread(ask, consumer))

    async def verify_all_partitions_active(self) -> None:
        """Faust judges liveness by single messages, which do not exist here; see liveness.py."""

    async def on_partitions_revoked(self, revoked: Any) -> None:
        """Faust drains and commits through `wait_empty`; afterwards acknowledgements of this assignment are void."""
        self._resumed = False
        if revoked:
            _say("partitions revoked", revoked)
        if self.app.should_stop:
            await self._stay_away(had_some=bool(revoked))  # Faust would close the connection before the last commit
        else:
            await super().on_partitions_revoked(revoked)
        self._renew_flight()

    async def _stay_away(self, *, had_some: bool) -> None:
        """Others join or leave while this process ends: it joins no more, and leaves when the consumer is stopped.

        The group waits for that, so until then no longer than what is in hand takes.
        """
        self._rebalanced.clear()
        reached = partial(self.loop.call_soon_threadsafe, self._rebalanced.set)
        coordinator.stay_away(self._thread._ensure_consumer(), reached)
        if had_some:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._drained.wait(), STOP_WITHIN_S)

    async def leave(self) -> None:
        """Tell the group: who takes over need not wait for the session's end."""
        await self._thread.call_thread(coordinator.leave, self._thread._ensure_consumer())

    def _renew_flight(self) -> None:
        self.flight.end()  # also where nothing was drained, as when the group was lost
        self.flight = self._new_flight()
        self.positions.put_back()

    async def on_partitions_assigned(self, assigned: Any, generation_id: int = 0) -> None:
        """A new assignment starts from the committed offsets."""
        self._resumed = False
        if self.app.should_stop:  # the process is about to leave the group
            return
        self._renew_flight()
        _say("partitions assigned", assigned)
        await super().on_partitions_assigned(assigned, generation_id)

    def resume_flow(self) -> None:
        """The last step of an assignment: positions are at the committed offsets, the agents' queues were emptied.

        Polling waits for it. What is polled earlier, which Faust allows at the first assignment, can be delivered just
        before the queues are emptied: it would be in flight for ever, and its slots with it.
        """
        self._resumed = True
        super().resume_flow()


def _say(event: str, partitions: Any) -> None:
    topics = ",".join(sorted({each.topic for each in partitions}))
    log.info(event, topic=topics, partitions=sorted(each.partition for each in partitions))


class Producer(driver.Producer):
    """Faust's producer, idempotent: a retry inside it cannot write twice."""

    def _settings_extra(self) -> Mapping[str, Any]:
        return {"acks": "all", "enable_idempotence": True}

    def _new_producer(self, transactional_id: str | None = None) -> aiokafka.AIOKafkaProducer:
        """It keeps a record batch for as long as its partition has no leader.

        aiokafka gives it up after a while, and with it a sequence number: what came next would be refused for good.
        """
        producer = super()._new_producer(transactional_id)
        producer._message_accumulator._batch_ttl = math.inf
        return producer

    async def on_stop(self) -> None:
        """Bounded: what a partition without a leader has not taken would be waited for; it is not committed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PRODUCER_STOPS_WITHIN_S):
                await super().on_stop()

    async def flush(self) -> None:
        """Nothing: Faust calls it before each commit, and would wait there for partitions without a leader.

        A record is finished after all that it makes was acknowledged, so nothing that is committed is under way.
        """


class Transport(driver.Transport):
    """The driver behind `recall://`."""

    Consumer = Consumer
    Producer = Producer


class _BatchSchema(faust.Schema[Any, Any]):
    """A message's value is a batch already; nothing is decoded here, so that bad bytes cannot stop a stream."""

    def compile(self, app: Any, **_: Any) -> Any:
        create_event = app.create_event

        async def decode(message: Any, *, propagate: bool = False) -> Any:  # noqa: ARG001  # Faust's signature
            return create_event(None, message.value, None, message)

        return decode


def create_app(group: str, settings: Settings, policy: BatchPolicy, refill: Refill | None = None) -> Any:
    """A Faust app whose id is the consumer group. No web server, no tables, nothing written beside `data_dir`.

    Partitions are read from what is committed, or from where `refill` says.
    """
    kafka_patches.apply()
    drivers.TRANSPORTS.aliases[SCHEME] = f"{__name__}:Transport"
    app = faust.App(
        group,
        broker=f"{SCHEME}://{settings.kafka_bootstrap}",
        broker_credentials=_credentials(settings),
        datadir=str(settings.data_dir / "faust"),
        broker_session_timeout=SESSION_TIMEOUT_S,
        broker_heartbeat_interval=1.0,
        broker_request_timeout=30.0,
        broker_max_poll_interval=NEVER_S,  # else one that waits leaves for good; liveness is judged by progress
        broker_max_poll_records=policy.max_poll_records,
        broker_commit_interval=0.5,
        broker_commit_every=1_000_000,
        producer_acks=-1,
        producer_linger=0.0,
        producer_max_batch_size=262_144,
        producer_max_request_size=MAX_REQUEST_BYTES,
        producer_request_timeout=settings.publish_timeout_ms / 1000,
        consumer_auto_offset_reset="earliest",
        consumer_metadata_max_age_ms=int(METADATA_AGE_S * 1000),
        stream_wait_empty=True,
        topic_disable_leader=True,
        topic_allow_declare=False,
        table_standby_replicas=0,
        web_enabled=False,
        web_bind="127.0.0.1",
    )
    app.recall_policy, app.recall_refill = policy, refill
    app.recall_before_commit = _nothing_to_ask
    return app


def _credentials(settings: Settings) -> faust.SASLCredentials | faust.SSLCredentials | None:
    found = login(settings)
    name, context = found.get("sasl_mechanism"), found.get("ssl_context")
    if name is None:
        return None if context is None else faust.SSLCredentials(context)
    user, password = found["sasl_plain_username"], found["sasl_plain_password"]
    return faust.SASLCredentials(username=user, password=password, ssl_context=context, mechanism=name)


async def _nothing_to_ask() -> None:
    """What is awaited before each commit. Where it raises DependencyError, nothing is committed for now."""


def batch_topic(app: Any, name: str) -> Any:
    """A topic whose events are batches of raw records."""
    return app.topic(name, schema=_BatchSchema(), key_type=None, value_type=None)


def producer_of(app: Any) -> aiokafka.AIOKafkaProducer | None:
    """The producer inside a started app; None once that has stopped it, while it is ending."""
    return app.producer._producer
