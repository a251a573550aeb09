"""Winners that are produced again: a view is the same live, rebuilt, and rebuilt after compaction."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.items import AFTER, copy_after
from schemas.records import hash64_each
from tests.unit.test_items_in_memory import DIM, MODEL, View, delete, inputs, tombstone, upsert
from tests.unit.test_reconcile_columns import named
from workers.pipelines.item_order import ItemEvent, decode_item
from workers.pipelines.items import ItemsPipeline, ItemsView
from workers.publisher import Outgoing
from workers.reconcile.columns import Winners
from workers.stores.item_memory import MemoryItemTable
from workers.winners import OUTCOME, WinnersAgain

IDS = "ab"
State = dict[str, tuple[bool, bytes, float | None] | None]
"""Per item: whether it is deleted, its update's bytes, and what the index holds."""


@dataclass(frozen=True)
class Record:
    """A Kafka record."""

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    partition: int
    offset: int


@dataclass
class Topic:
    """One partition of item-updates. Copies are under way until they are let in."""

    log: list[Record] = field(default_factory=list)
    under_way: list[Outgoing] = field(default_factory=list)
    produced: int = 0

    def write(self, event: ItemEvent) -> None:
        self._append(Outgoing(event.item_id.encode(), event.raw or None))

    async def publish(self, copies: Sequence[Outgoing]) -> None:
        self.under_way += copies
        self.produced += len(copies)

    def let_in(self, which: int, *, twice: bool = False) -> None:
        if self.under_way:
            copy = self.under_way.pop(which % len(self.under_way))
            for _ in range(1 + twice):
                self._append(copy)

    def _append(self, message: Outgoing) -> None:
        self.log.append(Record(message.key, message.value, message.headers, 0, len(self.log)))

    def compacted(self, up_to: int, *, tombstones_gone: bool) -> list[Record]:
        """What is left once everything before an offset was compacted."""
        last = {record.key: record for record in self.log[:up_to]}
        kept = [r for r in last.values() if not (tombstones_gone and r.value is None)]
        return sorted(kept, key=lambda record: record.offset) + self.log[up_to:]


class Worker:
    """Takes records in, in batches, and produces winners again behind `end`."""

    def __init__(self, topic: Topic, end: int = 0, kept: MemoryItemTable | None = None) -> None:
        self.view = View()
        if kept is not None:
            self.view.table = deepcopy(kept)
        self.outcomes: Counter[str] = Counter()
        winners = WinnersAgain(topic.publish, self.outcomes.update, {0: end})
        fields = ItemsView(DIM, MODEL, ("value",))
        parts = self.view.table, self.view.index, self.view.tower
        self._pipeline = ItemsPipeline(fields, *parts, inputs, produce=winners.produce)

    async def take(self, records: Sequence[Record]) -> list[str | None]:
        self.outcomes.clear()
        result = await self._pipeline.run([decode_item(record) for record in records])
        self.outcomes.update(result.outcomes)
        return [None if error is None else str(error.code) for error in result.errors]

    async def state(self) -> State:
        values = await self.view.values()
        records = await self.view.table.read(hash64_each(list(IDS)))
        return {
            item_id: None if record is None else (record.deleted, record.update, values.get(item_id))
            for item_id, record in zip(IDS, records, strict=True)
        }


async def drained(topic: Topic, workers: dict[Worker, int]) -> None:
    """No more writes: the copies end by themselves. `workers`: what each has taken in."""
    for _ in range(6):
        while topic.under_way:
            topic.let_in(0)
        if all(at == len(topic.log) for at in workers.values()):
            return
        for worker, at in workers.items():
            if at < len(topic.log):
                await worker.take(topic.log[at:])
            workers[worker] = len(topic.log)
    raise AssertionError(f"copies without end: {topic.log}")


