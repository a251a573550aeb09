"""What the transport relies on in Faust and aiokafka: an upgrade that changes any of it fails here, loudly."""

import asyncio
import inspect
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.cluster import ClusterMetadata
from aiokafka.conn import AIOKafkaConnection
from aiokafka.consumer import fetcher
from aiokafka.consumer.group_coordinator import CoordinatorGroupRebalance, GroupCoordinator
from aiokafka.partitioner import murmur2
from aiokafka.producer.message_accumulator import BatchBuilder, MessageAccumulator
from aiokafka.producer.sender import Sender
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import ConsumerRecord
from faust import App, Schema
from faust.tables.recovery import Recovery
from faust.transport import drivers
from faust.transport.consumer import Consumer as BaseConsumer
from faust.transport.consumer import ThreadDelegateConsumer
from faust.transport.drivers import aiokafka as driver
from faust.types.tuples import ConsumerMessage
from mode.threads import ServiceThread

from workers import engine, transport
from workers.errors import DependencyUnavailable
from workers.inflight import BatchPolicy
from workers.publisher import Publisher, ask_broker, partitions_known
from workers.settings import load_settings
from workers.transport import Consumer, Producer, create_app

CONSUMER_METHODS = {
    "_drain_messages": ["self", "fetcher"],
    "_wait_next_records": ["self", "timeout"],
    "_filter_committable_offsets": ["self", "tps"],
    "_commit_offsets": ["self", "offsets", "start_new_transaction"],
    "perform_seek": ["self"],
    "seek_to_committed": ["self"],
    "resume_flow": ["self"],
    "verify_all_partitions_active": ["self"],
    "wait_empty": ["self"],
    "commit_and_end_transactions": ["self"],
    "maybe_wait_for_commit_to_finish": ["self"],
    "commit": ["self", "topics", "start_new_transaction"],
    "on_partitions_revoked": ["self", "revoked"],
    "on_partitions_assigned": ["self", "assigned", "generation_id"],
    "_new_topicpartition": ["self", "topic", "partition"],
    "assignment": ["self"],
    "highwater": ["self", "tp"],
}


def test_versions_are_the_pinned_ones() -> None:
    assert version("faust-streaming") == "0.15.3"
    assert version("aiokafka") == "0.14.0"


@pytest.mark.parametrize("name", CONSUMER_METHODS)
def test_the_consumers_methods(name: str) -> None:
    assert list(inspect.signature(getattr(driver.Consumer, name)).parameters) == CONSUMER_METHODS[name]


def test_what_we_override_is_what_faust_calls() -> None:
    source = inspect.getsource(BaseConsumer)
    assert "self._filter_committable_offsets(tps)" in source
    assert "await self._commit_offsets(" in source
    assert "await self.wait_empty()" in source, "the drain at stop goes through wait_empty"
    assert "consumer.wait_empty()" in inspect.getsource(App._consumer_wait_empty), "and so does the one at revocation"
    assert "conf.stream_wait_empty" in inspect.getsource(App._consumer_wait_empty)
    assert "_drain_messages" in inspect.getsource(inspect.getmodule(BaseConsumer))


@pytest.mark.parametrize("name", ["_read_offset", "_commit_fut", "callback", "transport", "app", "flow_active"])
def test_the_consumers_attributes(name: str) -> None:
    assert f"self.{name}" in inspect.getsource(BaseConsumer)


def test_resuming_is_the_last_step_of_an_assignment_after_the_queues_are_emptied() -> None:
    source = inspect.getsource(Recovery._resume_streams)
    steps = [source.index(step) for step in ("perform_seek()", "flow_control.resume()", "consumer.resume_flow()")]
    assert steps == sorted(steps)


async def test_an_assignment_ends_with_a_seek_that_waits_for_nothing(tmp_path: Path) -> None:
    """Faust gives it a limit, after which the assignment is given up for good."""
    assert "await self.seek_to_committed()" in inspect.getsource(BaseConsumer.perform_seek)
    assert "timeout=self.app.conf.broker_request_timeout" in inspect.getsource(Recovery._resume_streams)
    consumer: Any = create_app("recall-requests", load_settings(data_dir=tmp_path), BatchPolicy()).consumer
    consumer.positions.placed = True
    await consumer.perform_seek()
    assert not consumer.positions.placed


def test_where_positions_are_asked_for() -> None:
    assert "fetch_committed_offsets([partition])" in inspect.getsource(AIOKafkaConsumer.committed)
    reset = inspect.getsource(AIOKafkaConsumer.seek_to_beginning)
    assert reset.index("self._fetcher.request_offset_reset(") < reset.index("await "), (
        "it stands before it is waited for"
    )
    assert "self._request_timeout_ms" in reset, "and would be waited for as long"
    assert "-1 unavailable, None if unknown" in (ClusterMetadata.leader_for_partition.__doc__ or "")


