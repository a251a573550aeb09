"""A topic with two partitions and a view of it in memory that is fed by hand. Imported where it is used."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from schemas import codec
from schemas.items import ItemUpdate
from schemas.records import ItemRecord, hash64, hash64_each
from tests.unit.test_items_in_memory import DIM, MODEL, ScaleTower, inputs
from workers import topics
from workers.index.memory import MemoryItemIndex
from workers.index.schema import Collection
from workers.pipelines.item_order import decode_item
from workers.pipelines.items import ItemsPipeline, ItemsView
from workers.ports import IndexRows
from workers.reconcile import run as running
from workers.reconcile.examine import Parts
from workers.reconcile.run import Options, Reconciliation, Report
from workers.reconcile.topic import open_topic
from workers.settings import Settings
from workers.stores import keys
from workers.stores.connect import connect
from workers.stores.item_memory import MemoryItemTable
from workers.stores.markers_redis import RedisMarkers

COLLECTION = "items_m1"


@dataclass
class View:
    """A topic with two partitions, and a view of it that is fed by hand: `take` is its worker."""

    settings: Settings
    producer: AIOKafkaProducer
    partitions: int | None = None  # items move to the usual one where it is known
    table: MemoryItemTable = field(default_factory=lambda: MemoryItemTable(DIM))
    index: MemoryItemIndex = field(default_factory=lambda: MemoryItemIndex(Collection(COLLECTION, DIM, "IP", MODEL)))

    def __post_init__(self) -> None:
        self.redis = connect(self.settings)
        self.markers = RedisMarkers(self.redis, self.settings, keys.items_group(COLLECTION))

    def parts(self, index: MemoryItemIndex | None = None) -> Parts:
        fields = ItemsView(DIM, MODEL, ("value",), self.partitions)
        return Parts(fields, COLLECTION, "IP", self.table, index or self.index, ScaleTower(), inputs)

    def pipeline(self, table: MemoryItemTable | None = None) -> ItemsPipeline:
        return self.parts().pipeline(table)

    async def send(self, item_id: str, value: float | None = None, *, partition: int = 0, **fields: Any) -> int:
        """An update, or a tombstone; its offset."""
        update = ItemUpdate(
            item_id=item_id, op=fields.pop("op", "upsert"), timestamp_ms=1, attributes={"value": value}, **fields
        )
        raw = None if value is None else codec.encode_event(update)
        return await self.send_bytes(item_id.encode(), raw, partition)

    async def send_bytes(self, key: bytes, value: bytes | None, partition: int = 0) -> int:
        topic = self.settings.topic("item-updates")
        return int((await self.producer.send_and_wait(topic, value, key=key, partition=partition)).offset)

    async def take(self) -> None:
        """What a worker does with what the group has not committed."""
        topic = self.settings.topic("item-updates")
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.settings.kafka_bootstrap,
            group_id=self.settings.group(keys.items_group(COLLECTION)),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        await consumer.start()
        try:
            partitions = [TopicPartition(topic, number) for number in range(2)]
            consumer.assign(partitions)
            ends = await consumer.end_offsets(partitions)
            events = []
            while any([await consumer.position(partition) < ends[partition] for partition in partitions]):
                for records in (await consumer.getmany(timeout_ms=100)).values():
                    for record in records:
                        try:
                            events.append(decode_item(record))
                        except codec.DecodeError:
                            continue
            await self.pipeline().run(events)
            await consumer.commit(ends)
        finally:
            await consumer.stop()

    async def record(self, item_id: str) -> ItemRecord | None:
        return (await self.table.read(hash64_each([item_id])))[0]

    def put(self, record: ItemRecord | None, item_id: str) -> None:
        """Overwrite a record, whatever stands there; None removes it."""
        if record is None:
            self.table._records.pop(hash64(item_id))
        else:
            self.table._records[hash64(item_id)] = record.encode()

    async def row(self, item_id: str, value: float) -> None:
        """Overwrite a row."""
        vectors = np.full((1, DIM), value, dtype=np.float32)
        await self.index.upsert(IndexRows([item_id], vectors, [{"value": value}]))

    async def values(self) -> dict[str, float]:
        """What the index holds: item id -> value."""
        rows = await self.index.rows(hash64_each(await self.index.ids(0, 1)))
        return dict(zip(rows.item_ids, rows.vectors[:, 0].tolist(), strict=True))

    async def reconcile(
        self,
        *,
        index: MemoryItemIndex | None = None,
        say: Callable[[str], Awaitable[None]] | None = None,
        **options: Any,
    ) -> Report:
        async with open_topic(self.settings, COLLECTION) as topic:
            return await Reconciliation(self.parts(index), topic, self.markers, Options(**options)).run()

    async def assert_clean(self, **options: Any) -> Report:
        report = await self.reconcile(**options)
        assert found(report) == {}, report
        assert report.left == 0
        return report


@pytest.fixture
async def view(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[View]:
    monkeypatch.setattr(running, "LOOK_AGAIN_S", 0.01)  # memory shows at once what is written
    settings = settings.model_copy(update={"partitions": 2})
    await topics.apply(settings)
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka_bootstrap)
    await producer.start()
    view = View(settings, producer)
    yield view
    await view.redis.aclose()
    await producer.stop()


def found(report: Report) -> dict[str, int]:
    return {name: kind.count for name, kind in report.kinds.items() if kind.count}


def examples(report: Report) -> dict[str, list[tuple[str, list[str], str | None, str | None]]]:
    return {
        name: [(each["item_id"], each["where"], each["topic"], each["table"]) for each in kind.examples]
        for name, kind in report.kinds.items()
        if kind.examples
    }


async def fill(view: View, count: int = 30) -> None:
    """item n has value n + 1 and stands in partition n % 2; item 0 and 1 have an older update, 2 and 3 are deleted."""
    await view.send("item 0", 500)
    await view.send("item 1", 500, partition=1)
    for n in range(count):
        await view.send(f"item {n}", n + 1, partition=n % 2)
    await view.send("item 2", partition=0)
    await view.send("item 3", 0, partition=1, op="delete")
    await view.take()
