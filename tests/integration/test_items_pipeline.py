"""Item updates through the pipeline into real Redis and Milvus, and what recall sees of them."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from schemas import codec
from schemas.items import ItemUpdate
from schemas.records import ItemRecord, hash64, hash64_each
from workers.errors import DependencyError, InvalidInput
from workers.index.milvus import MilvusItemIndex
from workers.index.milvus_collection import open_index, prepare_index
from workers.index.schema import Collection
from workers.pipelines.items import ItemEvent, ItemsPipeline, ItemsView
from workers.ports import Float32, IndexRows
from workers.settings import Settings
from workers.stores import keys
from workers.stores.connect import connect
from workers.stores.item_follower import ItemFollower
from workers.stores.item_redis import RedisItemTable
from workers.stores.vector_cache import VectorCache

DIM = 16
MODEL = "m1"
SEEN_WITHIN_S = 20.0
LAST_ROW = "the last row"


def angle_inputs(item_ids: Sequence[str], attributes: Sequence[Mapping[str, Any]]) -> dict[str, NDArray[Any]]:
    return {"angle": np.array([row.get("angle", 0.0) for row in attributes], dtype=np.float32)}


class AngleTower:
    """item_embedding points to `angle`; history_embedding is twice that. No angle above 1000 can be embedded."""

    async def embed(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, Float32]:
        angle = np.where(inputs["angle"] > 1000, np.float32(np.nan), inputs["angle"])
        item = np.zeros((len(angle), DIM), dtype=np.float32)
        item[:, 0], item[:, 1] = np.cos(angle), np.sin(angle)
        return {"item_embedding": item, "history_embedding": 2 * item}

    async def close(self) -> None:
        pass


def towards(angle: float) -> Float32:
    vector = np.zeros((1, DIM), dtype=np.float32)
    vector[0, :2] = np.cos(np.float32(angle)), np.sin(np.float32(angle))
    return vector


@dataclass(frozen=True)
class View:
    """One view, as the items worker writes it (index, table) and as the recall worker reads it (reader, cache)."""

    pipeline: ItemsPipeline
    table: RedisItemTable
    index: MilvusItemIndex
    reader: MilvusItemIndex
    cache: VectorCache
    follower: ItemFollower
    settings: Settings
    collection: str

    async def codes(self, *events: ItemEvent) -> list[str | None]:
        errors: list[InvalidInput | None] = (await self.pipeline.run(events)).errors
        return [None if error is None else str(error.code) for error in errors]

    async def nearest(self, angle: float, k: int = 5) -> list[str]:
        return (await self.reader.search(towards(angle), k)).item_ids[0]

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        """Ask until it holds."""
        end_s = time.monotonic() + SEEN_WITHIN_S
        while not await condition():
            assert time.monotonic() < end_s, "not seen in time"
            await asyncio.sleep(0.005)

    async def until_nearest(self, angle: float, item_id: str) -> None:
        async def check() -> bool:
            return (await self.nearest(angle, 1)) == [item_id]

        await self.until(check)

    async def until_found(self, *item_ids: str) -> None:
        async def check() -> bool:
            return set(item_ids) <= set(await self.nearest(0.0, 1000))

        await self.until(check)

    async def until_gone(self, *item_ids: str) -> None:
        async def check() -> bool:
            return not set(item_ids) & set(await self.nearest(0.0, 1000))

        await self.until(check)


@pytest.fixture(scope="module")
def shared(module_namespace: str) -> Collection:
    """One collection for the module, because making one takes seconds; every test leaves it empty."""
    return Collection(f"{module_namespace}_pipeline", DIM, "IP", MODEL)


@pytest.fixture
async def view(settings: Settings, shared: Collection) -> AsyncIterator[View]:
    generous = settings.model_copy(update={"index_timeout_ms": 5000, "store_timeout_ms": 5000})
    index = await prepare_index(generous, shared, 100)
    reader = await open_index(generous, shared)
    table = RedisItemTable(connect(generous), generous, shared.name, DIM)
    cache = VectorCache(table, DIM)
    follower = ItemFollower(table, cache)
    await follower.refresh()
    fields = ItemsView(DIM, MODEL, ("angle", "genres"))
    pipeline = ItemsPipeline(fields, table, index, AngleTower(), angle_inputs)
    view = View(pipeline, table, index, reader, cache, follower, generous, shared.name)
    yield view
    # A search may be behind what the test wrote: once it finds a row that was written last, it finds all of them.
    await index.upsert(IndexRows([LAST_ROW], towards(0.0), [{}]))
    await view.until_found(LAST_ROW)
    await index.delete(await view.nearest(0.0, 1000))

    async def empty() -> bool:
        return not await view.nearest(0.0)

    await view.until(empty)
    for closing in (index, reader, table):
        await closing.close()


def upsert(item_id: str, angle: float, offset: int, partition: int = 0, **fields: Any) -> ItemEvent:
    attributes = {"angle": angle, "title": item_id, "genres": ["Drama"]}
    update = ItemUpdate(item_id=item_id, op="upsert", timestamp_ms=1, attributes=attributes, **fields)
    return ItemEvent(item_id, update, codec.encode_event(update), partition, offset)


def delete(item_id: str, offset: int) -> ItemEvent:
    update = ItemUpdate(item_id=item_id, op="delete", timestamp_ms=1)
    return ItemEvent(item_id, update, codec.encode_event(update), 0, offset)


def tombstone(item_id: str, offset: int) -> ItemEvent:
    return ItemEvent(item_id, None, b"", 0, offset)


def hashes(*names: str) -> NDArray[np.uint64]:
    return np.array([hash64(name) for name in names], dtype=np.uint64)


async def test_an_upsert_is_retrievable_with_its_record_and_history_vector(view: View) -> None:
    event = upsert("a", 1.0, 7, version=2)
    assert await view.codes(event, upsert("b", 2.0, 8)) == [None, None]
    await view.until_nearest(1.0, "a")
    assert await view.nearest(2.0) == ["b", "a"]
    [record] = await view.table.read(hash64_each(["a"]))
    assert record == ItemRecord(
        "a", 0, 7, version=2, history_vector=(2 * towards(1.0)).astype("<f4").tobytes(), update=event.raw
    )
    assert np.allclose((await view.cache.vectors(hashes("a")[None, :]))[0][0], 2 * towards(1.0))


async def test_an_update_moves_the_item_everywhere(view: View) -> None:
    await view.codes(upsert("a", 1.0, 0), upsert("b", 2.0, 1))
    await view.until_nearest(1.0, "a")
    await view.cache.vectors(hashes("a", "b")[None, :])
    await view.codes(upsert("a", 3.0, 2))
    await view.until_nearest(3.0, "a")
    await view.follower.refresh()
    assert np.allclose(
        (await view.cache.vectors(hashes("a", "b")[None, :]))[0][0], 2 * np.vstack([towards(3), towards(2)])
    )


@pytest.mark.parametrize("kind", [delete, tombstone])
async def test_a_deleted_item_is_gone(view: View, kind: Callable[[str, int], ItemEvent]) -> None:
    await view.codes(upsert("a", 1.0, 0), upsert("b", 2.0, 1))
    await view.until_nearest(1.0, "a")
    gone = kind("a", 2)
    assert await view.codes(gone) == [None]
    await view.follower.refresh()
    assert view.cache.deleted(hashes("a", "b")).tolist() == [True, False]  # at once, before the index shows it
    await view.until_gone("a")
    assert await view.nearest(1.0) == ["b"]
    [record] = await view.table.read(hash64_each(["a"]))
    assert record is not None
    assert (record.deleted, record.update, record.history_vector) == (True, gone.raw, b"")
    assert not (await view.cache.vectors(hashes("a")[None, :]))[0].any()


async def test_redelivery_and_an_earlier_offset_change_nothing(view: View) -> None:
    log = [upsert("a", 1.0, 0), upsert("b", 2.0, 1), delete("b", 2), upsert("a", 1.5, 3)]
    assert await view.codes(*log) == [None] * 4
    assert await view.codes(*log) == [None] * 4
    assert await view.codes(log[0]) == [None]
    assert await view.codes(upsert("b", 2.0, 1)) == [None]
    await view.until_nearest(1.5, "a")
    await view.until_gone("b")
    assert await view.nearest(1.5) == ["a"]
    records = await view.table.read(hash64_each(["a", "b"]))
    assert [record and (record.offset, record.deleted) for record in records] == [(3, False), (2, True)]


async def test_what_a_crash_left_half_done_is_completed_by_redelivery(view: View) -> None:
    event = upsert("a", 1.0, 0)
    cursor = (await view.table.changes(None)).cursor
    client = connect(view.settings)
    record = ItemRecord("a", 0, 0, history_vector=bytes(4 * DIM), update=event.raw)
    key = keys.item_record(view.settings, view.collection, hash64("a"))
    await client.set(key, record.encode())  # written, but not announced, and the vector of another life
    assert await view.codes(event) == [None]
    await view.until_nearest(1.0, "a")
    changes = await view.table.changes(cursor)
    assert changes.hashes.tolist() == hashes("a").tolist()
    assert ItemRecord.decode(await client.get(key)).history_vector == (2 * towards(1.0)).tobytes()
    await client.aclose()


async def test_stale_version_and_wrong_partition_are_dead_letters(view: View) -> None:
    assert await view.codes(upsert("a", 1.0, 5, version=3)) == [None]
    assert await view.codes(
        upsert("a", 2.0, 6, version=2), upsert("a", 2.0, 900, partition=1), upsert("b", 2.0, 7)
    ) == ["stale_version", "wrong_partition", None]
    await view.until_nearest(2.0, "b")
    assert await view.nearest(1.0) == ["a", "b"]


async def test_two_ids_with_one_hash_cannot_both_be_stored(view: View) -> None:
    client = connect(view.settings)
    standing = ItemRecord("another id", 0, 1)
    await client.set(keys.item_record(view.settings, view.collection, hash64("a")), standing.encode())
    assert await view.codes(upsert("a", 1.0, 5), upsert("b", 2.0, 6)) == ["hash_collision", None]
    assert await view.table.read(hash64_each(["a"])) == [standing]
    await client.aclose()


async def test_a_record_that_cannot_be_read_is_never_overwritten(view: View) -> None:
    client = connect(view.settings)
    key = keys.item_record(view.settings, view.collection, hash64("a"))
    newer = b"\x63" + bytes(80)
    await client.set(key, newer)
    assert await view.codes(upsert("a", 1.0, 5), upsert("b", 2.0, 6)) == ["record_unreadable", None]
    assert await client.get(key) == newer
    await client.aclose()


async def test_a_key_of_another_type_keeps_nobody_else_waiting(view: View) -> None:
    client = connect(view.settings)
    key = keys.item_record(view.settings, view.collection, hash64("a"))
    await client.rpush(key, "x")
    assert await view.codes(upsert("a", 1.0, 5), upsert("b", 2.0, 6)) == ["record_unreadable", None]
    assert await client.lrange(key, 0, -1) == [b"x"]
    await view.until_nearest(2.0, "b")
    await client.delete(key)
    assert await view.codes(upsert("a", 1.0, 5)) == [None]
    await client.aclose()


async def test_rows_that_are_refused_do_not_take_others_with_them(view: View) -> None:
    long_id = "x" * 300  # no event's id is that long; the index refuses it as it would
    events = [upsert(f"item {n}", n / 10, n) for n in range(20)]
    events[3] = upsert(long_id, 1.0, 3)
    events[11] = upsert("item 11", 2000.0, 11)
    events[15] = upsert("item 15", 0.0, 15, embedding=[1.0] * (DIM - 1), embedding_model=MODEL)
    codes = await view.codes(*events)
    assert {n: code for n, code in enumerate(codes) if code} == {
        3: "index_refused",
        11: "tower_output",
        15: "invalid_embedding",
    }
    good = [event.item_id for n, event in enumerate(events) if n not in {3, 11, 15}]
    await view.until_found(*good)
    assert await view.table.read(hash64_each(["item 11", "item 15", long_id])) == [None] * 3


async def test_large_values_do_not_make_a_row_too_large(view: View) -> None:
    event = upsert("a", 1.0, 0)
    assert event.update is not None
    attributes = {"angle": 1.0, "genres": ["x" * 100] * 2000, "text": "y" * 200_000}
    assert await view.codes(replace(event, update=ItemUpdate(
        item_id="a", op="upsert", timestamp_ms=1, attributes=attributes
    ))) == [None]  # fmt: skip
    await view.until_nearest(1.0, "a")


async def test_hostile_ids(view: View) -> None:
    names = ["it's", 'say "x"', "back\\slash", "new\nline", "nul\0", "🎬", "{x}", "é" * 128]
    events = [upsert(name, n / 2, n) for n, name in enumerate(names)]
    assert await view.codes(*events) == [None] * len(names)
    await view.until_found(*names)
    assert await view.codes(*(tombstone(name, 100 + n) for n, name in enumerate(names))) == [None] * len(names)
    await view.until_gone(*names)


async def test_two_workers_at_once_leave_the_later_offset(view: View, shared: Collection) -> None:
    index = await open_index(view.settings, shared)
    table = RedisItemTable(connect(view.settings), view.settings, shared.name, DIM)
    fields = ItemsView(DIM, MODEL, ("angle",))
    other = ItemsPipeline(fields, table, index, AngleTower(), angle_inputs)
    for turn in range(10):
        offset = 10 * turn
        older = [upsert(f"item {n}", 0.1 * n, offset + n) for n in range(5)]
        newer = [upsert(f"item {n}", 3.0, offset + 5 + n) for n in range(5)]
        await asyncio.gather(other.run(older), view.pipeline.run(newer))
        names = [event.item_id for event in newer]
        records = await view.table.read(hash64_each(names))
        assert [record and record.offset for record in records] == [offset + 5 + n for n in range(5)]
        await view.codes(upsert(f"last {turn}", 3.0, turn))
        await view.until_found(f"last {turn}")  # whatever was written before it is seen with it
        hits = await view.reader.search(towards(3.0), 100)
        assert len(hits.scores[0]) == 5 + turn + 1
        assert (hits.scores[0] > 0.999).all()
    await index.close()
    await table.close()


async def test_an_outage_is_an_error_to_retry_and_nothing_is_half_done_after_it(view: View, stack: Any) -> None:
    events = [upsert("a", 1.0, 0), tombstone("b", 1)]
    broken = RedisItemTable(connect(stack.settings(redis_url="redis://127.0.0.1:1")), view.settings, "x", DIM)
    pipeline = ItemsPipeline(ItemsView(DIM, MODEL, ()), broken, view.index, AngleTower(), angle_inputs)
    with pytest.raises(DependencyError):
        await pipeline.run(events)
    assert await view.codes(*events) == [None, None]
    await view.until_nearest(1.0, "a")