async def test_no_member_leaves_its_group_for_having_polled_nothing_for_long(tmp_path: Path) -> None:
    """It would never join again, since what it waits for is a poll."""
    assert "idle_time >= self._max_poll_interval" in inspect.getsource(GroupCoordinator.ensure_active_group)
    app = create_app("recall-requests", load_settings(data_dir=tmp_path), BatchPolicy())
    assert app.conf.broker_max_poll_interval > 5 * 365 * 86_400
    joining = inspect.getsource(CoordinatorGroupRebalance.perform_group_join)
    assert "max_poll_interval" not in joining, "no broker has to take such a number"


def test_what_the_coordinator_refuses_waits_for_somebody_to_hear_it() -> None:
    heard = inspect.getsource(GroupCoordinator.check_errors)
    assert "self._error_consumed_fut.set_result(None)" in heard
    assert "raise exc" in heard
    assert "self._coordination_task = create_task(" in inspect.getsource(GroupCoordinator.__init__)
    assert "_coordinator" not in inspect.getsource(driver.AIOKafkaConsumerThread._fetch_records), "a poll hears nothing"


async def test_one_that_is_ending_has_no_producer_to_ask(tmp_path: Path) -> None:
    """Probes go on until the app has stopped, and that closes its producer first."""
    app = create_app("recall-requests", load_settings(data_dir=tmp_path), BatchPolicy())
    source = inspect.getsource(driver.Producer.on_stop)
    assert source.index("self._producer = self._producer, None") < source.index("await producer.stop()")
    begins = SimpleNamespace(_sender=SimpleNamespace(sender_task=None), client=AsyncMock())
    app.producer._producer = begins
    await ask_broker(app)
    assert begins.client.force_metadata_update.await_count == 1, "before it has begun to send"
    app.producer._producer = None
    await ask_broker(app)
    assert partitions_known(app, "t") is None
    with pytest.raises(DependencyUnavailable):
        await Publisher(app, 1000).deliveries("t", [], lambda *_: None)


async def test_a_commit_that_does_not_end_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As aiokafka's does for a partition that is gone; a rebalance would wait for it."""
    assert list(inspect.signature(driver.AIOKafkaConsumerThread._commit).parameters) == ["self", "offsets"]
    monkeypatch.setattr(transport, "COMMIT_WITHIN_S", 0.01)
    monkeypatch.setattr(driver.AIOKafkaConsumerThread, "_commit", lambda *_: asyncio.Event().wait())
    consumer: Any = create_app("recall-requests", load_settings(data_dir=tmp_path), BatchPolicy()).consumer
    async with asyncio.timeout(20):
        assert await consumer._thread._commit({}) is False


async def test_a_start_that_brokers_keep_waiting_ends_when_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "EXIT_AFTER_S", 0.01)
    codes: list[int] = []

    def ends(code: int) -> None:
        codes.append(code)
        raise InterruptedError

    monkeypatch.setattr(engine, "end_process", ends)
    stopping = asyncio.Event()
    stopping.set()
    async with asyncio.timeout(20):
        with pytest.raises(InterruptedError):
            await engine.run_until(SimpleNamespace(start=asyncio.Event().wait), stopping)
    assert codes == [0]


async def test_a_producer_that_stops_does_not_wait_for_a_leader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "PRODUCER_STOPS_WITHIN_S", 0.01)
    producer: Any = create_app("recall-requests", load_settings(data_dir=tmp_path), BatchPolicy()).producer
    producer._producer = SimpleNamespace(stop=asyncio.Event().wait)
    async with asyncio.timeout(20):
        await producer.on_stop()


def test_what_a_fetcher_does_next() -> None:
    source = inspect.getsource(fetcher.Fetcher._get_actions_per_node)
    names = ["fetch_requests", "awaiting_reset", "backoff", "invalid_metadata", "resume_futures"]
    told = source[source.rindex("return (") :]
    assert [told.index(name) for name in names] == sorted(told.index(name) for name in names)


def test_the_fetching_thread_takes_a_loop_and_closes_it() -> None:
    assert "thread_loop" in inspect.signature(ServiceThread.__init__).parameters
    assert "_close_thread_loop_on_stop" in inspect.getsource(inspect.getmodule(ServiceThread))
    assert "self._new_consumer_thread()" in inspect.getsource(ThreadDelegateConsumer)


def test_a_commit_that_failed_is_told() -> None:
    source = inspect.getsource(BaseConsumer._commit_offsets)
    assert "did_commit = await self._commit(committable_offsets)" in source
    assert "return did_commit" in source