async def rebuilt(
    topic: Topic, records: Sequence[Record], sizes: Sequence[int], kept: MemoryItemTable | None = None
) -> State:
    """A new view of these records, in batches, or one whose table alone was kept; it writes nothing."""
    worker, at, turn, produced = Worker(topic, end=len(topic.log), kept=kept), 0, 0, topic.produced
    while at < len(records):
        size = sizes[turn % len(sizes)]
        await worker.take(records[at : at + size])
        at, turn = at + size, turn + 1
    assert topic.produced == produced
    return {item: None if each is None or each[0] else each for item, each in (await worker.state()).items()}


writes = st.tuples(
    st.just("write"),
    st.sampled_from(IDS),
    st.sampled_from(["upsert", "upsert", "upsert", "delete", "tombstone"]),
    st.sampled_from([None, 1, 2, 3, 4]),
)
batches = st.tuples(st.just("batch"), st.integers(1, 4), st.sampled_from([True, True, True, False]), st.integers(0, 1))
copies = st.tuples(st.just("let in"), st.integers(0, 5), st.sampled_from([False, False, False, True]), st.just(0))


@settings(max_examples=100)
@given(
    st.lists(st.one_of(writes, writes, batches, batches, copies), max_size=30),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.sampled_from([1, 1, 2]),
)
def test_live_rebuilt_and_compacted_are_the_same(
    steps: list[tuple[str, Any, Any, Any]], sizes: list[int], views: int
) -> None:
    """Also where two views are fed at once."""

    async def check() -> None:
        topic = Topic()
        workers = {Worker(topic): 0 for _ in range(views)}
        for n, (kind, first, second, third) in enumerate(steps):
            if kind == "write" and second == "upsert":
                topic.write(upsert(first, n + 0.5, 0, version=third))
            elif kind == "write":
                topic.write(tombstone(first, 0) if second == "tombstone" else delete(first, 0, version=third))
            elif kind == "batch":
                worker = list(workers)[third % views]
                batch = topic.log[workers[worker] :][:first]
                await worker.take(batch)
                workers[worker] += len(batch) if second else 0  # it died before the commit: all of it comes again
            else:
                topic.let_in(first, twice=second)
        await drained(topic, workers)
        states = [await worker.state() for worker in workers]
        live, *others = [{i: None if e is None or e[0] else e for i, e in state.items()} for state in states]
        assert all(other == live for other in others), topic.log
        for up_to in range(len(topic.log) + 1):
            for gone in (False, True):
                records = topic.compacted(up_to, tombstones_gone=gone)
                assert await rebuilt(topic, records, sizes) == live, (up_to, gone, topic.log)
                kept = [await rebuilt(topic, records, sizes, worker.view.table) for worker in workers]
                assert all(each == live for each in kept), (up_to, gone, topic.log)
                columns = Winners()
                columns.add([decode_item(record) for record in records])
                standing = {i: topic.log[o].value for i, _, o, deleted in named(columns.rows(), IDS) if not deleted}
                assert standing == {i: each[1] for i, each in live.items() if each is not None}

    asyncio.run(check())


async def test_a_lower_version_brings_the_winners_bytes_behind_it() -> None:
    topic = Topic()
    worker = Worker(topic)
    winner = upsert("a", 5, 0, version=5)
    for event in (winner, upsert("b", 1, 0), upsert("a", 3, 0, version=3), upsert("a", 4, 0, version=4)):
        topic.write(event)
    assert await worker.take(topic.log) == [None, None, "stale_version", "stale_version"]
    assert worker.outcomes == {"upserted": 2, "refused": 2, OUTCOME: 1}
    assert topic.under_way == [Outgoing(b"a", winner.raw, ((AFTER, b"3"),), 0)]
    topic.let_in(0)
    assert await worker.take(topic.log[4:]) == [None]
    assert worker.outcomes == {"upserted": 1}
    assert (await worker.view.record("a")).offset == 4
    assert await worker.take(topic.log) == [None] * 5, "delivered again, all of it is passed over"
    assert topic.under_way == []


