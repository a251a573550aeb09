"""A reconciliation of what a pipeline has made of a real topic: what it finds, what is no finding, and how it mends.

Table and index are the ones in memory; the same beside a running worker, on real servers, is in tests/e2e.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
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
from workers.errors import RecallError
from workers.index.memory import MemoryItemIndex
from workers.index.schema import Collection
from workers.pipelines.item_order import decode_item
from workers.pipelines.items import ItemEvent, ItemsPipeline, ItemsView
from workers.ports import IndexRows
from workers.reconcile import run as running
from workers.reconcile.examine import KINDS, Parts
from workers.reconcile.run import Options, Reconciliation, Report
from workers.reconcile.topic import ItemTopic, open_topic
from workers.settings import Settings
from workers.stores.item_memory import MemoryItemTable

COLLECTION = "items_m1"


@dataclass
class View:
    """A topic with two partitions, and a view of it that is fed by hand: `take` is its worker."""

    settings: Settings
    producer: AIOKafkaProducer
    table: MemoryItemTable = field(default_factory=lambda: MemoryItemTable(DIM))
    index: MemoryItemIndex = field(default_factory=lambda: MemoryItemIndex(Collection(COLLECTION, DIM, "IP", MODEL)))

    def parts(self, index: MemoryItemIndex | None = None) -> Parts:
        fields = ItemsView(DIM, MODEL, ("value",))
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
            group_id=self.settings.group(f"recall-items.{COLLECTION}"),
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
            return await Reconciliation(self.parts(index), topic, Options(**options)).run()

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
    yield View(settings, producer)
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


async def test_a_clean_view_has_no_findings(view: View) -> None:
    await fill(view)
    report = await view.assert_clean()
    assert (report.items, report.table, report.collection, report.lag, report.compared) == (28, 28, 28, 0, 28)
    assert (await view.assert_clean(sample=10)).compared == 10
    assert (await view.assert_clean(passes=3)).items == 28


async def break_everything(view: View) -> dict[str, float]:
    """One item for each way to differ; what the index should hold."""
    before = await view.values()
    await view.index.delete(["item 5"])  # a row is gone
    view.put(None, "item 6")  # a record is gone
    await view.index.delete(["item 7"])  # both
    view.put(None, "item 7")
    await view.row("nobody's", 9)  # a row that nobody knows
    await view.row("item 2", 3)  # a row of a deleted item, by tombstone
    deleted = await view.record("item 3")
    assert deleted is not None
    older = ItemRecord("item 3", 1, 2, history_vector=deleted.history_vector, update=b"{}")
    view.put(older, "item 3")  # a record of a deleted item
    unknown = ItemUpdate(item_id="unknown", op="upsert", timestamp_ms=1, attributes={"value": 7})
    view.put(ItemRecord("unknown", 0, 3, update=codec.encode_event(unknown)), "unknown")  # a record of no event
    first = await view.record("item 0")
    assert first is not None
    view.put(ItemRecord("item 0", 0, 0, history_vector=first.history_vector), "item 0")  # an older record
    await view.row("item 1", 500)  # an older vector
    tenth = await view.record("item 10")
    assert tenth is not None
    history = np.full(DIM, 3, dtype="<f4").tobytes()  # a vector of another model
    view.put(ItemRecord("item 10", 0, tenth.offset, history_vector=history, update=tenth.update), "item 10")
    return before


@pytest.mark.parametrize("passes", [1, 3])
async def test_every_kind_is_found_and_mended(view: View, passes: int) -> None:
    await fill(view)
    records = {item_id: await view.record(item_id) for item_id in [f"item {n}" for n in range(30)]}
    before = await break_everything(view)
    report = await view.reconcile(examples=10, passes=passes)
    assert found(report) == {"missing": 3, "orphaned": 4, "stale": 1, "wrong_model": 2}
    assert {name: sorted(each[:2] for each in kind) for name, kind in examples(report).items()} == {
        "missing": [("item 5", ["collection"]), ("item 6", ["table"]), ("item 7", ["collection", "table"])],
        "orphaned": [
            ("item 2", ["collection"]), ("item 3", ["table"]), ("nobody's", ["collection"]), ("unknown", ["table"])
        ],
        "stale": [("item 0", ["table"])],
        "wrong_model": [("item 1", ["collection"]), ("item 10", ["table"])],
    }  # fmt: skip
    assert examples(report)["stale"] == [("item 0", ["table"], "0:1", "0:0")]
    assert (report.repaired, report.left) == (0, 10)
    assert await view.values() != before
    mended = await view.reconcile(repair=True, passes=passes)
    assert found(mended) == found(report)
    assert all(len(kind.examples) <= 3 for kind in mended.kinds.values())
    assert (mended.repaired, mended.left) == (10, 0)
    assert await view.values() == before
    assert {item_id: await view.record(item_id) for item_id in records} == records
    gone = await view.record("unknown")
    assert gone is not None
    assert (gone.deleted, gone.partition, gone.offset) == (True, 0, 3)
    await view.assert_clean(passes=passes)


async def test_the_record_of_a_deleted_item_may_outlive_its_tombstone_or_expire_before_it(view: View) -> None:
    await fill(view)
    view.put(ItemRecord("long gone", 0, 1, deleted=True), "long gone")
    view.put(None, "item 2")
    view.put(None, "item 3")
    await view.assert_clean()


async def test_what_is_still_to_be_taken_in_is_no_finding(view: View) -> None:
    await fill(view)
    await view.send("item 8", 99)
    await view.send("new", 1, partition=1)
    await view.send("item 9", partition=1)
    await view.index.delete(["item 8"])  # its update brings it back
    report = await view.assert_clean(repair=True)
    assert (report.lag, report.repaired) == (3, 0)
    await view.take()
    assert (await view.assert_clean()).lag == 0


async def test_a_view_that_nobody_has_ever_fed_only_lags(view: View) -> None:
    await view.send("a", 1)
    report = await view.assert_clean()
    assert (report.lag, report.items) == (1, 1)


async def test_updates_that_were_refused_are_as_if_they_had_not_come(view: View) -> None:
    """What compaction leaves of each: the refused update alone, and the record of the one before it."""
    await view.send("first", 1)
    await view.send("older", 3, version=3)
    await view.send("not finite", -1)
    await view.send("other partition", 4, partition=1)
    await view.send("never stored", -1)
    await view.send_bytes(b"garbage", b"{")
    await view.take()
    for name, version in (("older", 5), ("not finite", None), ("other partition", None)):
        update = ItemUpdate(item_id=name, op="upsert", timestamp_ms=1, attributes={"value": 8}, version=version)
        earlier = ItemEvent(name, update, codec.encode_event(update), 0, 0)
        fresh = MemoryItemTable(DIM)
        await view.pipeline(fresh).run([earlier])
        view.put((await fresh.read(hash64_each([name])))[0], name)
    garbage = ItemUpdate(item_id="garbage", op="upsert", timestamp_ms=1, attributes={"value": 8})
    view.put(ItemRecord("garbage", 0, 0, update=codec.encode_event(garbage)), "garbage")
    await view.row("garbage", 8)
    kept = {"first": 1, "older": 8, "not finite": 8, "other partition": 8, "garbage": 8}
    assert await view.values() == kept
    report = await view.assert_clean(repair=True)
    assert report.refused == 5
    await view.index.delete(["older", "garbage"])  # what stands in the table counts, and can be made anew
    report = await view.reconcile(repair=True)
    assert (found(report), report.repaired, report.left) == ({"missing": 2}, 2, 0)
    assert await view.values() == kept


async def test_records_that_cannot_be_read_are_left_alone(view: View) -> None:
    await fill(view)
    view.table._records[hash64("item 4")] = b"\x09" + bytes(80)
    report = await view.reconcile(repair=True)
    assert report.refused == 1
    assert view.table._records[hash64("item 4")] == b"\x09" + bytes(80)


async def test_an_empty_topic_takes_nothing_away(view: View) -> None:
    await view.row("a", 1)
    with pytest.raises(RecallError, match="item-updates holds no item"):
        await view.reconcile(repair=True)
    assert await view.values() == {"a": 1}


class Slow(MemoryItemIndex):
    """Tells of the first write."""

    def __init__(self, index: MemoryItemIndex, first: Callable[[], Awaitable[None]]) -> None:
        super().__init__(index._collection)
        self._vectors, self._attributes = index._vectors, index._attributes
        self._first: Callable[[], Awaitable[None]] | None = first

    async def upsert(self, rows: IndexRows) -> None:
        if self._first is not None:
            first, self._first = self._first, None
            await first()
        await super().upsert(rows)


class Paused(MemoryItemTable):
    """A worker's table: its write waits to be let through."""

    def __init__(self, table: MemoryItemTable) -> None:
        super().__init__(DIM)
        self._records, self._feed = table._records, table._feed
        self.reached, self.released = asyncio.Event(), asyncio.Event()

    async def write(self, records: Sequence[ItemRecord], expected: Sequence[int | None]) -> list[bool]:
        self.reached.set()
        await self.released.wait()
        return await super().write(records, expected)


