"""Popular lists in memory: order, segments, filters, and what stays when a table fails."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

from models.spec import FilterType
from schemas import codec
from schemas.items import ItemUpdate
from schemas.recall import FilterClause
from schemas.records import ItemRecord, hash64, hash64_each
from workers.errors import DependencyUnavailable
from workers.filters import Filter, checked
from workers.popularity import EVERYBODY
from workers.ports import ItemChanges, PopularChange, PopularItems, UInt64
from workers.sources.popular import MAX_FILTERED, SEGMENTS_AT_ONCE, PopularLists
from workers.stores.item_facts import ItemFact, ItemFacts
from workers.stores.item_follower import ItemFollower
from workers.stores.item_memory import MemoryItemTable
from workers.stores.popular_memory import MemoryPopularTable

DECLARED: dict[str, FilterType] = {"year": "number"}
MISSED = ItemChanges("0", np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.bool_), complete=False)


class ItemTable(MemoryItemTable):
    """An item table that can be down."""

    down = False

    async def read(self, hashes: UInt64) -> list[ItemRecord | None]:
        if self.down:
            raise DependencyUnavailable("redis", "down")
        return await super().read(hashes)


class PopularTable(MemoryPopularTable):
    """A popular table that can be down, and says what was asked for. Something may happen while it is read."""

    down = False
    meanwhile: Callable[[], None] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[list[str]] = []

    async def top(self, segments: Sequence[str], n: int) -> list[PopularItems]:
        self.asked.append(list(segments))
        if self.down:
            raise DependencyUnavailable("redis", "down")
        if self.meanwhile is not None:
            self.meanwhile()
        return await super().top(segments, n)


class World:
    """Items a to z with the years 1 to 26, and what was counted of them."""

    def __init__(self, segments: Sequence[str]) -> None:
        self.items = ItemTable(0)
        self.popular = PopularTable()
        facts = ItemFacts(self.items, tuple(DECLARED))
        self.follower = ItemFollower(self.items, facts)
        self.lists = PopularLists(self.popular, facts, segments)
        self._offset = 0

    async def put(self, name: str, offset: int = 0, *, gone: bool = False, **attributes: Any) -> None:
        update = ItemUpdate(item_id=name, op="upsert", timestamp_ms=1, attributes=attributes)
        record = ItemRecord(name, 0, offset, deleted=gone, update=b"" if gone else codec.encode_event(update))
        assert await self.items.write([record], await self.items.read(hash64_each([name]))) == [True]
        await self.follower.refresh()

    async def count(self, segment: str, amounts: Mapping[str, int]) -> None:
        counts = {hash64(name): amount for name, amount in amounts.items()}
        await self.popular.add([PopularChange(0, self._offset, self._offset + 1, {(7, segment): counts})])
        self._offset += 1

    def best(self, segment: str | None = None, where: Filter = ()) -> list[str]:
        ids, scores = self.lists.best(segment, where)
        assert scores.dtype == np.float32
        assert len(set(ids)) == len(ids) == len(scores)
        pairs = list(zip((-scores).tolist(), ids, strict=True))
        assert pairs == sorted(pairs)
        assert all(0 < score <= 1 for score in scores.tolist())
        return ids


@pytest.fixture
async def world() -> World:
    world = World(["F", "M"])
    for year, name in enumerate("abcdefghijklmnopqrstuvwxyz", 1):
        await world.put(name, year=year)
    await world.count(EVERYBODY, {"a": 100, "b": 100, "z": 300, "c": 50, "d": 1})
    await world.count("F", {"c": 40, "a": 30})
    await world.lists.refresh()
    return world


def where(op: Any, value: Any) -> Filter:
    return checked([FilterClause(field="year", op=op, value=value)], DECLARED)


def test_nothing_before_the_first_refresh() -> None:
    ids, scores = World([]).lists.best("F", ())
    assert (ids, scores.tolist()) == ([], [])


async def test_best_first_and_equal_ones_by_id(world: World) -> None:
    assert world.best() == ["z", "a", "b", "c", "d"]
    assert world.lists.best(None, ())[1].tolist() == pytest.approx([1, 1 / 3, 1 / 3, 1 / 6, 1 / 300])


async def test_a_segment_is_filled_up_from_everybody(world: World) -> None:
    assert world.best("F") == ["c", "a", "z", "b", "d"]
    assert world.best("M") == world.best("unknown") == world.best() == world.best("")


async def test_scores_that_32_bits_cannot_tell_apart_stand_by_id(world: World) -> None:
    await world.count("M", {"x": 2**40, "y": 2**40 + 1, "w": 7})
    await world.count(EVERYBODY, {"p": 3 * 2**40, "q": 3 * 2**40 + 1})
    await world.lists.refresh()
    assert world.best("M")[:5] == ["x", "y", "w", "p", "q"]


async def test_filters_hold_in_both_parts(world: World) -> None:
    assert world.best(None, where("ge", 2)) == ["z", "b", "c", "d"]
    assert world.best("F", where("ge", 2)) == ["c", "z", "b", "d"]
    assert world.best("F", where("in", [2, 26])) == ["z", "b"]
    assert world.best("F", where("gt", 26)) == []
    assert world.best("F") == ["c", "a", "z", "b", "d"]


async def test_what_is_at_hand_is_what_was_looked_through_already(world: World) -> None:
    for segment in (None, "F"):
        assert world.lists.at_hand(segment, where("ge", 2)) is None
        best = world.lists.best(segment, where("ge", 2))
        assert world.lists.at_hand(segment, where("ge", 2)) is best
        assert world.lists.at_hand(segment, where("ge", 3)) is None
        assert world.lists.at_hand(segment, ()) is world.lists.best(segment, ())
    await world.lists.refresh()
    assert world.lists.at_hand(None, where("ge", 2)) is None


async def test_more_filters_than_are_remembered(world: World) -> None:
    for limit in range(MAX_FILTERED + 10):
        assert world.best(None, where("ge", limit))[:1] == (["z"] if limit <= 26 else [])
    assert world.best(None, where("ge", 2)) == ["z", "b", "c", "d"]


async def test_changes_are_seen_after_a_refresh(world: World) -> None:
    assert world.best(None, where("lt", 3)) == ["a", "b"]
    await world.count(EVERYBODY, {"b": 1})
    await world.put("a", 1, year=90)
    await world.put("z", 1, gone=True)
    assert world.best()[0] == "z"
    await world.lists.refresh()
    assert world.best() == ["b", "a", "c", "d"]
    assert world.best(None, where("lt", 3)) == ["b"]


async def test_unknown_and_deleted_items_are_left_out(world: World) -> None:
    await world.count(EVERYBODY, {"nobody": 1000})
    await world.put("a", 1, gone=True)
    await world.lists.refresh()
    assert world.best() == ["z", "b", "c", "d"]


@pytest.mark.parametrize("table", ["items", "popular"])
async def test_the_last_lists_stay_when_a_table_fails(world: World, table: str) -> None:
    before = world.best(), world.best("F"), world.best("F", where("ge", 2))
    await world.count(EVERYBODY, {"e": 10_000})
    getattr(world, table).down = True
    with pytest.raises(DependencyUnavailable):
        await world.lists.refresh()
    assert (world.best(), world.best("F"), world.best("F", where("ge", 2))) == before
    getattr(world, table).down = False
    await world.lists.refresh()
    assert world.best()[0] == "e"


async def test_of_a_refresh_that_fails_half_way_nothing_is_kept(world: World) -> None:
    """Everybody's list is read, of facts at hand; the segment's names an item that has to be asked for."""
    before = world.best(), world.best("F")
    await world.count(EVERYBODY, {"d": 10_000})
    await world.count("F", {"f": 10_000})
    world.items.down = True
    with pytest.raises(DependencyUnavailable):
        await world.lists.refresh()
    assert (world.best(), world.best("F")) == before
    world.items.down = False
    await world.lists.refresh()
    assert (world.best()[0], world.best("F")[0]) == ("d", "f")


@pytest.mark.parametrize("after", ["fails again", "works"])
async def test_what_is_deleted_while_a_refresh_fails_stays_out(world: World, after: str) -> None:
    gone = ItemChanges("1", hash64_each(["z"]), np.ones(1, dtype=np.bool_), complete=True)
    await world.count("F", {"f": 10_000})
    world.popular.meanwhile, world.items.down = (lambda: world.lists.apply(gone)), True
    with pytest.raises(DependencyUnavailable):
        await world.lists.refresh()
    world.popular.meanwhile = None
    assert "z" not in world.best() + world.best("F")
    if after == "works":
        world.items.down = False
        await world.put("z", 1, gone=True)
        await world.lists.refresh()
    else:
        with pytest.raises(DependencyUnavailable):
            await world.lists.refresh()
    assert "z" not in world.best() + world.best("F")


async def test_after_changes_were_missed_in_a_refresh_that_fails_another_is_due_at_once(world: World) -> None:
    await world.count("F", {"f": 10_000})
    world.popular.meanwhile, world.items.down = (lambda: world.lists.apply(MISSED)), True
    with pytest.raises(DependencyUnavailable):
        await world.lists.refresh()
    world.popular.meanwhile, world.items.down = None, False
    assert world.best() == world.best("F") == []
    async with asyncio.timeout(10):
        await world.lists.due(every_s=3600)
    await world.lists.refresh()
    assert world.best("F")[0] == "f"


async def test_a_segment_that_stood_still_for_long_is_listed(world: World) -> None:
    """Its partition has seen nothing of late, another one has: by its weights nothing is left of the segment."""
    counts = {hash64(name): amount for name, amount in {"b": 5, "e": 4}.items()}
    await world.popular.add([PopularChange(1, 0, 1, {(7 + 67, EVERYBODY): counts})])
    await world.lists.refresh()
    assert world.best("F")[:4] == ["c", "a", "b", "e"]
    ids, scores = world.lists.best("F", ())
    assert len(ids) == len(set(ids))
    assert np.isfinite(scores).all()


async def test_what_is_deleted_weighs_nothing_beside_the_others(world: World) -> None:
    await world.count("M", {"x": 2**80, "y": 4, "w": 1})
    await world.put("x", 1, gone=True)
    await world.lists.refresh()
    assert world.best("M")[:2] == ["y", "w"]


async def test_what_counts_for_next_to_nothing_beside_the_best_is_left_out(world: World) -> None:
    await world.count("M", {"x": 2**80, "y": 2**80, "w": 1})
    await world.lists.refresh()
    assert world.best("M")[:3] == ["x", "y", "z"]


async def test_many_segments_are_read_in_turn() -> None:
    names = [f"city {n}" for n in range(2 * SEGMENTS_AT_ONCE + 3)]
    world = World(names)
    for _ in range(4):
        await world.lists.refresh()
    step = SEGMENTS_AT_ONCE
    first = [EVERYBODY, *names[:step]]
    assert world.popular.asked == [first, [EVERYBODY, *names[step : 2 * step]], [EVERYBODY, *names[2 * step :]], first]


@pytest.mark.parametrize("fault", ["fails", "missed"])
async def test_segments_that_could_not_be_read_are_read_next(fault: str) -> None:
    names = [f"city {n}" for n in range(2 * SEGMENTS_AT_ONCE)]
    world = World(names)
    world.popular.down = fault == "fails"
    world.popular.meanwhile = (lambda: world.lists.apply(MISSED)) if fault == "missed" else None
    with pytest.raises(DependencyUnavailable) if fault == "fails" else nullcontext():
        await world.lists.refresh()
    world.popular.down, world.popular.meanwhile = False, None
    await world.lists.refresh()
    first = [EVERYBODY, *names[:SEGMENTS_AT_ONCE]]
    assert world.popular.asked == [first, first]


async def test_every_segment_can_be_read_at_once() -> None:
    names = [f"city {n}" for n in range(2 * SEGMENTS_AT_ONCE + 3)]
    world = World(names)
    await world.lists.refresh_all()
    assert sorted(name for asked in world.popular.asked for name in asked if name) == sorted(names)


async def test_deletions_are_taken_out_at_once(world: World) -> None:
    follower = ItemFollower(world.items, world.lists)
    await follower.refresh()
    before = world.best("F", where("ge", 1))
    await world.put("z", 1, gone=True)
    await world.put("a", 1, year=50)
    await follower.refresh()
    assert "z" in before
    assert world.best() == ["a", "b", "c", "d"]
    assert world.best("F", where("ge", 1)) == ["c", "a", "b", "d"]


async def test_what_is_deleted_while_lists_are_read_stays_out(world: World) -> None:
    """The fact was read before, and is in what the refresh has read."""

    class Facts(ItemFacts):
        meanwhile: Callable[[], Awaitable[None]] | None = None

        async def read(self, hashes: UInt64) -> list[ItemFact | None]:
            facts = await super().read(hashes)
            if self.meanwhile is not None:
                meanwhile, self.meanwhile = self.meanwhile, None
                await meanwhile()
            return facts

    facts = Facts(world.items, ())
    lists = PopularLists(world.popular, facts, ["F"])
    follower = ItemFollower(world.items, facts, lists)
    await follower.refresh()

    async def delete() -> None:
        await world.put("z", 1, gone=True)
        await follower.refresh()

    facts.meanwhile = delete
    await lists.refresh()
    assert lists.best(None, ())[0] == ["a", "b", "c", "d"]
    assert lists.best("F", ())[0] == ["c", "a", "b", "d"]
    await world.put("z", 2)
    await follower.refresh()
    await lists.refresh()
    assert lists.best(None, ())[0][0] == "z", "one that is back is in the next lists"


async def test_after_missed_changes_nothing_is_held_until_it_is_read_anew(world: World) -> None:
    world.lists.apply(MISSED)
    assert world.best() == world.best("F") == []
    await world.lists.refresh()
    assert world.best("F") == ["c", "a", "z", "b", "d"]


async def test_after_missed_changes_a_refresh_is_due_at_once(world: World) -> None:
    due = asyncio.create_task(world.lists.due(every_s=3600))
    await asyncio.sleep(0)
    assert not due.done()
    world.lists.apply(MISSED)
    async with asyncio.timeout(10):
        await due
        await world.lists.refresh()
        await world.lists.due(every_s=0.001)


async def test_what_was_read_while_changes_were_missed_is_not_kept(world: World) -> None:
    world.popular.meanwhile = lambda: world.lists.apply(MISSED)
    await world.lists.refresh()
    assert world.best() == []
    world.popular.meanwhile = None
    async with asyncio.timeout(10):
        await world.lists.due(every_s=3600)
    await world.lists.refresh()
    assert world.best("F") == ["c", "a", "z", "b", "d"]
