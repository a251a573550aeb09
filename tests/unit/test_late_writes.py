"""A vector that comes late, from a worker that was fenced off and has died, is found and mended by the owner."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from schemas.records import ItemRecord, hash64, hash64_each
from tests.unit.test_items_in_memory import DIM, MODEL, PickyIndex, ScaleTower, inputs, tombstone, upsert
from workers.errors import DependencyUnavailable
from workers.index.schema import Collection
from workers.late_writes import BATCH_TAKES_MS, INTENT_LIVES_MS, OUTCOME, LateWrites
from workers.partitioner import partition_of
from workers.pipelines.item_order import ItemEvent
from workers.pipelines.items import ItemsResult, ItemsView
from workers.ports import IndexRows, ItemIndex
from workers.reconcile.examine import Parts
from workers.stores.item_memory import MemoryItemTable

VIEW = ItemsView(DIM, MODEL, ("value",))
STALE, NEWER = upsert("a", 1, 0), upsert("a", 2, 1)


class Frozen:
    """An index as a worker sees it that is frozen before its first write."""

    def __init__(self, index: ItemIndex) -> None:
        self._index = index
        self.reached, self.thawed = asyncio.Event(), asyncio.Event()
        self.writes_left = 99

    async def upsert(self, rows: IndexRows) -> None:
        self.reached.set()
        await self.thawed.wait()
        if not self.writes_left:
            raise DependencyUnavailable("milvus", "down")
        self.writes_left -= 1
        await self._index.upsert(rows)

    async def delete(self, item_ids: Sequence[str]) -> None:
        await self._index.delete(item_ids)


class Scene:
    """A view, its owner, and a zombie that shares it."""

    def __init__(self) -> None:
        self.table = MemoryItemTable(DIM)
        self.index = PickyIndex(Collection("items", DIM, "IP", MODEL))
        self.frozen = Frozen(self.index)
        self.assigned = {0}
        self.counted: Counter[str] = Counter()
        self.now_ms = 0
        self.parts = parts = Parts(VIEW, "items", "IP", self.table, self.index, ScaleTower(), inputs)
        self.owner = parts.pipeline()
        self.zombie = parts.pipeline(index=self.frozen)  # type: ignore[arg-type]
        self.late = LateWrites(parts, self.owner, lambda: self.assigned, self.counted.update, lambda: self.now_ms)
        self._work: asyncio.Task[object] | None = None

    async def freeze(self, *events: ItemEvent) -> None:
        """The zombie stands before its write into the index."""
        self._work = asyncio.create_task(self.zombie.run(events))
        await self.frozen.reached.wait()

    async def thaw(self, *, dies: bool) -> None:
        """It writes into the index; then it dies, or goes on to the record."""
        assert self._work is not None
        if not dies:
            self.frozen.thawed.set()
            await self._work
            return
        self.table.write = _dies  # type: ignore[method-assign]
        self.frozen.thawed.set()
        with pytest.raises(ConnectionAbortedError):
            await self._work
        del self.table.write  # type: ignore[method-assign]

    async def values(self) -> dict[str, float]:
        rows = await self.index.rows(hash64_each(["a", "b"]))
        return dict(zip(rows.item_ids, rows.vectors[:, 0].tolist(), strict=True))


async def _dies(*_: object) -> list[bool]:
    raise ConnectionAbortedError


async def test_a_late_vector_is_mended_by_the_owner() -> None:
    scene = Scene()
    await scene.freeze(STALE)
    await scene.owner.run([STALE])
    await scene.owner.run([NEWER])
    await scene.late.look()
    assert scene.counted == {}
    await scene.thaw(dies=True)
    assert await scene.values() == {"a": 1}, "the record is of the newer one: nothing else would ever mend it"
    await scene.late.look()
    assert await scene.values() == {"a": 2}
    assert scene.counted == {OUTCOME: 1}
    await scene.late.look()
    assert scene.counted == {OUTCOME: 1}


async def test_one_that_was_overtaken_and_then_failed_leaves_word_though_it_comes_again() -> None:
    scene = Scene()
    await scene.freeze(STALE)
    await scene.owner.run([NEWER])
    scene.frozen.writes_left = 1
    with pytest.raises(DependencyUnavailable):
        await scene.thaw(dies=False)
    scene.frozen.writes_left = 99
    await scene.zombie.run([STALE])  # which is superseded: it writes nothing
    assert await scene.values() == {"a": 1}
    await scene.late.look()
    assert await scene.values() == {"a": 2}


async def test_a_row_that_comes_late_for_a_deleted_item_goes_again() -> None:
    scene = Scene()
    await scene.freeze(STALE)
    await scene.owner.run([tombstone("a", 1)])
    await scene.thaw(dies=True)
    assert await scene.values() == {"a": 1}
    await scene.late.look()
    assert await scene.values() == {}


async def test_only_the_owner_mends() -> None:
    scene = Scene()
    await scene.freeze(STALE)
    await scene.owner.run([NEWER])
    await scene.thaw(dies=True)
    scene.assigned = {1, 2}
    await scene.late.look()
    assert await scene.values() == {"a": 1}
    scene.assigned = {0}
    await scene.late.look()
    assert await scene.values() == {"a": 2}


async def test_a_row_of_a_misrouted_update_goes_again_where_the_item_lives() -> None:
    """It was read before there was a record, so that its partition seemed to be the item's."""
    scene = Scene()
    await scene.freeze(upsert("a", 9, 7, partition=1))
    await scene.owner.run([STALE, tombstone("a", 1)])
    await scene.thaw(dies=True)
    [intent] = [each for each in (await scene.table.intents()).values() if each.partitions.tolist() == [1]]
    scene.now_ms = intent.since_ms + BATCH_TAKES_MS
    await scene.late.look()
    assert await scene.values() == {"a": 9}, "he may be at it still"
    scene.now_ms += 1
    await scene.late.look()
    assert await scene.values() == {}


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("gone", [False, True])
async def test_an_item_that_moves_meanwhile_is_what_its_new_partition_says(slow: bool, gone: bool) -> None:
    """Its new owner stands between vector and record, for longer than a batch takes or not."""
    scene = Scene()
    usual = partition_of(b"a", 2)
    parts = replace(scene.parts, view=replace(VIEW, partitions=2))
    old, new = parts.pipeline(), parts.pipeline(index=scene.frozen)  # type: ignore[arg-type]
    looks = [
        LateWrites(parts, pipeline, lambda owns=owns: {owns}, scene.counted.update, lambda: scene.now_ms)
        for pipeline, owns in ((old, 1 - usual), (new, usual))
    ]
    await old.run([upsert("a", 1, 5, partition=1 - usual)])
    write, written, go_on = scene.table.write, asyncio.Event(), asyncio.Event()

    async def waits(records: Sequence[ItemRecord], expected: Sequence[int | None], intent: str | None) -> list[bool]:
        if records and records[0].partition == usual and not written.is_set():
            written.set()
            await go_on.wait()
        return await write(records, expected, intent)

    scene.table.write = waits  # type: ignore[method-assign]
    scene.frozen.thawed.set()
    moved = tombstone("a", 3, partition=usual) if gone else upsert("a", 2, 3, partition=usual)
    moving = asyncio.create_task(new.run([moved]))
    await written.wait()
    [intent] = (await scene.table.intents()).values()
    scene.now_ms = intent.since_ms + (BATCH_TAKES_MS + 1 if slow else 0)
    await looks[0].look()
    assert scene.counted == ({OUTCOME: 1} if slow else {})
    go_on.set()
    await moving
    scene.now_ms = int(time.time() * 1000) + BATCH_TAKES_MS + 1
    for look in looks:
        await look.look()
    assert await scene.values() == ({} if gone else {"a": 2})
    [record] = await scene.table.read(hash64_each(["a"]))
    assert record is not None
    assert (record.partition, record.deleted) == (usual, gone)


