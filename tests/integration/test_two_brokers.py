"""A cluster of two brokers of which one dies: its partitions have no leader, and nobody else waits for that."""

import asyncio
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import NewTopic
from aiokafka.errors import GroupCoordinatorNotAvailableError, KafkaError

from tests.integration.test_transport import Flow
from tests.leaders import until
from workers import topics
from workers.dependencies import Dependencies
from workers.inflight import BatchPolicy
from workers.kafka_client import admin_client, connected, reader_client
from workers.leaderless import PAUSE_S
from workers.local.kafka import PROPERTIES, Kafka
from workers.local.process import free_ports, spawn
from workers.local.stack import cache_dir
from workers.metrics import Metrics
from workers.outbox import Outbox
from workers.publisher import Outgoing, Publisher
from workers.settings import Settings, load_settings
from workers.transport import create_app

ROUNDS = 40
SETTLES_WITHIN_S = 60.0


class Second(Kafka):
    """A broker that takes its cluster and its controller from the first."""

    def __init__(self, first: Kafka, folder: Path) -> None:
        super().__init__(folder / "second", folder / "second.log", first.cache)
        self.first = first
        self.ports = free_ports(1)

    def command(self) -> tuple[list[str], dict[str, str]]:
        [port], controller = self.ports, self.first.ports[1]
        text = PROPERTIES.format(port=port, controller=controller, session_ms=self.session_s * 1000)
        for what, instead in (
            ("process.roles=broker,controller", "process.roles=broker"),
            ("node.id=1", "node.id=2"),
            (f",CONTROLLER://127.0.0.1:{controller}", ""),
        ):
            assert what in text
            text = text.replace(what, instead)
        properties = self.data / "server.properties"
        properties.write_text(text)
        if not (self.data / "logs").exists():
            stored = (self.first.data / "logs" / "meta.properties").read_text()
            [cluster] = [line.removeprefix("cluster.id=") for line in stored.splitlines() if "cluster.id" in line]
            tool = self._java("kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "-c", str(properties))
            assert spawn(tool, self.log, self.data).wait() == 0, self.log.read_text()
        return self._java("kafka.Kafka", str(properties)), dict(os.environ)


@pytest.fixture
def brokers(tmp_path: Path) -> Iterator[tuple[Kafka, Second]]:
    """Both are up."""
    first = Kafka(tmp_path / "first", tmp_path / "first.log", cache_dir())
    first.prepare(print)
    first.ports = free_ports(first.port_count)
    first.start()
    second = Second(first, tmp_path)
    try:
        first.wait_ready()
        second.start()
        second.wait_ready()
        yield first, second
    finally:
        second.kill()
        first.kill()


class Sending:
    """A worker's producer, with what it asks the brokers."""

    def __init__(self, settings: Settings) -> None:
        app = create_app("two-brokers", settings, BatchPolicy())
        self.producer: Any = app.transport.create_producer()._new_producer()
        self.publisher = Publisher(SimpleNamespace(producer=SimpleNamespace(_producer=self.producer)), 30_000)
        self.topic = settings.topic("recall-candidates")
        self.questions = 0
        self.answered = asyncio.Event()  # while it is not set, no question is
        self.answered.set()

    async def __aenter__(self) -> Self:
        await self.producer.start()
        update = self.producer.client._metadata_update

        async def counted(*arguments: Any) -> bool:
            self.questions += 1
            await self.answered.wait()
            return await update(*arguments)

        self.producer.client._metadata_update = counted
        return self

    async def __aexit__(self, *_: object) -> None:
        self.producer._message_accumulator.fail_all(KafkaError("the test is over"))  # else it waits for them
        await self.producer.stop()

    async def leaders(self) -> dict[int, int]:
        """Of each partition the broker; -1 = it has none."""
        await self.producer.client.force_metadata_update()
        cluster = self.producer.client.cluster
        partitions = cluster.partitions_for_topic(self.topic) or ()
        return {n: cluster.leader_for_partition(TopicPartition(self.topic, n)) for n in partitions}

    async def leaders_are(self, wanted: set[int]) -> dict[int, int]:
        """Waits for that."""
        end_s = time.monotonic() + SETTLES_WITHIN_S
        while set((found := await self.leaders()).values()) != wanted:
            assert time.monotonic() < end_s, found
            await asyncio.sleep(0.05)
        return found


async def values(settings: Settings, topic: str, many: int) -> dict[int, list[bytes]]:
    """What is in the topic, by partition, once there are so many."""
    found: dict[int, list[bytes]] = {}
    reader = reader_client(settings)
    async with connected(settings, reader), asyncio.timeout(SETTLES_WITHIN_S):
        places = [TopicPartition(topic, n) for n in range(settings.partitions)]
        reader.assign(places)
        while sum(map(len, found.values())) < many:
            for place, records in (await reader.getmany(timeout_ms=200)).items():
                found.setdefault(place.partition, []).extend(record.value for record in records)
    return found


async def test_who_has_no_leader_is_asked_for_with_pauses_and_keeps_nobody_waiting(
    brokers: tuple[Kafka, Second], tmp_path: Path
) -> None:
    first, second = brokers
    settings = load_settings(kafka_bootstrap=first.address, namespace="two", data_dir=tmp_path / "data")
    await topics.apply(settings)
    async with Sending(settings) as sending:
        home = await sending.leaders_are({1, 2})
        stuck = {partition for partition, leader in home.items() if leader == 2}
        second.kill()
        await sending.leaders_are({1, -1})
        box = Outbox(sending.publisher, Dependencies("recall", Metrics()))
        acknowledged: list[tuple[int, int]] = []

        async def send(number: int) -> None:
            """To every partition; waits for those that have a leader."""
            messages = [Outgoing(None, b"%d" % number, (), partition) for partition in home]

            def told(positions: Sequence[int], _: bool) -> None:
                acknowledged.extend((number, messages[position].partition) for position in positions)

            await box.send(sending.topic, messages, told)
            await until(lambda: {(number, partition) for partition in home.keys() - stuck} <= set(acknowledged))

        began_s, sending.questions = time.monotonic(), 0
        for number in range(ROUNDS):
            await send(number)
        asked, took_s = sending.questions, time.monotonic() - began_s
        assert 0 < asked <= took_s / PAUSE_S + 2

        sending.answered.clear()
        await until(lambda: sending.questions > asked)
        for number in range(ROUNDS, 2 * ROUNDS):
            await send(number)
        assert not {partition for _, partition in acknowledged} & stuck
        assert box.owed_bytes
        sending.answered.set()

        second.start()
        await asyncio.to_thread(second.wait_ready)
        found = await values(settings, sending.topic, 2 * ROUNDS * len(home))
        assert found == {partition: [b"%d" % n for n in range(2 * ROUNDS)] for partition in home}, "once, in order"
        await until(lambda: not box.owed_bytes)


async def coordinated_by(node: int, admin: Any, namespace: str) -> str:
    """A group of which that broker is the coordinator."""
    async with asyncio.timeout(SETTLES_WITHIN_S):
        for n in count():
            with suppress(GroupCoordinatorNotAvailableError):  # groups are asked about for the first time
                if await admin.find_coordinator(group := f"{namespace}.{n}") == node:
                    return group
            await asyncio.sleep(0.05)
    raise AssertionError


async def test_an_input_partition_without_a_leader_keeps_no_other_one_waiting(
    brokers: tuple[Kafka, Second], tmp_path: Path
) -> None:
    """Of a group that has committed nothing, whose member begins meanwhile."""
    first, second = brokers
    settings = load_settings(kafka_bootstrap=first.address, namespace="inputs", data_dir=tmp_path / "data")
    flow = Flow(settings, tmp_path)
    admin = admin_client(settings)
    async with connected(settings, admin, flow.producer):
        places = {flow.source: {0: [1], 1: [2], 2: [1], 3: [2]}, flow.target: {n: [1] for n in range(4)}}
        await admin.create_topics([NewTopic(name, -1, -1, replica_assignments=nodes) for name, nodes in places.items()])
        flow.group = await coordinated_by(1, admin, "inputs")
        async with asyncio.timeout(SETTLES_WITHIN_S):
            for partition in range(4):
                await flow.producer.send_and_wait(flow.source, b"%d" % partition, key=b"u", partition=partition)
        second.kill()
        leaders: set[int] = set()
        async with asyncio.timeout(SETTLES_WITHIN_S):
            while leaders != {1, -1}:
                with suppress(KafkaError):  # the one that is gone is asked too
                    (topic,) = await admin.describe_topics([flow.source])
                    leaders = {partition["leader"] for partition in topic["partitions"]}
                await asyncio.sleep(0.05)
        worker = flow.spawn()
        try:
            await flow.until(lambda values: set(values) == {b"0", b"2"})
            second.start()
            await flow.until(lambda values: set(values) == {b"0", b"1", b"2", b"3"})
            assert worker.poll() is None
        finally:
            worker.kill()
            worker.wait()
