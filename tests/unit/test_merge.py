"""The merge of activities into a user record: the same set of events gives the same bytes."""

import random
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.activity import UserActivity
from schemas.records import (
    MAX_HISTORY_ROWS,
    MAX_PROFILE_FIELDS,
    MAX_PROFILE_VALUE_BYTES,
    MAX_SEEN_ITEMS,
    UserRecord,
    compact_seen,
    hash64,
    seen_items,
)
from workers.merge import forget, merge

ALL = frozenset[str]()


def event(n: int, timestamp_ms: int | None = None, **fields: Any) -> UserActivity:
    defaults: dict[str, Any] = {"action": "view", "item_id": f"item {n}"}
    return UserActivity(
        event_id=f"event {n}",
        user_id="u",
        timestamp_ms=n + 1 if timestamp_ms is None else timestamp_ms,
        **defaults | fields,
    )


def take(batches: list[list[UserActivity]], actions: frozenset[str] = ALL) -> tuple[bytes, bytes]:
    """Record and compacted seen set after these batches."""
    record, seen = UserRecord(), b""
    for batch in batches:
        merged = merge(record, batch, actions)
        record, seen = UserRecord.decode(merged.record.encode()), seen + merged.seen
    return record.encode(), compact_seen(seen)


# 1, 1.0 and true are equal in Python and are not the same value; the order of keys tells nothing.
PROFILE_VALUES = st.sampled_from([1, 1.0, True, "x", ["a"], None, {"a": 1, "b": 2}, {"b": 2, "a": 1}])

# Few ids, times and fields, so that they meet: the same event again, with other content, at equal times.
activities = st.builds(
    UserActivity,
    event_id=st.integers(0, 12).map("event {}".format),
    user_id=st.just("u"),
    action=st.sampled_from(["view", "buy", "setting"]),
    timestamp_ms=st.integers(1, 6),
    item_id=st.one_of(st.none(), st.integers(0, 4).map("item {}".format)),
    value=st.sampled_from([None, 1.0, 4.5]),
    attributes=st.one_of(st.none(), st.dictionaries(st.sampled_from(["age", "city", "tags"]), PROFILE_VALUES)),
)


def cut(events: list[UserActivity], edges: list[int]) -> list[list[UserActivity]]:
    places = sorted({0, len(events), *(edge for edge in edges if edge < len(events))})
    return [events[start:end] for start, end in pairwise(places)]


@settings(deadline=None, max_examples=300)
@given(st.lists(activities, max_size=MAX_HISTORY_ROWS), st.randoms(), st.lists(st.integers(0, 100), max_size=5))
def test_order_repetition_and_batches_do_not_matter(
    events: list[UserActivity], rng: random.Random, edges: list[int]
) -> None:
    expected = take([events])
    shuffled = events + rng.sample(events, rng.randint(0, len(events)))
    rng.shuffle(shuffled)
    assert take(cut(shuffled, edges)) == expected
    assert take([[one] for one in reversed(events)]) == expected


@settings(deadline=None, max_examples=30)
@given(st.integers(MAX_HISTORY_ROWS + 1, 3 * MAX_HISTORY_ROWS), st.randoms(), st.integers(1, 50))
def test_what_was_taken_in_before_changes_nothing_however_long_ago(count: int, rng: random.Random, step: int) -> None:
    events = [event(n, rng.randint(1, 200), attributes={f"field {n % 7}": n}) for n in range(count)]
    record, seen = UserRecord(), b""
    for start in range(0, count, step):
        merged = merge(record, events[start : start + step], ALL)
        record, seen = merged.record, seen + merged.seen
    again = merge(record, rng.sample(events, count), ALL)
    assert again.record == record
    assert compact_seen(seen + again.seen) == compact_seen(seen)
    assert again.accepted == 0
    assert again.duplicates + again.too_late == count


@settings(deadline=None, max_examples=30)
@given(st.integers(MAX_HISTORY_ROWS + 1, 3 * MAX_HISTORY_ROWS), st.randoms())
def test_the_history_is_the_newest_events_in_any_order(count: int, rng: random.Random) -> None:
    events = [event(n, rng.randint(1, 100)) for n in range(count)]
    newest = sorted((one.timestamp_ms, hash64(one.event_id)) for one in events)
    rng.shuffle(events)
    record = merge(UserRecord(), events, ALL).record
    rows = record.rows()
    assert [(int(r["timestamp_ms"]), int(r["event"])) for r in rows] == newest[-MAX_HISTORY_ROWS:]
    greatest_evicted = newest[-MAX_HISTORY_ROWS - 1]
    assert record.floor == b"".join(part.to_bytes(8, "big") for part in greatest_evicted)


