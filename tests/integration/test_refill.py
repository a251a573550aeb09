"""Where a group begins to read, and when a partition counts as complete: on a real broker and a real Redis."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, RecordsToDelete

from tests.conftest import PATIENT_MS
from workers import topics
from workers.dependencies import Dependencies
from workers.engine import serve
from workers.errors import StoreLost
from workers.inflight import Batch, BatchPolicy
from workers.metrics import Metrics
from workers.ports import PopularChange
from workers.refill import ONE_BATCH, Extent, Refill, Start
from workers.settings import Settings
from workers.stores import keys
from workers.stores.connect import connect
from workers.stores.markers_redis import RedisMarkers
from workers.stores.popular_memory import MemoryPopularTable
from workers.transport import batch_topic, create_app

GROUP = "filler"
LAST = b"99"
WITHIN_S = 40


class Place:
    """A topic of two partitions, a group that reads it, and what the group was given."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings.model_copy(
            update={"data_dir": folder, "partitions": 2, "store_timeout_ms": PATIENT_MS}
        )
        self.topic = settings.topic("user-activity")
        self.client = connect(self.settings)
        self.counts = MemoryPopularTable()
        self.markers = RedisMarkers(self.client, settings, GROUP)
        self.taken: list[bytes] = []
        self.repeated: list[bytes] = []
        self.spans: list[tuple[int, int, int]] = []
        self.batches = 0  # that were begun
        self.last = asyncio.Event()  # the batch of the LAST value is done when it is set
        self.finished = asyncio.Event()  # batches are done when it is set
        self.finished.set()

    async def send(self, values: range, partition: int = 0) -> None:
        async with AIOKafkaProducer(bootstrap_servers=self.settings.kafka_bootstrap) as producer:
            for n in values:
                await producer.send_and_wait(self.topic, b"%d" % n, partition=partition)

    async def commit(self, offsets: Mapping[int, int]) -> None:
        """As the group, while it does not run."""
        group = self.settings.group(GROUP)
        own = {"bootstrap_servers": self.settings.kafka_bootstrap, "group_id": group, "enable_auto_commit": False}
        async with AIOKafkaConsumer(**own) as consumer:
            consumer.assign([TopicPartition(self.topic, n) for n in offsets])
            await consumer.commit({TopicPartition(self.topic, n): offset for n, offset in offsets.items()})

    @asynccontextmanager
    async def reading(self, rule: str = "rule") -> AsyncIterator[Refill]:
        refill = Refill(self.markers, Dependencies("activity", Metrics()), self.counts, rule)
        app = create_app(self.settings.group(GROUP), self.settings, BatchPolicy(), refill)

        async def handle(batch: Batch) -> None:
            self.batches += 1
            await self.finished.wait()
            if any(record.value == LAST for record in batch.records):  # type: ignore[attr-defined]
                await self.last.wait()
            self.taken += [record.value for record in batch.records]  # type: ignore[attr-defined]
            self.repeated += [record.value for record in batch.records if batch.repeats(record)]  # type: ignore[attr-defined]
            spans = [(partition, *span) for (_, partition), span in batch.spans.items()]
            expected = await self.counts.add([PopularChange(*span, {}) for span in spans])
            assert all(at >= first for at, (_, first, _) in zip(expected, spans, strict=True)), "there is a gap"
            self.spans += spans
            batch.done()

        @app.agent(batch_topic(app, self.topic))
        async def agent(stream: Any) -> None:
            await serve(stream, handle)

        await app.start()
        try:
            yield refill
        finally:
            await app.stop()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(WITHIN_S):
            while not holds():
                await asyncio.sleep(0.05)

    async def whole(self) -> bool:
        return bool(await self.client.exists(keys.filled_whole(self.settings, GROUP)))

    async def until_whole(self) -> None:
        async with asyncio.timeout(WITHIN_S):
            while not await self.whole():
                await asyncio.sleep(0.05)

    async def mark_all(self, value: str = "rule") -> None:
        await self.markers.open(2)
        for partition in range(2):
            await self.markers.mark(partition, value)


@pytest.fixture
async def place(settings: Settings, tmp_path: Path) -> AsyncIterator[Place]:
    place = Place(settings, tmp_path)
    await topics.apply(place.settings)
    yield place
    await place.client.aclose()


def values(*ranges: range) -> list[bytes]:
    return sorted(b"%d" % n for each in ranges for n in each)


async def test_an_empty_topic_is_complete_at_once(place: Place) -> None:
    async with place.reading() as refill:
        await place.until_whole()
        await place.until(lambda: refill.missing() is None)
        await place.send(range(3))
        await place.until(lambda: len(place.taken) == 3)
    assert place.spans[0][:2] == (0, 0)


async def test_without_markers_all_is_read_again_and_complete_when_it_is_done(place: Place) -> None:
    await place.send(range(20))
    await place.send(range(20, 30), partition=1)
    await place.commit({0: 20, 1: 4})
    place.finished.clear()
    async with place.reading() as refill:
        assert refill.missing() == "where its partitions begin"
        await place.until(lambda: "retained" in (refill.missing() or ""))
        await place.send(range(30, 35))
        assert refill.missing() == "the retained events of 2 partitions, which redis did not have"
        assert not await place.whole()
        place.finished.set()
        await place.until_whole()
        await place.until(lambda: len(place.taken) == 35)
        assert refill.missing() is None
    assert sorted(place.taken) == values(range(35))
    assert sorted(place.repeated) == values(range(24)), "what was committed"
    place.taken.clear()
    async with place.reading():  # it goes on from there
        await place.send(range(40, 41), partition=1)
        await place.until(lambda: bool(place.taken))
    assert place.taken == [b"40"]


