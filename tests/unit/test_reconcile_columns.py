"""Item events as columns: the same events count as one by one, and one of each item is held against the table."""

import random
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.items import ItemUpdate
from schemas.records import ItemRecord, hash64
from workers.index.schema import part_of, signed_hash
from workers.pipelines.item_order import ItemEvent, decide
from workers.ports import ItemHeads
from workers.reconcile import columns
from workers.reconcile.columns import MAX_OFFSET, Columns, Winners, one_each, partition_and_offset, place, table_columns
from workers.reconcile.run import SIGN, _bounds


def event(item_id: str, offset: int, *, partition: int = 0, version: int | None = None, kind: str = "u") -> ItemEvent:
    op = "delete" if kind == "d" else "upsert"
    update = None if kind == "t" else ItemUpdate(item_id=item_id, op=op, timestamp_ms=1, version=version)
    return ItemEvent(item_id, update, b"", partition, offset)


def one_by_one(log: Sequence[ItemEvent]) -> set[tuple[str, int, int, bool]]:
    """What stands after each event was decided alone, every partition by itself."""
    stands: dict[tuple[int, str], ItemEvent] = {}
    for each in log:
        key = (each.partition, each.item_id)
        stored = {}
        if key in stands:
            old = stands[key]
            stored[hash64(old.item_id)] = ItemRecord(old.item_id, old.partition, old.offset, version=old.version)
        if decide([each], stored, {}).winners:
            stands[key] = each
    return {(e.item_id, e.partition, e.offset, e.deletes) for e in stands.values()}


def named(rows: Columns, ids: Sequence[str]) -> set[tuple[str, int, int, bool]]:
    names = {hash64(item_id): item_id for item_id in ids}
    parts = (rows.hashes, rows.partitions, rows.offsets, rows.deleted)
    return {(names[h], p, o, d) for h, p, o, d in zip(*(part.tolist() for part in parts), strict=True)}


logs = st.lists(
    st.tuples(
        st.sampled_from("abcd"), st.integers(0, 2), st.sampled_from([None, None, 1, 2, 3]), st.sampled_from("uuudt")
    ),
    max_size=40,
)


@given(logs, st.lists(st.integers(0, 40), max_size=5), st.booleans())
def test_the_events_that_count_are_those_of_one_by_one(
    drawn: list[tuple[str, int, int | None, str]], cuts: list[int], merge_each: bool
) -> None:
    log = [
        event(item_id, offset, partition=partition, version=version, kind=kind)
        for offset, (item_id, partition, version, kind) in enumerate(drawn)
    ]
    winners = Winners()
    edges = sorted({0, len(log), *(cut for cut in cuts if cut < len(log))})
    for start, end in pairwise(edges):
        winners.add(log[start:end])
        if merge_each:
            winners.rows()
    rows = winners.rows()
    assert named(rows, "abcd") == one_by_one(log)
    order = list(zip(rows.hashes.tolist(), rows.places.tolist(), strict=True))
    assert order == sorted(order)


def test_many_events_are_merged_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "FIRST_MERGE", 50)
    rng = random.Random(1)
    log = [
        event(f"item {rng.randint(0, 300)}", n, partition=n % 3, version=rng.choice([None, 1, 2, 3]))
        for n in range(5000)
    ]
    winners = Winners()
    for start in range(0, 5000, 37):
        winners.add(log[start : start + 37])
        assert winners._count <= max(50, len(winners._kept.hashes) // 2)
    assert named(winners.rows(), [f"item {n}" for n in range(301)]) == one_by_one(log)


def heads(*records: tuple[str, int, int], readable: bool = True) -> ItemHeads:
    return ItemHeads(
        np.array([hash64(name) for name, _, _ in records], dtype=np.uint64),
        np.array([partition for _, partition, _ in records], dtype=np.int64),
        np.array([offset for _, _, offset in records], dtype=np.uint64),
        np.zeros(len(records), dtype=np.bool_),
        np.full(len(records), readable),
    )


def test_of_an_item_in_several_partitions_the_one_of_the_table_is_held_against_it() -> None:
    winners = Winners()
    winners.add([event("a", 5), event("a", 3, partition=2), event("b", 4, partition=1), event("b", 9), event("c", 1)])
    table = table_columns([heads(("a", 2, 3), ("c", 3, 9)), heads(("nobody", 0, 1))])
    assert named(one_each(winners.rows(), table), "abc") == {("a", 2, 3, False), ("b", 0, 9, False), ("c", 0, 1, False)}
    assert named(one_each(winners.rows(), table_columns([])), ["a", "b", "c"]) == {
        ("a", 0, 5, False), ("b", 0, 9, False), ("c", 0, 1, False)
    }  # fmt: skip


def test_where_the_table_has_none_of_them_one_that_lives_is_looked_at() -> None:
    winners = Winners()
    winners.add([event("a", 5, kind="d"), event("a", 3, partition=2), event("a", 1, partition=1)])
    winners.add([event("b", 4, kind="t"), event("b", 9, partition=1, kind="d")])
    assert named(one_each(winners.rows(), table_columns([heads(("a", 3, 1))])), "ab") == {
        ("a", 1, 1, False), ("b", 0, 4, True)
    }  # fmt: skip
    assert named(one_each(winners.rows(), table_columns([heads(("a", 0, 5))])), "ab") >= {("a", 0, 5, True)}


def test_a_record_that_is_met_twice_counts_once_and_an_unreadable_one_agrees_with_nothing() -> None:
    table = table_columns([heads(("a", 0, 1), ("b", 0, 2)), heads(("a", 0, 1)), heads(("c", 0, 3), readable=False)])
    assert len(table.hashes) == 3
    at = table.find(np.array([hash64("c"), hash64("nobody")], dtype=np.uint64))
    assert table.places[at[0]] == columns.NOWHERE
    assert at[1] == -1


@given(st.integers(0, 65_534), st.integers(0, MAX_OFFSET))
def test_places(partition: int, offset: int) -> None:
    assert partition_and_offset(place(partition, offset)) == (partition, offset)


@pytest.mark.parametrize("passes", [1, 2, 3, 7, 64])
def test_passes_cover_every_item_once_as_the_index_does(passes: int) -> None:
    bounds = [_bounds(number, passes) for number in range(passes)]
    for n in range(500):
        item_id = f"item {n}"
        mine = [number for number, (low, high) in enumerate(bounds) if low <= hash64(item_id) ^ SIGN < high]
        assert mine == [part_of(item_id, passes)]
        assert hash64(item_id) ^ SIGN == signed_hash(item_id) + (1 << 63)