def test_a_row_holds_the_event() -> None:
    record = merge(UserRecord(), [event(3, 30, action="buy", value=4.5), event(4, 20, item_id=None)], ALL).record
    first, second = record.rows()
    assert (first["timestamp_ms"], first["event"], first["item"]) == (20, hash64("event 4"), 0)
    assert np.isnan(first["value"])
    assert (second["item"], second["action"], second["value"]) == (hash64("item 3"), hash64("buy"), 4.5)
    assert record.count == 1


def test_a_late_event_stays_out_of_the_history_and_its_profile_counts() -> None:
    full = merge(UserRecord(), [event(n, 1000 + n) for n in range(MAX_HISTORY_ROWS + 1)], ALL).record
    late = merge(full, [event(999, 5, attributes={"city": "Bonn"})], ALL)
    assert (late.too_late, late.accepted) == (1, 0)
    assert (late.record.history, late.record.count) == (full.history, full.count)
    assert late.record.profile == (("city", "Bonn", 5),)
    assert seen_items(late.seen).tolist() == [hash64("item 999")]


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_contents_under_one_id_the_lesser_row_wins_in_any_order(order: int) -> None:
    pair = [event(1, 50, item_id="a"), event(1, 40, item_id=None)][::order]
    record = merge(UserRecord(), pair, ALL).record
    assert record.rows()["timestamp_ms"].tolist() == [40]
    assert record.count == 0


def test_profile_keeps_the_newest_of_each_field_and_the_newest_fields() -> None:
    record = merge(
        UserRecord(), [event(1, 10, attributes={"a": "old", "b": 1}), event(2, 20, attributes={"a": 2})], ALL
    )
    assert record.record.profile == (("a", 2, 20), ("b", 1, 10))
    many = [event(n, n, attributes={f"field {n:03}": n}) for n in range(MAX_PROFILE_FIELDS + 10)]
    profile = merge(UserRecord(), many, ALL).record.profile
    assert [name for name, _, _ in profile] == [f"field {n:03}" for n in range(10, MAX_PROFILE_FIELDS + 10)]
    huge = merge(UserRecord(), [event(1, attributes={"a": "x" * (MAX_PROFILE_VALUE_BYTES + 1), "b": 1})], ALL).record
    assert [name for name, _, _ in huge.profile] == ["b"]


def test_only_the_named_actions_count_as_seen() -> None:
    events = [event(1, action="view"), event(2, action="buy"), event(3, action="buy", item_id=None)]
    assert seen_items(merge(UserRecord(), events, frozenset({"buy"})).seen).tolist() == [hash64("item 2")]
    assert len(seen_items(merge(UserRecord(), events, ALL).seen)) == 2


def test_the_seen_set_is_bounded_and_keeps_the_newest() -> None:
    events = [event(n) for n in range(MAX_SEEN_ITEMS + 500)]
    compacted = compact_seen(merge(UserRecord(), events, ALL).seen)
    expected = {hash64(f"item {n}") for n in range(500, MAX_SEEN_ITEMS + 500)}
    assert set(seen_items(compacted).tolist()) == expected
    assert compact_seen(compacted + compacted) == compacted
    assert set(seen_items(compacted, before_ms=601).tolist()) == {hash64(f"item {n}") for n in range(500, 600)}


def test_a_forgotten_user_is_closed_to_everything_before() -> None:
    record = merge(UserRecord(), [event(1, 100, attributes={"age": 3})], ALL).record
    gone = forget(record, 90)
    assert (gone.history, gone.profile, gone.count, gone.forgotten_ms) == (b"", (), 0, 100)
    again = merge(gone, [event(1, 100, attributes={"age": 3}), event(2, 101)], ALL)
    assert (again.forgotten, again.accepted) == (1, 1)
    assert again.record.rows()["event"].tolist() == [hash64("event 2")]
    assert again.record.profile == ()
    assert forget(gone, 500).forgotten_ms == 500


def test_a_tombstone_that_comes_again_leaves_what_came_after_it() -> None:
    gone = forget(merge(UserRecord(), [event(1, 100)], ALL).record, 90)
    later = merge(gone, [event(2, 150)], ALL).record
    assert forget(later, 90) == later
    assert forget(later, 80) == later
    assert forget(later, 91).forgotten_ms == 150


def test_nothing_changed_needs_no_write() -> None:
    record = merge(UserRecord(), [event(1, item_id=None)], ALL).record
    assert not merge(record, [event(1, item_id=None)], ALL).changed
    assert not merge(record, [], ALL).changed
