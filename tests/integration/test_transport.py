"""The batch transport on a real broker: nothing is lost, whatever ends a worker, and little is sent twice."""

import asyncio
import os
import signal
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import cramjam
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition

from workers.kafka_client import connected, group_lag, reader_client
from workers.local.kafka import Kafka
from workers.local.process import free_ports
from workers.local.stack import cache_dir
from workers.local.workers import environment
from workers.settings import Settings

SCRIPT = Path(__file__).with_name("passthrough.py")
PARTITIONS = 4
SIGTERMS = 4
MARK, UNREADABLE = "mark", b"\xff\xfe\xff\xfe"
LENGTH, CRC, BODY = 8, 17, 61  # places in a record batch; the length is that of what comes behind it
both_ways = pytest.mark.parametrize("flow", ["whole", "apart"], indirect=True)
"""Batches that are finished as they came, and records that wait in an intake: see passthrough.py."""


class Flow:
    """A source and a target topic, workers between them, and what came through."""

    def __init__(self, settings: Settings, folder: Path, how: str = "whole") -> None:
        self.how = how
        self.settings = settings.model_copy(update={"data_dir": folder})
        self.group, self.source, self.target = (f"{settings.namespace}.{name}" for name in ("group", "in", "out"))
        self.workers: list[subprocess.Popen[bytes]] = []
        self.sent = 0
        self._folder = folder
        self.producer = AIOKafkaProducer(bootstrap_servers=settings.kafka_bootstrap, acks="all", linger_ms=2)

    async def start(self) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.settings.kafka_bootstrap)
        await admin.start()
        config = {"message.timestamp.type": "LogAppendTime"}
        await admin.create_topics(
            [NewTopic(t, PARTITIONS, 1, topic_configs=config) for t in (self.source, self.target)]
        )
        await admin.close()
        await self.producer.start()

    def spawn(self, work_ms: float = 2.0) -> "subprocess.Popen[bytes]":
        """One more worker."""
        command = [sys.executable, str(SCRIPT), self.group, self.source, self.target, str(work_ms), self.how]
        log = (self._folder / f"worker-{len(self.workers)}.log").open("wb")
        with log:
            env = os.environ | environment(self.settings)
            self.workers.append(subprocess.Popen(command, stdout=log, stderr=log, env=env))
        return self.workers[-1]

    async def feed(self, count: int, per_second: int) -> None:
        """Send numbered records, paced."""
        for _ in range(count):
            await self.producer.send(self.source, key=b"%d" % (self.sent % 97), value=b"%d" % self.sent)
            self.sent += 1
            if self.sent % max(1, per_second // 50) == 0:
                await asyncio.sleep(0.02)
        await self.producer.flush()

    async def received(self) -> Counter[bytes]:
        """Every value in the target, with how often it came."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self.settings.kafka_bootstrap)
        await consumer.start()
        partitions = [TopicPartition(self.target, n) for n in range(PARTITIONS)]
        consumer.assign(partitions)
        await consumer.seek_to_beginning()
        ends = await consumer.end_offsets(partitions)
        values: Counter[bytes] = Counter()
        while any([await consumer.position(p) < end for p, end in ends.items()]):
            for records in (await consumer.getmany(timeout_ms=500)).values():
                values.update(record.value for record in records)
        await consumer.stop()
        return values

    async def until(self, condition: Callable[[Counter[bytes]], bool], within_s: float = 60.0) -> Counter[bytes]:
        """What was received once the condition holds; fails when it does not."""
        async with asyncio.timeout(within_s):
            while not condition(values := await self.received()):
                await asyncio.sleep(0.2)
        return values

    async def passing(self) -> None:
        """Wait until something of what was sent up to now comes through a worker."""
        before = len(await self.received())
        await self.until(lambda values: len(values) > before)

    async def all_through(self, within_s: float = 60.0) -> Counter[bytes]:
        """Everything that was sent, once it is all there and committed."""
        try:
            values = await self.until(lambda found: len(found) >= self.sent, within_s)
        except TimeoutError:
            found = await self.received()
            logs = "\n".join(path.read_text()[-2000:] for path in sorted(self._folder.glob("*.log")))
            pytest.fail(f"{self.sent - len(found)} of {self.sent} records are missing\n{logs}")
        async with asyncio.timeout(20):
            while await group_lag(self.settings, self.group, self.source):
                await asyncio.sleep(0.1)
        return values

    async def stop(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.kill()
            worker.wait()
        await self.producer.stop()


@pytest.fixture
async def flow(settings: Settings, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Flow]:
    flow = Flow(settings, tmp_path, getattr(request, "param", "whole"))
    await flow.start()
    yield flow
    await flow.stop()


def repeats(values: Counter[bytes]) -> int:
    return values.total() - len(values)


@both_ways
async def test_kill_9_in_mid_stream_loses_nothing(flow: Flow) -> None:
    first, _ = flow.spawn(), flow.spawn()
    killed = asyncio.Event()

    async def feed() -> None:
        while not killed.is_set():
            await flow.feed(300, 1500)
        await flow.feed(7500, 1500)

    feeding = asyncio.create_task(feed())
    await flow.passing()
    await _ready(flow, first)
    await _begins(flow, first)
    first.kill()
    killed.set()
    flow.spawn()
    await feeding
    values = await flow.all_through()
    assert len(values) == flow.sent
    assert max(values.values()) <= 2, "one kill repeats what was not committed, once"


@both_ways
async def test_a_joining_worker_loses_and_repeats_nothing(flow: Flow) -> None:
    flow.spawn(), flow.spawn()
    feeding = asyncio.create_task(flow.feed(12_000, 1500))
    await flow.passing()
    flow.spawn()
    await feeding
    values = await flow.all_through()
    assert (len(values), repeats(values)) == (flow.sent, 0)


@pytest.mark.parametrize("flow", ["apart"], indirect=True)
@pytest.mark.timeout(600)
async def test_many_sigterms_under_load_repeat_nothing(flow: Flow) -> None:
    stayer = flow.spawn()
    done = asyncio.Event()

    async def feed() -> None:
        while not done.is_set():
            await flow.feed(100, 500)

    feeding = asyncio.create_task(feed())
    await flow.passing()
    codes = []
    for _ in range(SIGTERMS):
        leaver = flow.spawn()
        await _ready(flow, leaver)
        leaver.send_signal(signal.SIGTERM)
        codes.append(await asyncio.to_thread(leaver.wait, 60))
    done.set()
    await feeding
    values = await flow.all_through()
    assert codes == [0] * SIGTERMS
    assert stayer.poll() is None
    assert (len(values), repeats(values)) == (flow.sent, 0)


async def _ready(flow: Flow, worker: "subprocess.Popen[bytes]") -> None:
    """Wait until this worker has joined the group: the group has two members and is stable."""
    async with asyncio.timeout(120):
        while await _group(flow) != ("Stable", 2):
            assert worker.poll() is None, "the worker ended by itself"
            await asyncio.sleep(0.02)


async def _begins(flow: Flow, worker: "subprocess.Popen[bytes]") -> None:
    """Wait until this worker begins another batch."""
    before = len(_begun(flow, worker))
    async with asyncio.timeout(60):
        while len(_begun(flow, worker)) == before:
            assert worker.poll() is None, "the worker ended by itself"
            await asyncio.sleep(0.005)


def _begun(flow: Flow, worker: "subprocess.Popen[bytes]") -> list[list[str]]:
    """The partitions of each batch that a worker has begun."""
    path = flow.settings.data_dir / f"{worker.pid}.begun"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("flow", ["apart"], indirect=True)
async def test_who_is_told_to_end_does_what_it_had_in_hand_though_others_leave_too(flow: Flow) -> None:
    """So that their leaving takes its partitions away while it drains."""
    slow = flow.spawn(work_ms=3000)
    await flow.feed(PARTITIONS, 1000)
    await flow.all_through()
    fast = flow.spawn()
    async with asyncio.timeout(60):
        while await _group(flow) != ("Stable", 2):
            await asyncio.sleep(0.1)
        before = await _committed(flow)
        earlier = {worker: len(_begun(flow, worker)) for worker in (slow, fast)}
        await flow.feed(40 * PARTITIONS, 1000)

        def places() -> set[str]:
            return {n for worker, had in earlier.items() for batch in _begun(flow, worker)[had:] for n in batch}

        while len(places()) < PARTITIONS:
            await asyncio.sleep(0.01)
    for worker in (slow, fast):
        worker.send_signal(signal.SIGTERM)
    for worker in (slow, fast):
        assert await asyncio.to_thread(worker.wait, 20) == 0
    values = await flow.received()
    assert set(values.values()) == {1}
    assert await group_lag(flow.settings, flow.group, flow.source) == flow.sent - len(values)
    after = await _committed(flow)
    assert [n for n in before if after[n] == before[n]] == [], "what either had begun of them was not done"


@both_ways
async def test_an_exception_in_an_agent_ends_the_process_and_loses_nothing(flow: Flow) -> None:
    worker = flow.spawn()
    await flow.feed(500, 5000)
    await flow.producer.send_and_wait(flow.source, key=b"k", value=b"raise")
    flow.sent += 1
    await flow.feed(500, 5000)
    assert await asyncio.to_thread(worker.wait, 60) == 1
    flow.spawn()
    values = await flow.all_through()
    assert len(values) == flow.sent


async def _group(flow: Flow) -> tuple[str, int]:
    """State of the group, and how many members it has."""
    admin = AIOKafkaAdminClient(bootstrap_servers=flow.settings.kafka_bootstrap)
    await admin.start()
    try:
        (response,) = await admin.describe_consumer_groups([flow.group])
        _, _, state, _, _, members, *_ = response.groups[0]
        return state, len(members)
    finally:
        await admin.close()


async def _committed(flow: Flow) -> dict[int, int]:
    admin = AIOKafkaAdminClient(bootstrap_servers=flow.settings.kafka_bootstrap)
    await admin.start()
    try:
        offsets = await admin.list_consumer_group_offsets(flow.group)
        return {place.partition: offset.offset for place, offset in offsets.items()}
    finally:
        await admin.close()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("flow", ["asking"], indirect=True)
async def test_nothing_is_committed_that_is_refused_and_who_leaves_makes_nobody_wait(
    flow: Flow, tmp_path: Path
) -> None:
    answer = tmp_path / f"{flow.group}.answer"
    first = flow.spawn()
    await flow.feed(300, 5000)
    await flow.until(lambda values: len(values) == 300)
    first.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(first.wait, 15) == 0, "a drain does not wait for an answer that does not come"
    assert await group_lag(flow.settings, flow.group, flow.source) == 300

    second = flow.spawn()
    await flow.until(lambda values: values.total() == 600)
    answer.write_text("leave")
    assert await asyncio.to_thread(second.wait, 15) == 1
    assert await _group(flow) == ("Empty", 0)
    assert await group_lag(flow.settings, flow.group, flow.source) == 300

    answer.write_text("yes")
    flow.spawn()
    await flow.all_through()
    assert set((await flow.received()).values()) == {3}


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_compressed_batches_are_read(flow: Flow, codec: str) -> None:
    flow.spawn()
    producer = AIOKafkaProducer(bootstrap_servers=flow.settings.kafka_bootstrap, compression_type=codec, linger_ms=20)
    await producer.start()
    for n in range(300):
        await producer.send(flow.source, key=b"%d" % n, value=b"%d" % n + b"x" * 100)
    await producer.stop()
    flow.sent = 300
    assert len(await flow.all_through()) == 300


@pytest.mark.parametrize("codec", [None, "zstd"])
async def test_a_header_whose_name_is_no_text_stops_nobody(flow: Flow, codec: str | None) -> None:
    flow.spawn()
    producer = AIOKafkaProducer(bootstrap_servers=flow.settings.kafka_bootstrap, compression_type=codec)
    await producer.start()
    for start in range(0, 60, 20):
        batch = producer.create_batch()
        for n in range(start, start + 20):
            name = MARK if n % 7 == 3 else "name"
            batch.append(key=b"%d" % n, value=b"%d" % n, timestamp=None, headers=[(name, b"value"), ("other", b"")])
        await (await producer.send_batch(misnamed(batch, codec), flow.source, partition=0))
    await producer.stop()
    flow.sent = 60
    assert set(await flow.all_through()) == {b"%d" % n for n in range(60)}
    consumer = reader_client(flow.settings)
    async with connected(flow.settings, consumer):
        consumer.assign([TopicPartition(flow.source, 0)])
        records = [await consumer.getone() for _ in range(60)]
    names = {record.value: [name for name, _ in record.headers] for record in records}
    assert names[b"2"] == ["name", "other"]
    assert names[b"3"] == [r"\xff\xfe\xff\xfe", "other"]


def misnamed(batch: Any, codec: str | None) -> Any:
    """A batch with bytes that are no UTF-8 wherever MARK stands. aiokafka writes no such thing itself."""
    data = bytes(batch._build())
    body = data[BODY:] if codec is None else bytes(cramjam.zstd.decompress(data[BODY:]))
    body = body.replace(MARK.encode(), UNREADABLE)
    found = bytearray(data[:BODY] + (body if codec is None else bytes(cramjam.zstd.compress(body))))
    struct.pack_into(">i", found, LENGTH, len(found) - LENGTH - 4)
    struct.pack_into(">I", found, CRC, calc_crc32c(bytes(found[CRC + 4 :])))
    batch._buffer = found
    return batch


@pytest.fixture
async def own_kafka(settings: Settings, tmp_path: Path) -> AsyncIterator[Kafka]:
    """A broker of the test's own, that may be killed."""
    kafka = Kafka(tmp_path / "kafka", tmp_path / "kafka.log", cache_dir())
    kafka.prepare(print)
    kafka.ports = free_ports(kafka.port_count)
    kafka.start()
    await asyncio.to_thread(kafka.wait_ready)
    yield kafka
    kafka.kill()


async def test_a_broker_that_is_killed_and_comes_back_loses_nothing(
    settings: Settings, own_kafka: Kafka, tmp_path: Path
) -> None:
    flow = Flow(settings.model_copy(update={"kafka_bootstrap": own_kafka.address}), tmp_path)
    await flow.start()
    try:
        first, second = flow.spawn(), flow.spawn()
        feeding = asyncio.create_task(flow.feed(6000, 1000))
        await flow.passing()
        logs = {path: path.stat().st_size for path in tmp_path.glob("worker-*.log")}
        own_kafka.kill()
        await asyncio.sleep(3)
        async with asyncio.timeout(60):
            while not all(b"Unable connect to" in path.read_bytes()[size:] for path, size in logs.items()):
                await asyncio.sleep(0.1)
        own_kafka.start()
        await asyncio.to_thread(own_kafka.wait_ready)
        await feeding
        values = await flow.all_through()
        assert len(values) == flow.sent
        assert (first.poll(), second.poll()) == (None, None), "workers outlive the broker's absence"
    finally:
        await flow.stop()