async def test_it_is_complete_whatever_comes_behind(place: Place) -> None:
    await place.send(range(10))
    await place.commit({0: 10})
    place.finished.clear()
    async with place.reading() as refill:
        await place.until(lambda: "retained" in (refill.missing() or "") and place.batches == 1)
        await place.send(range(99, 100))
        await place.until(lambda: place.batches == 2)
        place.finished.set()
        await place.until_whole()
        assert LAST not in place.taken
        place.last.set()
        await place.until(lambda: LAST in place.taken)


async def test_one_that_ends_meanwhile_leaves_no_marker(place: Place) -> None:
    await place.send(range(10))
    await place.commit({0: 10})
    place.finished.clear()
    async with place.reading() as refill:
        await place.until(lambda: "retained" in (refill.missing() or ""))
    assert not await place.whole()
    place.finished.set()
    place.taken.clear()
    async with place.reading():
        await place.until_whole()
    assert sorted(set(place.taken)) == values(range(10))


async def test_records_of_no_data_at_the_end_and_what_retention_took(place: Place) -> None:
    """Offsets of a transaction's end are never delivered; a batch covers them all the same."""
    await place.send(range(5))
    bootstrap = place.settings.kafka_bootstrap
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, transactional_id=place.topic) as producer:
        for n in range(5, 8):
            async with producer.transaction():
                await producer.send_and_wait(place.topic, b"%d" % n, partition=0)
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.delete_records({TopicPartition(place.topic, 0): RecordsToDelete(before_offset=2)})
    await admin.close()
    async with place.reading():
        await place.until_whole()
        await place.until(lambda: len(place.taken) == 6)
    assert sorted(place.taken) == values(range(2, 8))
    assert place.spans[0][:2] == (0, 2)
    assert await place.counts.expected([0]) == [10], "what is gone is not waited for"
    place.spans.clear()
    async with place.reading():
        await place.send(range(8, 9))
        await place.until(lambda: len(place.taken) == 7)
    assert place.spans == [(0, 10, 12)], "from the commit, over the end of the last transaction"


async def test_a_partition_that_is_added_is_complete_once_it_is_read(place: Place) -> None:
    await place.mark_all()
    await place.send(range(3))
    await place.commit({0: 3})
    await place.counts.expect({0: 3})
    admin = AIOKafkaAdminClient(bootstrap_servers=place.settings.kafka_bootstrap)
    await admin.start()
    await admin.create_partitions({place.topic: NewPartitions(3)})
    await admin.close()
    assert await place.whole()
    async with place.reading():
        async with asyncio.timeout(WITHIN_S):
            while b"2" not in await place.client.hgetall(place.markers.key):
                await asyncio.sleep(0.05)
        assert await place.whole()
    assert place.taken == []


CASES = {
    "new group, empty": (Extent(None, 0, 0), None, 0, Start(0, 0), 0),
    "no marker": (Extent(90, 10, 100), None, 0, Start(10, 100), 10),
    "no marker, but counts": (Extent(90, 10, 100), None, 90, Start(10, 100), 90),
    "as it was": (Extent(90, 10, 100), "rule", 90, Start(90), 90),
    "not committed, but done": (Extent(90, 10, 100), "rule", 95, Start(90), 95),
    "redis lost its last writes": (Extent(9000, 10, 9100), "rule", 5000, Start(5000 - ONE_BATCH), 5000),
    "and nearly all of them": (Extent(90, 10, 100), "rule", 80, Start(10), 80),
    "and kafka does not have them": (Extent(90, 85, 100), "rule", 80, Start(85), 85),
    "another rule": (Extent(90, 10, 100), "other", 0, Start(90), 90),
    "another rule that was in use before": (Extent(90, 10, 100), "other", 40, Start(90), 90),
    "nothing committed, but a marker": (Extent(None, 10, 100), "rule", 90, Start(10), 90),
    "made anew": (Extent(None, 0, 5), "rule", 90, Start(0), 0),
    "made anew, with its commits": (Extent(90, 0, 5), "rule", 90, Start(0), 0),
    "done into a transaction that is open": (Extent(97, 10, 95, 100), "rule", 97, Start(97), 97),
    "the worker was away for longer than retention": (Extent(90, 95, 100), "rule", 90, Start(95), 95),
}


@pytest.mark.parametrize("case", CASES)
async def test_where_reading_begins(settings: Settings, case: str) -> None:
    extent, marker, counted, start, expected = CASES[case]
    client = connect(settings)
    markers, counts = RedisMarkers(client, settings, GROUP), MemoryPopularTable()
    await markers.open(1)
    if marker is not None:
        await markers.mark(0, marker)
    await counts.expect({0: counted})
    refill = Refill(markers, Dependencies("activity", Metrics()), counts, "rule")

    async def extents() -> Mapping[int, Extent]:
        return {0: extent}

    assert await refill.begin([0], 1, extents) == {0: start}
    assert await counts.expected([0]) == [expected]
    assert await markers.open(1) == ({} if marker is None else {0: "rule"})
    await client.aclose()


async def test_an_emptied_redis_is_noticed(settings: Settings) -> None:
    client = connect(settings)
    markers = RedisMarkers(client, settings, GROUP)
    refill = Refill(markers, Dependencies("items", Metrics()))
    watching = asyncio.create_task(refill.watch())

    async def extents() -> Mapping[int, Extent]:
        return {0: Extent(None, 0, 7)}

    assert await refill.begin([0], 1, extents) == {0: Start(0, 7)}
    await client.delete(markers.key)
    with pytest.raises(StoreLost):
        await refill.complete(0)
    with pytest.raises(StoreLost):
        await asyncio.wait_for(watching, 10)
    await client.aclose()
