"""The cache of history vectors in front of an item table: what it keeps, forgets and survives."""

import asyncio

import numpy as np
import pytest
from numpy.typing import NDArray

from schemas.records import ItemRecord, hash64, hash64_each
from workers.errors import DependencyUnavailable
from workers.ports import Float32, ItemChanges, UInt64
from workers.stores.item_follower import ItemFollower
from workers.stores.item_memory import MemoryItemTable
from workers.stores.vector_cache import DELETED_TTL_S, UNKNOWN_TTL_S, VectorCache

DIM = 3


class CountedTable(MemoryItemTable):
    """A table that counts reads, can be down, and can be held in the middle of a read."""

    def __init__(self, max_changes: int = 1000) -> None:
        super().__init__(DIM, max_changes)
        self.asked: list[list[int]] = []
        self.down = False
        self.read_done = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def vectors(self, hashes: UInt64) -> tuple[Float32, NDArray[np.bool_], NDArray[np.bool_]]:
        self.asked.append(hashes.tolist())
        if self.down:
            raise DependencyUnavailable("redis", "down")
        answer = await super().vectors(hashes)
        self.read_done.set()
        await self.go_on.wait()
        return answer

    async def changes(self, cursor: str | None) -> ItemChanges:
        if self.down:
            raise DependencyUnavailable("redis", "down")
        return await super().changes(cursor)


class Timer:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def item(name: str, value: float, offset: int = 0, *, deleted: bool = False) -> ItemRecord:
    vector = b"" if deleted else np.full(DIM, value, dtype=np.float32).tobytes()
    return ItemRecord(name, partition=0, offset=offset, deleted=deleted, history_vector=vector)


async def put(table: CountedTable, *records: ItemRecord) -> None:
    stored = await table.read(hash64_each([record.item_id for record in records]))
    assert all(await table.write(records, stored))


def hashes(*names: str | None) -> UInt64:
    return np.array([[0 if name is None else hash64(name) for name in names]], dtype=np.uint64)


async def first_values(cache: VectorCache, *names: str | None) -> list[float]:
    found, _ = await cache.vectors(hashes(*names))
    assert found.shape == (1, len(names), DIM)
    assert found.dtype == np.float32
    assert (found == found[:, :, :1]).all()
    return found[0, :, 0].tolist()


@pytest.fixture
async def table() -> CountedTable:
    table = CountedTable()
    await put(table, item("a", 1), item("b", 2))
    return table


@pytest.fixture
def timer() -> Timer:
    return Timer()


@pytest.fixture
def cache(table: CountedTable, timer: Timer) -> VectorCache:
    return VectorCache(table, DIM, now_s=timer)


@pytest.fixture(autouse=True)
async def follower(table: CountedTable, cache: VectorCache) -> ItemFollower:
    follower = ItemFollower(table, cache)
    await follower.refresh()
    return follower


async def test_zeros_for_padding_and_unknown(cache: VectorCache) -> None:
    assert await first_values(cache, None, "a", "nobody", "b", "a") == [0, 1, 0, 2, 1]


async def test_a_batch_has_the_shape_of_its_hashes(cache: VectorCache) -> None:
    grid = np.array([[hash64("a"), 0], [0, hash64("b")], [hash64("b"), hash64("a")]], dtype=np.uint64)
    assert (await cache.vectors(grid))[0][:, :, 0].tolist() == [[1, 0], [0, 2], [2, 1]]
    assert (await cache.vectors(np.zeros((0, 5), dtype=np.uint64)))[0].shape == (0, 5, DIM)
    assert (await cache.vectors(np.zeros((4, 0), dtype=np.uint64)))[0].shape == (4, 0, DIM)


async def test_asks_once(cache: VectorCache, table: CountedTable) -> None:
    for _ in range(3):
        assert await first_values(cache, "a", "b", "a", "nobody") == [1, 2, 1, 0]
    assert [sorted(asked) for asked in table.asked] == [sorted(hash64(name) for name in ("a", "b", "nobody"))]


async def test_what_is_at_hand_is_told_without_asking(cache: VectorCache, table: CountedTable) -> None:
    await cache.vectors(hashes("a", "nobody"))
    found, missing = cache.at_hand(hashes(None, "a", "b", "nobody"))
    assert (found[0, :, 0].tolist(), missing.tolist()) == ([0, 1, 0, 0], [[False, False, True, False]])
    found[:] = 9
    assert await first_values(cache, "a") == [1], "it was a copy"
    assert len(table.asked) == 1


async def test_keeps_nothing_before_the_first_refresh(table: CountedTable) -> None:
    cache = VectorCache(table, DIM)
    follower = ItemFollower(table, cache)
    assert await first_values(cache, "a") == [1]
    await put(table, item("a", 5, 1))
    await follower.refresh()
    assert await first_values(cache, "a") == [5]


async def test_a_change_is_seen_after_a_refresh(
    cache: VectorCache, follower: ItemFollower, table: CountedTable
) -> None:
    assert await first_values(cache, "a", "b") == [1, 2]
    await put(table, item("a", 7, 1))
    await follower.refresh()
    assert await first_values(cache, "a", "b") == [7, 2]
    assert table.asked[-1] == [hash64("a")]


async def test_a_new_item_ends_its_negative_entry(
    cache: VectorCache, follower: ItemFollower, table: CountedTable
) -> None:
    assert await first_values(cache, "new") == [0]
    await put(table, item("new", 9))
    await follower.refresh()
    assert await first_values(cache, "new") == [9]


async def test_unknown_items_are_asked_for_again_after_a_while(
    cache: VectorCache, table: CountedTable, timer: Timer
) -> None:
    assert await first_values(cache, "nobody", "a") == [0, 1]
    timer.now_s += UNKNOWN_TTL_S
    assert await first_values(cache, "nobody", "a") == [0, 1]
    assert table.asked[1:] == [[hash64("nobody")]]