async def test_a_copy_behind_a_tombstone_brings_the_tombstone_again() -> None:
    topic = Topic()
    worker = Worker(topic)
    topic.write(upsert("a", 5, 0, version=5))
    topic.write(upsert("a", 3, 0, version=3))
    await worker.take(topic.log)
    topic.write(tombstone("a", 0))
    topic.let_in(0)
    assert await worker.take(topic.log[2:]) == [None, None]
    assert worker.outcomes == {"deleted": 1, "superseded": 1, OUTCOME: 1}
    assert topic.under_way == [Outgoing(b"a", None, ((AFTER, b"3"),), 0)]
    topic.let_in(0)
    await worker.take(topic.log[4:])
    assert topic.under_way == []
    assert (await worker.view.record("a")).deleted


async def test_an_update_in_the_same_batch_makes_a_copy_needless() -> None:
    topic = Topic()
    worker = Worker(topic)
    for version in (5, 3, 6):
        topic.write(upsert("a", version, 0, version=version))
    assert await worker.take(topic.log) == [None, "stale_version", None]
    assert topic.under_way == []


async def test_a_copy_of_a_winner_that_fell_behind_does_not_keep_out_what_follows_it() -> None:
    topic = Topic()
    worker = Worker(topic)
    topic.write(upsert("a", 5, 0, version=5))
    topic.write(upsert("a", 3, 0, version=3))
    await worker.take(topic.log)
    topic.write(tombstone("a", 0))
    topic.let_in(0)
    topic.write(upsert("a", 1, 0, version=1))  # a reader of nothing but the copy would refuse it
    await worker.take(topic.log[2:])
    assert [copy.headers for copy in topic.under_way] == [((AFTER, b"4"),)]


@pytest.mark.parametrize("at_once", [True, False])
async def test_two_views_that_are_fed_at_once_answer_an_update_once_each(at_once: bool) -> None:
    """As while workers are replaced after another bundle was activated. Copies are taken in together, or one by one."""
    topic = Topic()
    workers = [Worker(topic), Worker(topic)]
    winner = upsert("a", 5, 0, version=5)
    topic.write(winner)
    topic.write(upsert("a", 3, 0, version=3))
    for worker in workers:
        assert await worker.take(topic.log) == [None, "stale_version"]
    topic.let_in(0)
    topic.let_in(0)
    for worker in workers:
        for records in [topic.log[2:]] if at_once else [topic.log[2:3], topic.log[3:]]:
            await worker.take(records)
    assert topic.under_way == [], "nobody answers the other's copy"
    assert topic.log[-1].value == winner.raw
    for worker in workers:
        assert (await worker.view.record("a")).offset == 3, "compaction leaves the second copy"
        left = topic.compacted(4, tombstones_gone=False)
        assert await rebuilt(topic, left, [1], worker.view.table) == await worker.state(), "though the index was lost"


async def test_what_came_before_a_views_time_is_left_to_others() -> None:
    topic = Topic()
    for version in (5, 3):
        topic.write(upsert("a", version, 0, version=version))
    assert await Worker(topic, end=2).take(topic.log) == [None, "stale_version"]
    assert topic.under_way == []
    await Worker(topic, end=1).take(topic.log)
    assert len(topic.under_way) == 1


@pytest.mark.parametrize(
    ("value", "after"), [(b"0", 0), (b"123456789012345678", 123456789012345678), (b"1" * 19, None), (b"-1", None),
                         (b"", None), (None, None), (b"\xff", None)]
)  # fmt: skip
def test_the_header(value: bytes | None, after: int | None) -> None:
    assert copy_after([("traceparent", b"1"), (AFTER, value)]) == after


def test_an_event_with_the_header_is_a_copy() -> None:
    record = Record(b"a", upsert("a", 1, 0).raw, ((AFTER, b"7"),), 0, 9)
    assert decode_item(record).after == 7
    assert decode_item(replace(record, headers=())).after is None