async def test_once_more_when_the_zombie_has_taken_its_intent_back() -> None:
    scene = Scene()
    await scene.freeze(STALE)
    await scene.owner.run([STALE])
    await scene.late.look()
    await scene.thaw(dies=False)  # the same event stands: to the zombie that is no conflict
    assert await scene.table.intents() == {}
    await scene.index.upsert(IndexRows(["a"], np.full((1, DIM), 7, dtype=np.float32), [{"value": 7}]))
    await scene.late.look()
    assert await scene.values() == {"a": 1}
    await scene.index.upsert(IndexRows(["a"], np.full((1, DIM), 7, dtype=np.float32), [{"value": 7}]))
    await scene.late.look()
    assert await scene.values() == {"a": 7}, "that was the last time"


async def test_a_zombie_that_was_overtaken_leaves_word() -> None:
    scene = Scene()
    await scene.freeze(STALE, upsert("b", 5, 3))
    await scene.owner.run([NEWER])
    before = scene.zombie.intent
    await scene.thaw(dies=False)
    assert await scene.values() == {"a": 2, "b": 5}
    assert {name: set(each.hashes.tolist()) for name, each in (await scene.table.intents()).items()} == {
        before: {hash64("a"), hash64("b")}
    }
    assert scene.zombie.intent != before
    await scene.zombie.run([upsert("a", 3, 4)])
    assert set(await scene.table.intents()) == {before}


async def test_an_intent_ends() -> None:
    scene = Scene()
    await scene.freeze(STALE)
    [intent] = (await scene.table.intents()).values()
    scene.now_ms = intent.since_ms + INTENT_LIVES_MS
    await scene.late.look()
    assert len(await scene.table.intents()) == 1
    scene.now_ms += 1
    await scene.late.look()
    assert await scene.table.intents() == {}
    await scene.thaw(dies=True)


async def test_a_batch_that_is_under_way_is_no_late_write() -> None:
    """The owner has written a newer vector, and not yet its record: what the record says is not put over it."""
    scene = Scene()
    await scene.owner.run([STALE])
    await scene.table.read_to_write(hash64_each(["a"]), [0], "of somebody who died")
    reached, released, asked = asyncio.Event(), asyncio.Event(), asyncio.Event()
    write, run = scene.table.write, scene.owner.run

    async def waits(records: Sequence[ItemRecord], expected: Sequence[int | None], intent: str | None) -> list[bool]:
        reached.set()
        await released.wait()
        return await write(records, expected, intent)

    async def mends(events: Sequence[ItemEvent]) -> ItemsResult:
        asked.set()
        return await run(events)

    scene.table.write = waits  # type: ignore[method-assign]
    batch = asyncio.create_task(run([NEWER]))
    await reached.wait()
    scene.owner.run = mends  # type: ignore[method-assign]
    looking = asyncio.create_task(scene.late.look())
    await asked.wait()
    released.set()
    await asyncio.gather(batch, looking)
    assert await scene.values() == {"a": 2}