async def lacking(cache: VectorCache, *names: str | None) -> list[bool]:
    _, lacking = await cache.vectors(hashes(*names))
    assert lacking.shape == (1, len(names))
    return lacking[0].tolist()


async def test_a_table_that_is_not_whole_lacks_what_it_does_not_have(cache: VectorCache, table: CountedTable) -> None:
    table.whole = False
    assert await lacking(cache, None, "a", "nobody", "b", "nobody") == [False, False, True, False, True]
    assert await first_values(cache, None, "a", "nobody") == [0, 1, 0]
    assert [len(asked) for asked in table.asked] == [3, 1], "what is there is kept, what is not is asked for again"
    table.whole = True
    assert await lacking(cache, "a", "nobody") == [False, False]
    assert await lacking(cache, "a", "nobody") == [False, False]
    assert len(table.asked) == 3, "from now on it is unknown"


async def test_an_item_that_comes_late_is_there_before_the_feed_tells(cache: VectorCache, table: CountedTable) -> None:
    table.whole = False
    assert await lacking(cache, "new") == [True]
    await put(table, item("new", 9))
    assert await lacking(cache, "new") == [False]
    assert await first_values(cache, "new") == [9]


async def test_deleted_items_are_remembered(
    cache: VectorCache, follower: ItemFollower, table: CountedTable, timer: Timer
) -> None:
    assert cache.deleted(hashes("a", "b")[0]).tolist() == [False, False]
    await first_values(cache, "a")
    await put(table, item("a", 0, 1, deleted=True))
    await follower.refresh()
    assert cache.deleted(hashes("a", "b", None)[0]).tolist() == [True, False, False]
    assert await first_values(cache, "a", "b") == [0, 2]
    timer.now_s += DELETED_TTL_S - 1
    await follower.refresh()
    assert cache.deleted(hashes("a")[0]).tolist() == [True]
    timer.now_s += 1
    await follower.refresh()
    assert cache.deleted(hashes("a")[0]).tolist() == [False]


async def test_an_item_that_comes_back_is_no_longer_deleted(
    cache: VectorCache, follower: ItemFollower, table: CountedTable
) -> None:
    await put(table, item("a", 0, 1, deleted=True))
    await follower.refresh()
    await put(table, item("a", 3, 2))
    await follower.refresh()
    assert cache.deleted(hashes("a")[0]).tolist() == [False]
    assert await first_values(cache, "a") == [3]


async def test_within_one_refresh_the_last_change_counts(
    cache: VectorCache, follower: ItemFollower, table: CountedTable
) -> None:
    await put(table, item("a", 0, 1, deleted=True))
    await put(table, item("a", 3, 2))
    await put(table, item("b", 4, 1))
    await put(table, item("b", 0, 2, deleted=True))
    await follower.refresh()
    assert cache.deleted(hashes("a", "b")[0]).tolist() == [False, True]


async def test_missed_changes_clear_everything(timer: Timer) -> None:
    table = CountedTable(max_changes=2)
    await put(table, item("a", 1), item("b", 2))
    cache = VectorCache(table, DIM, now_s=timer)
    follower = ItemFollower(table, cache)
    await follower.refresh()
    await put(table, item("b", 0, 1, deleted=True))
    await follower.refresh()
    assert await first_values(cache, "a") == [1]
    for offset in range(1, 4):
        await put(table, item("a", 10 + offset, offset))
    await follower.refresh()
    assert await first_values(cache, "a") == [13]
    assert not cache.deleted(hashes("b")[0]).any()


async def test_a_failing_refresh_changes_nothing(
    cache: VectorCache, follower: ItemFollower, table: CountedTable
) -> None:
    await first_values(cache, "a")
    await put(table, item("a", 7, 1))
    table.down = True
    with pytest.raises(DependencyUnavailable):
        await follower.refresh()
    assert await first_values(cache, "a") == [1]
    with pytest.raises(DependencyUnavailable):
        await cache.vectors(hashes("a", "b"))
    table.down = False
    await follower.refresh()
    assert await first_values(cache, "a", "b") == [7, 2]


async def test_a_read_that_overlaps_a_change_is_not_kept(
    cache: VectorCache, follower: ItemFollower, table: CountedTable
) -> None:
    table.go_on.clear()
    reading = asyncio.create_task(first_values(cache, "a"))
    await table.read_done.wait()  # the old vector is on its way
    await put(table, item("a", 7, 1))
    await follower.refresh()
    table.go_on.set()
    assert await reading == [1]
    assert await first_values(cache, "a") == [7]


async def test_a_read_that_overlaps_the_first_refresh_is_not_kept(table: CountedTable) -> None:
    """What changed before the follower found its place in the feed, nobody tells."""
    cache = VectorCache(table, DIM)
    follower = ItemFollower(table, cache)
    table.go_on.clear()
    reading = asyncio.create_task(first_values(cache, "a"))
    await table.read_done.wait()
    await put(table, item("a", 7, 1))
    await follower.refresh()
    table.go_on.set()
    assert await reading == [1]
    assert await first_values(cache, "a") == [7]


async def test_eviction_does_not_change_answers(table: CountedTable) -> None:
    cache = VectorCache(table, DIM, max_rows=8)
    follower = ItemFollower(table, cache)
    await follower.refresh()
    names = [f"item {n}" for n in range(50)]
    await put(table, *(item(name, n, n) for n, name in enumerate(names)))
    await follower.refresh()
    for start in range(40):
        assert await first_values(cache, *names[start : start + 5]) == list(range(start, start + 5))
    assert await first_values(cache, *names) == list(range(50))