def test_messages_topics_and_schemas() -> None:
    names = list(inspect.signature(ConsumerMessage.__init__).parameters)[1:14]
    assert names == [
        "topic", "partition", "offset", "timestamp", "timestamp_type", "headers", "key", "value", "checksum",
        "serialized_key_size", "serialized_value_size", "tp", "time_in",
    ]  # fmt: skip
    assert "generation_id" in inspect.signature(ConsumerMessage.__init__).parameters
    assert "compile" in vars(Schema)
    assert hasattr(drivers.TRANSPORTS, "aliases")


async def test_the_producer(tmp_path: Path) -> None:
    app = create_app("recall-requests", load_settings(data_dir=tmp_path), BatchPolicy())
    producer = app.transport.create_producer()._new_producer()
    assert producer._txn_manager is not None, "it is idempotent"
    assert producer._sender._acks == -1, "all in-sync replicas"
    assert "_settings_extra" in inspect.getsource(driver.Producer._new_producer)
    assert "self._producer" in inspect.getsource(driver.Producer._ensure_producer)
    assert list(inspect.signature(BatchBuilder.append).parameters) == ["self", "timestamp", "key", "value", "headers"]
    parameters = list(inspect.signature(AIOKafkaProducer.send_batch).parameters)
    assert parameters == ["self", "batch", "topic", "partition"]
    assert murmur2(b"21") & 0x7FFFFFFF == 1_173_551_340, "routing by key as every Kafka client does it"


def test_a_commit_waits_for_no_record_batch() -> None:
    assert "await self.app.producer.flush()" in inspect.getsource(BaseConsumer._commit_offsets)
    assert "flush" in vars(Producer), "nothing under way is of what is committed"


async def test_a_record_batch_is_kept_while_its_partition_has_no_leader(tmp_path: Path) -> None:
    assert inspect.getsource(MessageAccumulator).count("self._batch_ttl") == 2, "set and given to each batch"
    given_up = inspect.getsource(MessageAccumulator.drain_by_nodes)
    assert "if self._batches[tp][0].expired():" in given_up, "it would be given up, and its sequence number with it"
    app = create_app("recall-requests", load_settings(data_dir=tmp_path), BatchPolicy())
    producer = app.transport.create_producer()._new_producer()
    batch = producer._message_accumulator._append_batch(producer.create_batch(), TopicPartition("t", 0))
    batch._ctime -= 10**6
    assert not batch.expired()


async def test_a_record_batch_that_may_not_be_added_yet_is_not_added_when_cancelled() -> None:
    accumulator = MessageAccumulator(None, 1000, 0, 30)
    place = TopicPartition("t", 0)
    await accumulator.add_batch(accumulator.create_builder(), place, 30)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await accumulator.add_batch(accumulator.create_builder(), place, 30)
    assert len(accumulator._batches[place]) == 1


def test_the_producers_sender() -> None:
    routine = inspect.getsource(Sender._sender_routine)
    assert "if unknown_leaders_exist:\n" in routine
    assert "fut = self.client.force_metadata_update()" in routine, "asked without a pause, and waited for"
    assert "waiters.add(self._message_accumulator.waiter())" in routine
    assert "message_accumulator" in inspect.signature(inspect.unwrap(Sender.__init__)).parameters
    drained = list(inspect.signature(MessageAccumulator.drain_by_nodes).parameters)
    assert drained == ["self", "ignore_nodes", "muted_partitions"]


def rebalancing(consumer: Any) -> Any:
    """The coordinator of a consumer that is about to join again."""
    coordinator = SimpleNamespace(_closing=asyncio.get_running_loop().create_future())
    consumer._thread._consumer = SimpleNamespace(_coordinator=coordinator)
    return coordinator


async def test_a_worker_without_partitions_that_ends_waits_for_nothing_in_a_rebalance(tmp_path: Path) -> None:
    app = create_app("recall-requests", load_settings(data_dir=tmp_path), BatchPolicy())
    rebalancing(app.consumer)
    app._stopped.set()
    async with asyncio.timeout(3):
        await app.consumer.on_partitions_revoked(set())


@pytest.mark.parametrize("ends", [True, False])
async def test_in_a_rebalance_a_worker_that_ends_drains_first_and_does_not_join_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    """A drain that does not end keeps the rebalance waiting for so long and no longer."""
    consumer: Any = create_app("recall-requests", load_settings(data_dir=tmp_path), BatchPolicy()).consumer
    coordinator, finished = rebalancing(consumer), asyncio.Event()
    monkeypatch.setattr(consumer, "_drain", finished.wait)
    if not ends:
        monkeypatch.setattr(transport, "STOP_WITHIN_S", 0.05)
    consumer.app._stopped.set()
    revoking = asyncio.create_task(consumer.on_partitions_revoked({TopicPartition("t", 0)}))
    stopping = asyncio.create_task(consumer.wait_empty())
    if ends:
        for _ in range(20):
            await asyncio.sleep(0)
        assert not revoking.done()
        finished.set()
    async with asyncio.timeout(10):
        await revoking
    assert not stopping.done(), "the rebalance has not come to where it would join"
    finished.set()
    joining = asyncio.create_task(coordinator._do_rejoin_group(None))
    async with asyncio.timeout(10):
        await stopping
    assert not joining.done()
    coordinator._closing.set_result(None)
    async with asyncio.timeout(10):
        assert await joining is False


