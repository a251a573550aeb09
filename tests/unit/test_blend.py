"""Several lists into one: weights, quotas, caps, a stable order, and never a short list for a quota's sake."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.blend import RANK_OFFSET, Blended, Ranked, blend
from workers.plans import SourceShare

IDS = [f"i{n:02}" for n in range(40)]


def ranked(name: str, item_ids: list[str], **share: float) -> Ranked:
    scores = np.linspace(9, 1, len(item_ids), dtype=np.float32)
    return Ranked(SourceShare(name, **share), item_ids, scores)


def test_a_single_source_keeps_its_scores_and_its_order() -> None:
    only = ranked("tower", IDS[:5])
    chosen = blend([only, ranked("popular", [])], 3)
    assert chosen.item_ids == IDS[:3]
    np.testing.assert_array_equal(chosen.scores, only.scores[:3])
    assert chosen.sources == ["tower"] * 3


def test_nothing_found_is_an_empty_list() -> None:
    assert blend([], 5).item_ids == blend([ranked("tower", [])], 5).item_ids == []
    assert blend([ranked("tower", []), ranked("popular", [])], 5, [("seller", 1)]).sources == []


def test_scores_are_weighted_reciprocal_ranks() -> None:
    chosen = blend([ranked("tower", ["a", "b"], weight=2), ranked("popular", ["b", "c"])], 10)
    expected = {"a": 2 / 61, "b": 2 / 62 + 1 / 61, "c": 1 / 62}
    assert chosen.item_ids == sorted(expected, key=lambda item_id: -expected[item_id])
    np.testing.assert_allclose(chosen.scores, sorted(expected.values(), reverse=True), rtol=1e-6)
    assert dict(zip(chosen.item_ids, chosen.sources, strict=True)) == {
        "a": "tower", "b": "tower+popular", "c": "popular",
    }  # fmt: skip
    assert chosen.duplicates == 1


def test_the_source_that_contributed_most_stands_first() -> None:
    chosen = blend([ranked("tower", ["x", "a"]), ranked("popular", ["a"])], 10)
    assert chosen.sources[chosen.item_ids.index("a")] == "popular+tower"


def test_equal_scores_are_ordered_by_item_id() -> None:
    assert blend([ranked("tower", ["b"]), ranked("popular", ["a"])], 2).item_ids == ["a", "b"]


def test_at_least_keeps_places_for_a_weak_source() -> None:
    strong, weak = ranked("tower", IDS[:30]), ranked("popular", IDS[30:], weight=0.01, at_least=3)
    chosen = blend([strong, weak], 10)
    assert Counter(chosen.sources) == {"tower": 7, "popular": 3}
    assert [i for i, s in zip(chosen.item_ids, chosen.sources, strict=True) if s == "popular"] == IDS[30:33]


def test_what_others_have_found_counts_for_at_least() -> None:
    chosen = blend([ranked("tower", IDS[:20]), ranked("popular", IDS[:3], weight=0.01, at_least=3)], 10)
    assert chosen.item_ids == IDS[:10]


def test_at_most_limits_a_source_while_others_have_items() -> None:
    chosen = blend([ranked("tower", IDS[:20], at_most=4, weight=5), ranked("popular", IDS[20:])], 10)
    assert Counter(chosen.sources) == {"tower": 4, "popular": 6}


def test_a_quota_gives_way_before_a_list_is_short() -> None:
    chosen = blend([ranked("tower", IDS[:20], at_most=4), ranked("popular", IDS[20:22])], 10)
    assert Counter(chosen.sources) == {"tower": 8, "popular": 2}


@pytest.mark.parametrize("sources", [1, 2])
def test_caps_hold_always_and_the_best_of_a_value_stay(sources: int) -> None:
    attributes = {item_id: {"seller": "a" if n < 10 else f"s{n}"} for n, item_id in enumerate(IDS)}
    lists = [ranked("tower", IDS), ranked("popular", IDS[5:15])][:sources]
    chosen = blend(lists, 12, [("seller", 3)], attributes)
    of_a = [item_id for item_id in chosen.item_ids if attributes[item_id]["seller"] == "a"]
    assert len(of_a) == 3
    assert len(chosen.item_ids) == 12
    if sources == 1:
        assert chosen.item_ids == [*IDS[:3], *IDS[10:19]]


def test_caps_count_every_value_of_a_list_and_leave_out_items_that_lack_the_field() -> None:
    attributes = {"a": {"tags": ["x", "y", "x"]}, "b": {"tags": ["y"]}, "c": {}, "d": {"tags": ["z"]}, "e": {}}
    chosen = blend([ranked("tower", ["a", "b", "c", "d", "e"])], 5, [("tags", 1)], attributes)
    assert chosen.item_ids == ["a", "c", "d", "e"]


def test_caps_make_a_list_short_rather_than_break() -> None:
    attributes = {item_id: {"seller": "a"} for item_id in IDS}
    assert blend([ranked("tower", IDS, at_least=10)], 10, [("seller", 2)], attributes).item_ids == IDS[:2]


@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(1, 3))
def test_any_lists_give_an_ordered_list_of_distinct_items(seed: int, k: int, count: int) -> None:
    chance = random.Random(seed)
    lists = [
        ranked(
            f"s{n}",
            chance.sample(IDS, chance.randint(0, 25)),
            weight=chance.choice([0.5, 1, 2]),
            at_least=chance.randint(0, 5),
            at_most=chance.randint(5, 20),
        )
        for n in range(count)
    ]
    attributes = {item_id: {"seller": chance.choice("abcdef")} for item_id in IDS}
    caps = [("seller", chance.randint(1, 8))] if chance.random() < 0.5 else []
    chosen = blend(lists, k, caps, attributes)
    _check(chosen, lists, k, caps, attributes)
    assert blend(lists, k, caps, attributes).item_ids == chosen.item_ids


def _check(chosen: Blended, lists: list[Ranked], k: int, caps: list, attributes: dict) -> None:
    found = {item_id for each in lists for item_id in each.item_ids}
    assert set(chosen.item_ids) <= found
    assert len(chosen.item_ids) == len(set(chosen.item_ids)) == len(chosen.scores) == len(chosen.sources)
    if not caps:
        assert len(chosen.item_ids) == min(k, len(found))
    for field, limit in caps:
        assert max(Counter(attributes[i][field] for i in chosen.item_ids).values(), default=0) <= limit
    pairs = list(zip((-chosen.scores).tolist(), chosen.item_ids, strict=True))
    if sum(bool(each.item_ids) for each in lists) > 1:
        assert pairs == sorted(pairs)
    for item_id, sources in zip(chosen.item_ids, chosen.sources, strict=True):
        assert set(sources.split("+")) == {each.share.name for each in lists if item_id in each.item_ids}


def test_scores_that_are_equal_as_they_are_published_are_ordered_by_item_id() -> None:
    chance = random.Random(3)
    for _ in range(50):
        weights = ((1, 0.5, 0.3), (1, 1, 1))[chance.randint(0, 1)]
        lists = [ranked(f"s{n}", chance.sample(IDS, 30), weight=weight) for n, weight in enumerate(weights)]
        chosen = blend(lists, 40)
        pairs = list(zip((-chosen.scores).tolist(), chosen.item_ids, strict=True))
        assert pairs == sorted(pairs)


def test_the_offset_is_the_one_of_the_paper() -> None:
    assert RANK_OFFSET == 60
