"""What every item table does: Redis, a Redis Cluster, memory."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial as partial_of

import numpy as np
import pytest

from schemas.records import ItemRecord, hash64, hash64_each
from tests.conftest import PATIENT_MS
from workers.errors import DependencyError, RowRefused
from workers.ports import ItemTable, UInt64
from workers.settings import Settings, load_settings
from workers.stores import item_feed, item_redis, keys
from workers.stores.connect import connect
from workers.stores.item_memory import MemoryItemTable
from workers.stores.item_redis import RedisItemTable
from workers.stores.markers_redis import RedisMarkers

DIM = 8
COLLECTION = "items_v1"
Complete = Callable[[], Awaitable[None]]
HOSTILE = ["a{b}c", "}{", "quote'\"", "new\nline", "nul\0", "émoji 🎬", "x" * 256, " ", "*?[a-z]", "\\"]


@pytest.fixture(params=["redis", "cluster"])
def redis_settings(request: pytest.FixtureRequest, namespace: str) -> Settings:
    if request.param == "cluster":
        url = request.getfixturevalue("redis_cluster_url")
        return load_settings(redis_url=url, redis_cluster=True, namespace=namespace, store_timeout_ms=PATIENT_MS)
    return request.getfixturevalue("stack").settings(namespace=namespace, store_timeout_ms=PATIENT_MS)


@pytest.fixture(params=["memory", "redis", "cluster"])
async def partial(request: pytest.FixtureRequest, namespace: str) -> AsyncIterator[tuple[ItemTable, Complete]]:
    """A table that does not hold all that Kafka retains, and what makes it complete."""
    if request.param == "memory":
        memory = MemoryItemTable(DIM, whole=False)

        async def complete_memory() -> None:
            memory.whole = True

        yield memory, complete_memory
        return
    settings = request.getfixturevalue("stack").settings(namespace=namespace, store_timeout_ms=PATIENT_MS)
    if request.param == "cluster":
        url = request.getfixturevalue("redis_cluster_url")
        settings = load_settings(redis_url=url, redis_cluster=True, namespace=namespace, store_timeout_ms=PATIENT_MS)
    table = RedisItemTable(connect(settings), settings, COLLECTION, DIM)
    yield table, partial_of(mark_all, settings)
    await table.close()


async def mark_all(settings: Settings) -> None:
    """As a worker of the view does when it has read everything."""
    client = connect(settings)
    markers = RedisMarkers(client, settings, keys.items_group(COLLECTION))
    await markers.open(2)
    for partition in range(2):
        assert await markers.mark(partition, "")
    await client.aclose()


@pytest.fixture
async def table(partial: tuple[ItemTable, Complete]) -> ItemTable:
    table, complete = partial
    await complete()
    return table


def item(name: str, offset: int = 0, *, value: float = 1.0, partition: int = 0, deleted: bool = False) -> ItemRecord:
    vector = b"" if deleted else np.full(DIM, value, dtype="<f4").tobytes()
    return ItemRecord(
        name, partition, offset, deleted, version=3, history_vector=vector, update=b'{"bytes": "as they came"}'
    )


def stood(*offsets: int | None) -> list[ItemRecord | None]:
    """What was read before: in partition 0, whatever the item."""
    return [None if offset is None else item("whatever", offset) for offset in offsets]


def hashes(*names: str) -> UInt64:
    return np.array([hash64(name) for name in names], dtype=np.uint64)


async def test_reads_what_was_written_in_the_order_asked(table: ItemTable) -> None:
    records = [item(f"item {n}", n, value=n) for n in range(300)]
    assert await table.write(records, [None] * 300) == [True] * 300
    asked = ["nobody", "item 7", "item 299", "item 7", "item 0"]
    assert await table.read(hash64_each(asked)) == [None, records[7], records[299], records[7], records[0]]


async def test_nothing_is_answered_without_the_backend(table: ItemTable) -> None:
    assert await table.read(hash64_each([])) == []
    assert await table.write([], []) == []
    vectors, known, _ = await table.vectors(hashes())
    assert vectors.shape == (0, DIM)
    assert known.shape == (0,)


async def test_hostile_ids(table: ItemTable) -> None:
    records = [item(name, n, value=n) for n, name in enumerate(HOSTILE)]
    assert all(await table.write(records, [None] * len(records)))
    assert await table.read(hash64_each(HOSTILE)) == records
    vectors, known, _ = await table.vectors(hashes(*HOSTILE))
    assert known.all()
    assert vectors[:, 0].tolist() == list(range(len(HOSTILE)))


async def test_a_write_needs_the_record_that_was_read(table: ItemTable) -> None:
    assert await table.write([item("a", 5)], [None]) == [True]
    assert await table.write([item("a", 7)], [None]) == [False]
    assert await table.write([item("a", 7)], stood(4)) == [False]
    assert await table.write([item("a", 7, partition=1)], [item("a", 5, partition=1)]) == [False]
    assert await table.read(hash64_each(["a"])) == [item("a", 5)]
    assert await table.write([item("a", 7)], stood(5)) == [True]
    assert await table.write([item("b", 9), item("a", 6), item("c", 9)], stood(None, 5, None)) == [True, False, True]
    assert await table.read(hash64_each(["a"])) == [item("a", 7)]


@pytest.mark.parametrize("offset", [0, 255, 256, 2**32 - 1, 2**32, 2**53 + 1, 2**62])
async def test_offsets_of_every_size(table: ItemTable, offset: int) -> None:
    assert await table.write([item("a", offset)], [None]) == [True]
    assert await table.write([item("a", offset + 1)], stood(offset + 1)) == [False]
    assert await table.write([item("a", offset + 1)], stood(offset)) == [True]
    assert (await table.read(hash64_each(["a"])))[0] == item("a", offset + 1)


async def test_the_same_write_again_is_no_conflict(table: ItemTable) -> None:
    assert await table.write([item("a", 5)], [None]) == [True]
    assert await table.write([item("a", 5)], [None]) == [True]
    assert await table.write([item("a", 5)], stood(5)) == [True]


async def test_vectors_of_live_items_only(table: ItemTable) -> None:
    await table.write([item("a", 1, value=2), item("b", 2, deleted=True), item("c", 3, value=4)], [None] * 3)
    vectors, known, _ = await table.vectors(hashes("a", "b", "nobody", "c", "a"))
    assert vectors.dtype == np.float32
    assert known.tolist() == [True, False, False, True, True]
    assert vectors.tolist() == [[2.0] * DIM, [0.0] * DIM, [0.0] * DIM, [4.0] * DIM, [2.0] * DIM]


async def test_what_is_missing_says_nothing_until_the_table_is_whole(partial: tuple[ItemTable, Complete]) -> None:
    table, complete = partial
    await table.write([item("a", 1, value=2), item("gone", 2, deleted=True)], [None] * 2)
    vectors, known, lacking = await table.vectors(hashes("a", "nobody", "gone"))
    assert (vectors[:, 0].tolist(), known.tolist()) == ([2.0, 0.0, 0.0], [True, False, False])
    assert lacking.tolist() == [False, True, False], "of one that is deleted it is known"
    many = hashes("a", *(f"nobody {n}" for n in range(2500)))
    assert (await table.vectors(many))[2].tolist() == [False] + [True] * 2500
    await complete()
    for asked in (hashes("a", "nobody", "gone"), many):
        assert not (await table.vectors(asked))[2].any()
    assert (await table.vectors(hashes()))[2].shape == (0,)


async def test_markers_of_another_view_say_nothing(redis_settings: Settings) -> None:
    await mark_all(redis_settings)
    for collection, lacking in ((COLLECTION, False), ("items_v2", True)):
        table = RedisItemTable(connect(redis_settings), redis_settings, collection, DIM)
        assert (await table.vectors(hashes("nobody")))[2] == lacking
        await table.close()


async def test_a_batch_of_vectors_equals_its_rows(table: ItemTable) -> None:
    names = [f"item {n}" for n in range(2500)]
    await table.write([item(name, n, value=n) for n, name in enumerate(names)], [None] * len(names))
    vectors, known, _ = await table.vectors(hashes(*names))
    assert known.all()
    assert vectors[:, 3].tolist() == list(range(len(names)))
    for n in (0, 1234, 2499):
        one, _, _ = await table.vectors(hashes(names[n]))
        assert (one[0] == vectors[n]).all()


async def test_the_feed_tells_what_changed_since(table: ItemTable) -> None:
    beginning = await table.changes(None)
    assert len(beginning.hashes) == 0
    assert beginning.complete
    await table.write([item("a", 1), item("b", 2, deleted=True)], [None, None])
    await table.write([item("a", 1)], stood(9))  # the same again
    await table.write([item("b", 1), item("c", 3)], [None, None])  # b is refused
    first = await table.changes(beginning.cursor)
    assert first.complete
    assert first.hashes.tolist() == hashes("a", "b", "a", "c").tolist()
    assert first.deleted.tolist() == [False, True, False, False]
    again = await table.changes(first.cursor)
    assert (again.hashes.tolist(), again.complete, again.cursor) == ([], True, first.cursor)
    await table.write([item("c", 4, deleted=True)], stood(3))
    second = await table.changes(first.cursor)
    assert (second.hashes.tolist(), second.deleted.tolist()) == (hashes("c").tolist(), [True])
    assert len((await table.changes(None)).hashes) == 0


async def test_the_feed_of_large_writes(table: ItemTable) -> None:
    start = await table.changes(None)
    names = [f"item {n}" for n in range(3000)]
    for piece in range(0, 3000, 1000):
        await table.write([item(name, piece) for name in names[piece : piece + 1000]], [None] * 1000)
    changes = await table.changes(start.cursor)
    assert changes.complete
    assert changes.hashes.tolist() == hashes(*names).tolist()


async def test_a_reader_that_was_away_too_long_is_told(table: ItemTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_feed, "MAX_ENTRIES", 10)
    monkeypatch.setattr(item_redis, "ENTRIES_PER_READ", 100)
    if isinstance(table, MemoryItemTable):
        monkeypatch.setattr(table, "_max_changes", 10)
    empty = await table.changes(None)
    await table.write([item("a", 0)], [None])
    one = await table.changes(empty.cursor)
    assert one.complete
    for offset in range(1, 400):
        await table.write([item("a", offset)], stood(offset - 1))
    for cursor in (empty.cursor, one.cursor):
        late = await table.changes(cursor)
        assert not late.complete
        assert len(late.hashes) == 0
        await table.write([item("a", 400)], stood(399))
        assert (await table.changes(late.cursor)).hashes.tolist() == hashes("a").tolist()


async def test_heads_of_all_records(table: ItemTable) -> None:
    assert [len(heads.hashes) async for heads in table.heads()] in ([], [0])
    names = [*(f"item {n}" for n in range(2500)), *HOSTILE]
    records = [item(name, 2**40 + n, partition=n % 7, deleted=n % 3 == 0) for n, name in enumerate(names)]
    await table.write(records, [None] * len(records))
    found = {}
    async for heads in table.heads():
        assert len(heads.hashes) <= len(names)
        assert heads.readable.all()
        columns = (heads.hashes, heads.partitions, heads.offsets, heads.deleted)
        found.update({row[0]: row[1:] for row in zip(*(column.tolist() for column in columns), strict=True)})
    assert found == {hash64(r.item_id): (r.partition, r.offset, r.deleted) for r in records}


async def test_an_intent_stands_until_everything_is_written(table: ItemTable) -> None:
    await table.write([item("a", 1)], [None])
    assert await table.intents() == {}
    assert await table.read_to_write(hashes("a", "b"), [0, 7], "mine") == [item("a", 1), None]
    assert await table.read_to_write(hashes("c"), [1], "another's") == [None]
    standing = await table.intents()
    assert set(standing) == {"mine", "another's"}
    assert standing["mine"].hashes.tolist() == hashes("a", "b").tolist()
    assert standing["mine"].partitions.tolist() == [0, 7]
    assert abs(standing["mine"].since_ms - time.time() * 1000) < 60_000
    assert await table.write([item("a", 2), item("b", 2, partition=7)], stood(9, None), "mine") == [False, True]
    assert set(await table.intents()) == {"mine", "another's"}
    assert await table.write([item("a", 2)], stood(1)) == [True]
    assert set(await table.intents()) == {"mine", "another's"}
    assert await table.write([item("a", 2)], stood(1), "mine") == [True]
    assert set(await table.intents()) == {"another's"}
    assert await table.write([], stood(), "another's") == []
    assert await table.intents() == {}


async def test_an_intent_is_replaced_and_can_be_dropped(table: ItemTable) -> None:
    await table.read_to_write(hashes("a", "b"), [0, 0], "mine")
    await table.read_to_write(hashes("b"), [0], "mine")
    assert (await table.intents())["mine"].hashes.tolist() == hashes("b").tolist()
    await table.drop_intents([])
    await table.drop_intents(["mine", "nobody's"])
    assert await table.intents() == {}


async def test_close_twice(table: ItemTable) -> None:
    await table.close()
    await table.close()


async def test_collections_do_not_see_each_other(redis_settings: Settings) -> None:
    first = RedisItemTable(connect(redis_settings), redis_settings, "items_v1", DIM)
    second = RedisItemTable(connect(redis_settings), redis_settings, "items_v2", DIM)
    cursor = (await second.changes(None)).cursor
    await first.write([item("a", 1)], [None])
    assert await second.read(hash64_each(["a"])) == [None]
    assert len((await second.changes(cursor)).hashes) == 0
    assert await second.write([item("a", 0)], [None]) == [True]
    assert await first.read(hash64_each(["a"])) == [item("a", 1)]
    await first.close()
    await second.close()


async def test_only_deleted_records_expire(redis_settings: Settings) -> None:
    client = connect(redis_settings)
    table = RedisItemTable(client, redis_settings, COLLECTION, DIM)
    key = keys.item_record(redis_settings, COLLECTION, hash64("a"))
    await table.write([item("a", 0)], [None])
    assert await client.pttl(key) == -1
    await table.write([item("a", 1, deleted=True)], stood(0))
    assert 0 < await client.pttl(key) <= item_redis.DELETED_TTL_MS
    await table.write([item("a", 2)], stood(1))
    assert await client.pttl(key) == -1
    await table.close()


async def test_records_that_cannot_be_read_are_named(redis_settings: Settings) -> None:
    client = connect(redis_settings)
    table = RedisItemTable(client, redis_settings, COLLECTION, DIM)
    await table.write([item("a", 0)], [None])
    await client.set(keys.item_record(redis_settings, COLLECTION, hash64("newer")), b"\x09" + bytes(60))
    await client.set(keys.item_record(redis_settings, COLLECTION, hash64("short")), b"\x01")
    with pytest.raises(RowRefused) as caught:
        await table.read(hash64_each(["nobody", "newer", "a", "short"]))
    assert caught.value.rows == [1, 3]
    vectors, known, _ = await table.vectors(hashes("newer", "a", "short"))
    assert known.tolist() == [False, True, False]
    assert not vectors[[0, 2]].any()
    await table.close()


async def test_keys_of_another_type_are_refused_alone(redis_settings: Settings) -> None:
    client = connect(redis_settings)
    table = RedisItemTable(client, redis_settings, COLLECTION, DIM)
    cursor = (await table.changes(None)).cursor
    await client.rpush(keys.item_record(redis_settings, COLLECTION, hash64("list")), "x")
    await client.hset(keys.item_record(redis_settings, COLLECTION, hash64("hash")), "x", "y")
    await table.read_to_write(hashes("a", "list", "hash", "b"), [0] * 4, "mine")
    records = [item(name, n) for n, name in enumerate(("a", "list", "hash", "b"))]
    with pytest.raises(RowRefused) as caught:
        await table.write(records, [None] * 4, "mine")
    assert caught.value.rows == [1, 2]
    assert set(await table.intents()) == {"mine"}
    assert await table.write([records[0], records[3]], [None, None], "mine") == [True, True]
    assert await table.intents() == {}
    assert (await table.changes(cursor)).hashes.tolist() == hashes("a", "b").tolist()
    found = {}
    async for heads in table.heads():
        found.update(zip(heads.hashes.tolist(), heads.readable.tolist(), strict=True))
    assert found == {hash64("a"): True, hash64("b"): True, hash64("list"): False, hash64("hash"): False}
    await table.close()


async def test_heads_are_those_of_one_collection_and_tell_what_cannot_be_read(redis_settings: Settings) -> None:
    client = connect(redis_settings)
    table = RedisItemTable(client, redis_settings, COLLECTION, DIM)
    other = RedisItemTable(client, redis_settings, f"{COLLECTION}_2", DIM)
    await other.write([item("b", 1)], [None])
    await table.write([item("a", 3)], [None])
    await client.set(keys.item_record(redis_settings, COLLECTION, hash64("newer")), b"\x09" + bytes(60))
    await client.set(keys.item_records(redis_settings, COLLECTION) + b"somebody's note", b"which is no record")
    found = {}
    async for heads in table.heads():
        found.update(zip(heads.hashes.tolist(), heads.readable.tolist(), strict=True))
    assert found == {hash64("a"): True, hash64("newer"): False}
    await table.close()


async def test_a_feed_that_vanished_is_incomplete(redis_settings: Settings) -> None:
    client = connect(redis_settings)
    table = RedisItemTable(client, redis_settings, COLLECTION, DIM)
    await table.write([item("a", 0)], [None])
    cursor = (await table.changes(None)).cursor
    await client.delete(keys.item_feed(redis_settings, COLLECTION))
    assert not (await table.changes(cursor)).complete
    await asyncio.sleep(0.002)  # an entry's id is its millisecond: within that of the first one it could be the same
    await table.write([item("a", 1)], stood(0))
    assert not (await table.changes(cursor)).complete
    await table.close()


@pytest.mark.parametrize("cluster", [False, True])
async def test_an_unreachable_server_is_a_dependency_error(namespace: str, cluster: bool) -> None:
    settings = load_settings(
        redis_url="redis://127.0.0.1:1", redis_cluster=cluster, namespace=namespace, store_timeout_ms=300
    )
    table = RedisItemTable(connect(settings), settings, COLLECTION, DIM)
    with pytest.raises(DependencyError):
        await table.read(hash64_each(["a"]))
    with pytest.raises(DependencyError):
        await table.write([item("a")], [None])
    with pytest.raises(DependencyError):
        await table.vectors(hashes("a"))
    with pytest.raises(DependencyError):
        await table.changes(None)
    with suppress(DependencyError):
        await table.close()