@pytest.mark.parametrize("owed", [True, False])
async def test_a_drain_waits_for_work_and_a_moment_only_for_what_a_late_partition_is_owed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owed: bool
) -> None:
    monkeypatch.setattr(transport, "OWED_WITHIN_S", 0.01)
    consumer: Any = create_app("recall-requests", load_settings(data_dir=tmp_path), BatchPolicy()).consumer
    monkeypatch.setattr(transport, "SESSION_TIMEOUT_S", 3600.0)  # a drain that does wait is not over before that
    monkeypatch.setattr(consumer, "commit_and_end_transactions", partial(asyncio.sleep, 0))
    record = ConsumerRecord("t", 0, 0, 0, 1, b"u", b"", None, 1, 1, ())
    consumer.flight.add({("t", 0): [record]})
    batch = consumer.flight.take()
    batch.started = True
    batch.hold(record)
    batch.done()
    assert batch.start(record)
    if owed:
        batch.owe(record)
    draining = asyncio.create_task(consumer._drain())
    await asyncio.wait({draining}, timeout=30 if owed else 1)
    assert draining.done() == owed
    batch.done(record)
    async with asyncio.timeout(30):
        await draining


def test_leaving_the_group() -> None:
    assert "self._coordinator = GroupCoordinator(" in inspect.getsource(AIOKafkaConsumer)
    joining = inspect.getsource(GroupCoordinator.ensure_active_group)
    assert "success = await self._do_rejoin_group(subscription)" in joining
    assert "self._closing.set_result(None)" in inspect.getsource(GroupCoordinator.close)
    leave = inspect.getsource(GroupCoordinator._maybe_leave_group)
    assert "LeaveGroupRequest(self.group_id, self.member_id)" in leave
    assert "return self._consumer" in inspect.getsource(driver.AIOKafkaConsumerThread._ensure_consumer)
    assert list(inspect.signature(driver.AIOKafkaConsumerThread.call_thread).parameters)[:2] == ["self", "fun"]


def test_asking_the_broker() -> None:
    assert "self.client = AIOKafkaClient(" in inspect.getsource(AIOKafkaProducer.__init__)
    assert "metadata updated or not" in (AIOKafkaClient.force_metadata_update.__doc__ or "")


def test_the_apps_state() -> None:
    for name in ("_crashed", "_stopped"):
        assert name in inspect.getsource(inspect.getmodule(App.__mro__[2])) or hasattr(App("t"), name)
    app = App("t")
    assert hasattr(app, "crash_reason")
    assert app.rebalancing is False
    assert Consumer.__mro__[1] is driver.Consumer


def test_a_consumer_takes_how_long_a_fetch_waits_when_it_starts() -> None:
    assert "self._create_worker_consumer(transport)" in inspect.getsource(driver.AIOKafkaConsumerThread)
    assert "fetch_max_wait_ms=self._fetch_max_wait_ms" in inspect.getsource(AIOKafkaConsumer.start)


def test_a_consumer_takes_what_it_is_to_see_of_transactions_when_it_starts() -> None:
    assert "isolation_level=self._isolation_level" in inspect.getsource(AIOKafkaConsumer.start)
    asking = inspect.getsource(fetcher.Fetcher._proc_offset_request)
    assert "OffsetRequest(-1, self._isolation_level," in asking, "as log_ends of kafka_client.py sets it"
    assert "self._fetcher.end_offsets(" in inspect.getsource(AIOKafkaConsumer.end_offsets)


def test_an_app_bears_resets_and_any_name_of_a_header(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    send = inspect.unwrap(AIOKafkaConnection.send)
    monkeypatch.setattr(AIOKafkaConnection, "send", send)
    monkeypatch.setattr(fetcher, "MemoryRecords", MemoryRecords)
    create_app("recall-requests", load_settings(data_dir=tmp_path), BatchPolicy(max_batch=1, in_flight=1))
    assert AIOKafkaConnection.send is not send
    assert inspect.unwrap(AIOKafkaConnection.send) is send
    assert issubclass(fetcher.MemoryRecords, MemoryRecords)
    assert fetcher.MemoryRecords is not MemoryRecords
