"""The cache of items' facts in front of an item table: what it keeps, forgets and survives."""

import asyncio
from typing import Any

import numpy as np
import pytest

from schemas import codec
from schemas.items import ItemUpdate
from schemas.records import ItemRecord, hash64_each
from workers.errors import DependencyUnavailable, RowRefused
from workers.ports import UInt64
from workers.stores.item_facts import READ_AT_ONCE, ItemFact, ItemFacts
from workers.stores.item_follower import ItemFollower
from workers.stores.item_memory import MemoryItemTable

FIELDS = ("year", "genres")


class CountedTable(MemoryItemTable):
    """A table that counts reads, can be down, can hold unreadable records, and can be held in the middle of a read."""

    def __init__(self, max_changes: int = 1000) -> None:
        super().__init__(0, max_changes)
        self.asked: list[list[int]] = []
        self.down = False
        self.unreadable: list[int] = []
        self.read_done = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def read(self, hashes: UInt64) -> list[ItemRecord | None]:
        self.asked.append(hashes.tolist())
        if self.down:
            raise DependencyUnavailable("redis", "down")
        refused = [row for row, item in enumerate(hashes.tolist()) if item in self.unreadable]
        if refused:
            raise RowRefused("redis", "cannot be read", refused)
        found = await super().read(hashes)
        self.read_done.set()
        await self.go_on.wait()
        return found


def item(name: str, offset: int = 0, **attributes: Any) -> ItemRecord:
    update = ItemUpdate(item_id=name, op="upsert", timestamp_ms=1, attributes=attributes)
    return ItemRecord(name, 0, offset, update=codec.encode_event(update))


def deleted(name: str, offset: int) -> ItemRecord:
    return ItemRecord(name, 0, offset, deleted=True)


async def put(table: CountedTable, *records: ItemRecord) -> None:
    stored = await MemoryItemTable.read(table, hashes(*(record.item_id for record in records)))
    assert all(await table.write(records, stored))


def hashes(*names: str) -> UInt64:
    return hash64_each(names)


async def years(facts: ItemFacts, *names: str) -> list[Any]:
    found = await facts.read(hashes(*names))
    assert [fact is None or fact.item_id == name for fact, name in zip(found, names, strict=True)] == [True] * len(
        names
    )
    return [fact and fact.attributes.get("year") for fact in found]


@pytest.fixture
async def table() -> CountedTable:
    table = CountedTable()
    await put(table, item("a", year=1), item("b", year=2), deleted("gone", 3))
    return table


@pytest.fixture
def facts(table: CountedTable) -> ItemFacts:
    return ItemFacts(table, FIELDS)


@pytest.fixture(autouse=True)
async def follower(table: CountedTable, facts: ItemFacts) -> ItemFollower:
    follower = ItemFollower(table, facts)
    await follower.refresh()
    return follower


async def test_in_the_order_asked_without_what_is_not_there(facts: ItemFacts) -> None:
    assert await years(facts, "b", "nobody", "a", "gone", "b") == [2, None, 1, None, 2]
    assert await facts.read(hashes()) == []


async def test_only_what_can_be_filtered_on_as_the_index_holds_it(table: CountedTable, facts: ItemFacts) -> None:
    long = ["x" * 5000]
    await put(table, item("c", year="1999", title="C", genres=["x"]), item("d", year=None, genres=long))
    assert await facts.read(hashes("c", "d")) == [ItemFact("c", {"year": "1999", "genres": ["x"]}), ItemFact("d", {})]


async def test_asks_once_for_what_is_there(facts: ItemFacts, table: CountedTable) -> None:
    for _ in range(3):
        assert await years(facts, "a", "nobody", "b") == [1, None, 2]
    assert table.asked == [hashes("a", "nobody", "b").tolist()] + [hashes("nobody").tolist()] * 2


async def test_keeps_nothing_before_the_feed_is_followed(table: CountedTable) -> None:
    facts = ItemFacts(table, FIELDS)
    assert await years(facts, "a") == [1]
    await put(table, item("a", 1, year=5))
    assert await years(facts, "a") == [5]


async def test_changed_and_deleted_items_are_read_again(
    facts: ItemFacts, table: CountedTable, follower: ItemFollower
) -> None:
    assert await years(facts, "a", "b") == [1, 2]
    await put(table, item("a", 1, year=7))
    await follower.refresh()
    assert await years(facts, "a", "b") == [7, 2]
    await put(table, deleted("b", 1))
    await follower.refresh()
    assert await years(facts, "a", "b") == [7, None]
    assert table.asked[1:] == [hashes("a").tolist(), hashes("b").tolist()]


async def test_missed_changes_clear_everything() -> None:
    table = CountedTable(max_changes=2)
    await put(table, item("a", year=1))
    facts = ItemFacts(table, FIELDS)
    follower = ItemFollower(table, facts)
    await follower.refresh()
    assert await years(facts, "a") == [1]
    for offset in range(1, 4):
        await put(table, item("a", offset, year=10 + offset))
    await follower.refresh()
    assert await years(facts, "a") == [13]


async def test_a_read_that_overlaps_a_change_is_not_kept(
    facts: ItemFacts, table: CountedTable, follower: ItemFollower
) -> None:
    table.go_on.clear()
    reading = asyncio.create_task(years(facts, "a"))
    await table.read_done.wait()  # the old record is on its way
    await put(table, item("a", 1, year=7))
    await follower.refresh()
    table.go_on.set()
    assert await reading == [1]
    assert await years(facts, "a") == [7]


async def test_a_read_that_overlaps_the_first_refresh_is_not_kept(table: CountedTable) -> None:
    """What changed before the follower found its place in the feed, nobody tells."""
    facts = ItemFacts(table, FIELDS)
    follower = ItemFollower(table, facts)
    table.go_on.clear()
    reading = asyncio.create_task(years(facts, "a"))
    await table.read_done.wait()
    await put(table, deleted("a", 1))
    await follower.refresh()
    table.go_on.set()
    assert await reading == [1]
    assert await years(facts, "a") == [None]


async def test_what_is_cached_is_answered_while_the_table_is_down(facts: ItemFacts, table: CountedTable) -> None:
    assert await years(facts, "a") == [1]
    table.down = True
    assert await years(facts, "a") == [1]
    with pytest.raises(DependencyUnavailable):
        await facts.read(hashes("a", "b"))


async def test_unreadable_records_are_no_facts(facts: ItemFacts, table: CountedTable) -> None:
    table.unreadable = hashes("b", "x").tolist()
    assert await years(facts, "x", "a", "b", "nobody") == [None, 1, None, None]


async def test_a_full_cache_forgets_and_answers_all_the_same(table: CountedTable) -> None:
    facts = ItemFacts(table, FIELDS, max_facts=5)
    await ItemFollower(table, facts).refresh()
    names = [f"item {n}" for n in range(3 * READ_AT_ONCE)]
    await put(table, *(item(name, n, year=n) for n, name in enumerate(names)))
    facts.apply(await table.changes(None))
    assert await years(facts, *names) == list(range(len(names)))
    assert [len(asked) for asked in table.asked] == [READ_AT_ONCE] * 3
    assert await years(facts, *names[-5:]) == list(range(len(names)))[-5:]
    assert len(table.asked) == 3
    assert await years(facts, names[0]) == [0]
    assert len(np.unique(table.asked[-1])) == 1
