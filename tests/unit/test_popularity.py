"""Popularity: what an event adds, and partitions as one."""

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.spec import MIN_HALF_LIFE_MS, parse_spec
from models.tensors import Encoding, Vocabularies
from schemas.activity import UserActivity
from schemas.records import ProfileField, hash64
from workers.pipelines.activity_event import ActivityEvent
from workers.pipelines.popular_counts import PopularCounts
from workers.popularity import EPOCH_HALF_LIVES, EVERYBODY, UNIT, EpochCounts, Popularity, forward_weight, merged
from workers.stores.popular_memory import MemoryPopularTable

HOUR_MS = 3_600_000
EPOCH_MS = EPOCH_HALF_LIVES * HOUR_MS
SPEC = """
name = "films"
[history]
length = 10
[[history.codes]]
action = "rate"
[target]
action = "rate"
at_least = 4.1
[profile]
city = { kind = "category" }
[popular]
half_life_ms = 3_600_000
segment = "city"
"""


def popularity(spec: str = SPEC) -> Popularity:
    return Popularity(Encoding(parse_spec(spec), Vocabularies({"profile.city": ["7", "Bonn", "true"]}, [])))


def rated(**fields: Any) -> UserActivity:
    defaults = {"event_id": "e", "user_id": "u", "action": "rate", "timestamp_ms": 0, "item_id": "a", "value": 5.0}
    return UserActivity(**defaults | fields)


def living_in(city: Any) -> tuple[ProfileField, ...]:
    return (("age", 3, 1), ("city", city, 2))