async def test_a_worker_that_writes_a_newer_event_around_our_write_is_not_overwritten(
    view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker reads the record, writes its vector; we write ours, and the record; then the worker its record."""
    await fill(view)
    await view.index.delete(["item 5"])
    table = Paused(view.table)
    worker: list[asyncio.Task[Any]] = []

    async def newer_event() -> None:
        offset = await view.send("item 5", 99, partition=1)
        update = ItemUpdate(item_id="item 5", op="upsert", timestamp_ms=1, attributes={"value": 99})
        event = ItemEvent("item 5", update, codec.encode_event(update), 1, offset)
        worker.append(asyncio.create_task(view.pipeline(table).run([event])))
        await table.reached.wait()
        assert (await view.values())["item 5"] == 99

    def say(what: str, part: float | None) -> None:
        if what == "waiting for the items worker" and not table.released.is_set():
            assert view.index._vectors["item 5"][0] == 6  # ours
            table.released.set()
            worker.append(asyncio.create_task(view.take()))

    async with open_topic(view.settings, COLLECTION) as topic:
        parts = view.parts(Slow(view.index, newer_event))
        report = await Reconciliation(parts, topic, Options(repair=True), say).run()
    table.released.set()
    await asyncio.gather(*worker)
    assert (found(report), report.repaired, report.left) == ({"missing": 1}, 1, 0)
    assert (await view.values())["item 5"] == 99
    await view.assert_clean()


async def test_an_item_that_was_raced_by_a_worker_that_hangs_is_left(
    view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "PATIENCE_S", 0.5)
    await fill(view)
    await view.index.delete(["item 5", "item 7"])

    async def newer_event() -> None:
        await view.send("item 5", 99, partition=1)

    report = await view.reconcile(index=Slow(view.index, newer_event), repair=True)
    assert (found(report), report.repaired, report.left) == ({"missing": 2}, 1, 1)


async def test_what_changes_while_it_is_looked_at_is_no_finding(view: View) -> None:
    """An event after the noted end that is half taken in: its row is there, its record is not yet."""
    await fill(view)

    class Late(MemoryItemTable):
        async def heads(self) -> Any:
            await view.send("new", 5)
            await view.row("new", 5)
            await view.send("item 6", 50)
            await view.row("item 6", 50)
            async for heads in super().heads():
                yield heads

    late = Late(DIM)
    late._records = view.table._records
    view.table = late
    await view.assert_clean(repair=True)
    assert (await view.values())["new"] == 5


async def test_many_items_are_mended_in_one_walk_through_the_topic(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their hashes, items are looked at in the order of their events."""
    batch = [(f"item {n}", float(n % 7 + 1)) for n in range(3000)]
    await asyncio.gather(*(view.send(item_id, value, partition=n % 2) for n, (item_id, value) in enumerate(batch)))
    await view.take()
    gone = [f"item {n}" for n in range(0, 3000, 3)]
    await view.index.delete(gone)
    for item_id in gone[:200]:
        view.put(None, item_id)
    places: list[list[int]] = []
    events = ItemTopic.events

    async def noted(topic: ItemTopic, wanted: Sequence[int]) -> dict[int, ItemEvent]:
        places.append(sorted(wanted))
        return await events(topic, wanted)

    monkeypatch.setattr(ItemTopic, "events", noted)
    report = await view.reconcile(repair=True, sample=0, examples=2)
    assert found(report) == {"missing": 1000}
    first_look = [each for batch in places[:2] for each in batch]
    assert len(first_look) == 200
    assert first_look == sorted(first_look)
    assert (report.repaired, report.left, report.compared) == (1000, 0, 0)
    assert await view.values() == dict(batch)
    assert set(KINDS) == set(report.as_dict()) & set(KINDS)
