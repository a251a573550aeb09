"""A reconciliation while the topic, the table and the index change under it."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest

from schemas import codec
from schemas.items import ItemUpdate
from schemas.records import ItemRecord
from tests.integration.reconciled import COLLECTION, View, fill, found, view
from tests.unit.test_items_in_memory import DIM
from workers.index.memory import MemoryItemIndex
from workers.pipelines.items import ItemEvent
from workers.ports import IndexRows, UInt64
from workers.reconcile import run as running
from workers.reconcile.examine import Examiner
from workers.reconcile.run import Options, Reconciliation
from workers.reconcile.topic import open_topic
from workers.stores.item_memory import MemoryItemTable

__all__ = ["view"]  # a fixture

UPDATE = codec.encode_event(ItemUpdate(item_id="gone", op="upsert", timestamp_ms=1, attributes={"value": 1}))
UNSUPPORTED = ItemRecord("gone", 0, 1, history_vector=np.full(DIM, -1, dtype="<f4").tobytes(), update=UPDATE)


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

    async def write(
        self, records: Sequence[ItemRecord], expected: Sequence[int | None], intent: str | None = None
    ) -> list[bool]:
        self.reached.set()
        await self.released.wait()
        return await super().write(records, expected, intent)


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
        report = await Reconciliation(parts, topic, view.markers, Options(repair=True), say).run()
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


async def orphan(view: View, record: ItemRecord | None) -> None:
    """An item of no event: its row, and its record where there is one."""
    await fill(view)
    if record is not None:
        view.put(record, "gone")
    await view.row("gone", 1)


def before_mending(monkeypatch: pytest.MonkeyPatch, first: Callable[[], Awaitable[None]]) -> None:
    """Something happens once all is confirmed, and before anything is mended."""
    mend = Reconciliation._mend

    async def later(self: Reconciliation, examiner: Examiner, hashes: UInt64) -> UInt64:
        await first()
        return await mend(self, examiner, hashes)

    monkeypatch.setattr(Reconciliation, "_mend", later)


@pytest.mark.parametrize("record", [UNSUPPORTED, None], ids=["record and row", "row alone"])
async def test_an_item_that_comes_back_before_it_is_mended_stays(
    view: View, monkeypatch: pytest.MonkeyPatch, record: ItemRecord | None
) -> None:
    await orphan(view, record)

    async def comes_back() -> None:
        await view.send("gone", 7)
        await view.take()

    before_mending(monkeypatch, comes_back)
    report = await view.reconcile(repair=True)
    assert (found(report), report.left) == ({"orphaned": 1}, 0)
    assert (await view.values())["gone"] == 7
    await view.assert_clean()


@pytest.mark.parametrize("record", [UNSUPPORTED, None], ids=["record and row", "row alone"])
async def test_an_item_that_is_coming_back_while_it_is_mended_gets_its_row_again(
    view: View, monkeypatch: pytest.MonkeyPatch, record: ItemRecord | None
) -> None:
    """The worker writes the vector; we delete the row; then the worker writes the record."""
    await orphan(view, record)
    table = Paused(view.table)
    worker: list[asyncio.Task[Any]] = []

    async def is_coming_back() -> None:
        update = ItemUpdate(item_id="gone", op="upsert", timestamp_ms=1, attributes={"value": 7})
        event = ItemEvent("gone", update, codec.encode_event(update), 0, await view.send("gone", 7))
        worker.append(asyncio.create_task(view.pipeline(table).run([event])))
        await table.reached.wait()
        assert (await view.values())["gone"] == 7

    def say(what: str, part: float | None) -> None:
        if what == "waiting for the items worker" and not table.released.is_set():
            assert "gone" not in view.index._vectors
            table.released.set()
            worker.append(asyncio.create_task(view.take()))

    before_mending(monkeypatch, is_coming_back)
    async with open_topic(view.settings, COLLECTION) as topic:
        report = await Reconciliation(view.parts(), topic, view.markers, Options(repair=True), say).run()
    table.released.set()
    await asyncio.gather(*worker)
    assert (found(report), report.left) == ({"orphaned": 1}, 0)
    assert (await view.values())["gone"] == 7
    await view.assert_clean()


async def test_a_record_from_behind_the_end_of_the_topic_is_orphaned(view: View) -> None:
    """Of a topic that was there before this one."""
    await orphan(view, dataclasses.replace(UNSUPPORTED, offset=1000))
    report = await view.reconcile(repair=True)
    assert (found(report), report.repaired, report.left) == ({"orphaned": 1}, 1, 0)
    assert "gone" not in await view.values()