def test_an_event_weighs_twice_as_much_a_half_life_later() -> None:
    assert [forward_weight(n * HOUR_MS, HOUR_MS) for n in range(3)] == [(0, UNIT), (0, 2 * UNIT), (0, 4 * UNIT)]
    assert forward_weight(EPOCH_MS - 1, HOUR_MS) == (0, 67_108_851)
    assert forward_weight(EPOCH_MS, HOUR_MS) == (1, UNIT)
    assert forward_weight(EPOCH_MS + HOUR_MS // 2, HOUR_MS) == (1, round(UNIT * 2**0.5))


@given(st.integers(0, 2**45), st.integers(MIN_HALF_LIFE_MS, 2**60))
def test_a_later_event_never_weighs_less(timestamp_ms: int, half_life_ms: int) -> None:
    epoch, amount = forward_weight(timestamp_ms, half_life_ms)
    next_epoch, next_amount = forward_weight(timestamp_ms + 1, half_life_ms)
    assert UNIT <= amount <= UNIT << EPOCH_HALF_LIVES
    assert (next_epoch, next_amount) >= (epoch, amount)


def test_target_events_that_name_an_item_count() -> None:
    one = (0, EVERYBODY, hash64("a"), UNIT)
    assert popularity().addition(rated(), ()) == one
    assert popularity().addition(rated(value=float(np.float32(4.1))), ()) == one
    for other in ({"action": "view"}, {"item_id": None}, {"value": None}, {"value": 4.0}):
        assert popularity().addition(rated(**other), ()) is None
    any_value = SPEC.replace("at_least = 4.1", "")
    assert popularity(any_value).addition(rated(value=None), ()) == one


@given(st.floats(-(2.0**100), 2.0**100, width=32), st.integers(-3, 3), st.floats(-0.6, 0.6))
def test_values_are_compared_as_32_bit_floats(at_least: float, steps: int, part: float) -> None:
    rule = popularity(SPEC.replace("4.1", repr(at_least)))
    apart = float(np.spacing(np.float32(at_least)))
    for value in (at_least, at_least + steps * apart / 2, at_least + part * apart):
        assert (rule.addition(rated(value=value), ()) is not None) == bool(np.float32(value) >= np.float32(at_least))


@pytest.mark.parametrize(
    ("city", "segment"),
    [("Bonn", "Bonn"), (7, "7"), (7.0, "7"), (True, "true"), ("Rome", ""), ("", ""), (None, ""), (["Bonn"], "")],
)
def test_the_segment_is_a_value_that_the_bundle_knows(city: Any, segment: str) -> None:
    assert popularity().addition(rated(), living_in(city)) == (0, segment, hash64("a"), UNIT)
    assert popularity().segments == ["7", "Bonn", "true"]


def test_without_a_segment_everybody_counts_alone() -> None:
    everybody = popularity(SPEC.replace('segment = "city"', ""))
    assert everybody.segments == []
    assert everybody.addition(rated(), living_in("Bonn")) == (0, EVERYBODY, hash64("a"), UNIT)


def test_another_rule_has_other_counts_and_another_vocabulary_has_not() -> None:
    changes = [("4.1", "4.2"), ("3_600_000", "3_600_001"), ('segment = "city"', ""), ('"rate"', '"view"')]
    rules = {popularity(SPEC.replace(*change)).definition for change in changes} | {popularity().definition}
    assert len(rules) == 5
    assert all(len(rule) == 16 for rule in rules)
    other = Popularity(Encoding(parse_spec(SPEC), Vocabularies({}, [])))
    assert other.definition == popularity().definition


def counts(epoch: int, **amounts: int) -> EpochCounts:
    hashes = np.array([int(name[1:]) for name in amounts], dtype=np.uint64)
    return EpochCounts(epoch, hashes, np.array(list(amounts.values()), dtype=np.float64))


def test_partitions_and_epochs_as_one_in_any_order() -> None:
    rng = random.Random(1)
    parts = [counts(9, **{f"i{n}": rng.randint(1, 2**40) for n in rng.sample(range(30), 20)}) for _ in range(4)] + [
        counts(8, **{f"i{n}": rng.randint(1, 2**40) for n in range(30)})
    ]
    expected = merged(parts, 25)
    assert len(expected.hashes) == 25
    assert (np.diff(expected.scores) <= 0).all()
    for _ in range(20):
        rng.shuffle(parts)
        again = merged(parts, 25)
        assert again.hashes.tolist() == expected.hashes.tolist()
        assert again.scores.tobytes() == expected.scores.tobytes()


def test_nothing_and_one() -> None:
    for parts in ([], [counts(3)]):
        nothing = merged(parts, 10)
        assert (nothing.hashes.tolist(), nothing.scores.tolist()) == ([], [])
    one = merged([counts(3, i5=2 * UNIT), counts(2, i5=UNIT << EPOCH_HALF_LIVES)], 10)
    assert (one.hashes.tolist(), one.scores.tolist()) == ([5], [3.0])


def event(offset: int, partition: int = 0, **fields: Any) -> ActivityEvent:
    return ActivityEvent("u", rated(event_id=f"{partition}-{offset}", **fields), 0, partition, offset)


async def total(table: MemoryPopularTable) -> float:
    [top] = await table.top([EVERYBODY], 10)
    return float(top.scores.sum())


async def test_a_batch_that_comes_again_adds_only_what_is_new() -> None:
    table = MemoryPopularTable()
    popular = PopularCounts(table, popularity())

    async def take(*events: ActivityEvent) -> int:
        return await popular.add(events, [(each, ()) for each in events])

    await table.expect({0: 5})
    assert await take(event(5), event(6), event(0, partition=1)) == 3
    assert await take(event(4), event(5), event(6), event(7), event(0, partition=1)) == 1, (
        "what stands below a counted offset was decided on then"
    )
    assert await take(event(6), event(7)) == 0
    assert await take(event(7), event(9), event(1, partition=1)) == 2
    assert await total(table) == 6


async def test_where_nothing_counts_the_offsets_are_taken_all_the_same() -> None:
    table = MemoryPopularTable()
    popular = PopularCounts(table, popularity())
    batch = [event(0), event(1, value=1.0), event(2)]
    assert await popular.add(batch, [(batch[1], ())]) == 0
    assert await popular.add(batch, [(each, ()) for each in batch]) == 0
    assert await total(table) == 0


async def test_what_came_from_no_log_does_not_count() -> None:
    table = MemoryPopularTable()
    stray = ActivityEvent("u", rated(), 0)
    assert await PopularCounts(table, popularity()).add([stray], [(stray, ())]) == 0
    assert await total(table) == 0


@pytest.mark.parametrize("behind", [1, 67, 10_000])
def test_partitions_that_stood_still_are_weighed_among_themselves(behind: int) -> None:
    """However far ahead the newest epoch is of which there is no item of the segment."""
    hashes = np.array([hash64("a"), hash64("b")], dtype=np.uint64)
    nothing = EpochCounts(10_000 + behind, np.zeros(0, dtype=np.uint64), np.zeros(0))
    old = EpochCounts(10_000, hashes, np.array([2.0 * UNIT, 6.0 * UNIT]))
    for parts in ([nothing, old], [old, nothing]):
        found = merged(parts, 10)
        assert found.hashes.tolist() == hashes[::-1].tolist()
        assert found.scores.tolist() == [6.0, 2.0]
    assert len(merged([nothing], 10).hashes) == 0
