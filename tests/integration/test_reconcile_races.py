"""A reconciliation while the topic, the table and the index change under it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from schemas import codec
from schemas.items import ItemUpdate
from schemas.records import ItemRecord
from tests.integration.reconciled import COLLECTION, View, fill, found, view
from tests.unit.test_items_in_memory import DIM
from workers.index.memory import MemoryItemIndex
from workers.pipelines.items import ItemEvent
from workers.ports import IndexRows
from workers.reconcile import run as running
from workers.reconcile.run import Options, Reconciliation
from workers.reconcile.topic import open_topic
from workers.stores.item_memory import MemoryItemTable

__all__ = ["view"]  # a fixture


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
