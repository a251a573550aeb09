"""Metrics against cases worked out by hand, and against a slow implementation that says what they mean."""

import math
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.evaluation.metrics import Interval, macro, metrics, paired_intervals

RANKS = st.floats(0, 300).map(lambda value: round(value * 2) / 2)  # ties give halves
TARGETS = st.lists(st.tuples(st.integers(0, 4), RANKS, RANKS), min_size=1, max_size=30)
few = settings(max_examples=30, deadline=None)


def slow(ranks: list[float]) -> dict[str, float]:
    """The definitions, word by word: one relevant item, whose place from 1 is rank + 1."""
    found = {f"recall_at_{k}": fmean(1.0 if rank + 1 <= k else 0.0 for rank in ranks) for k in (10, 50, 100)}
    for k in (10, 100):
        found[f"ndcg_at_{k}"] = fmean(1 / math.log2(1 + rank + 1) if rank + 1 <= k else 0.0 for rank in ranks)
    return found


def whole(ranks: list[float]) -> list[float]:
    return [float(int(rank)) for rank in ranks]


def test_by_hand() -> None:
    ranks = np.array([0.0, 2.0, 10.0, 99.0, 100.0])
    found = metrics(ranks)
    assert (found["recall_at_10"], found["recall_at_50"], found["recall_at_100"]) == (2 / 5, 3 / 5, 4 / 5)
    assert found["ndcg_at_10"] == pytest.approx((1 + 1 / 2) / 5)
    assert found["ndcg_at_100"] == pytest.approx((1 + 1 / 2 + 1 / math.log2(12) + 1 / math.log2(101)) / 5)


def test_macro_by_hand() -> None:
    """One user has one hit in one target, another one in four: the mean of 1 and 1/4, not 2/5."""
    found = macro(np.array([0.0, 0.0, 500.0, 500.0, 500.0]), np.array([7, 3, 3, 3, 3]))
    assert found["recall_at_10"] == pytest.approx((1 + 1 / 4) / 2)


def test_of_nothing() -> None:
    nothing = np.zeros(0)
    assert set(metrics(nothing).values()) == {0.0}
    assert set(macro(nothing, np.zeros(0, dtype=np.int64)).values()) == {0.0}
    assert paired_intervals({"a": nothing, "b": nothing}, "a", np.zeros(0, dtype=np.int64), 100, 0) == {}


@few
@given(TARGETS)
def test_like_the_definitions(targets: list[tuple[int, float, float]]) -> None:
    user, ranks = [t[0] for t in targets], whole([t[1] for t in targets])
    assert metrics(np.array(ranks)) == pytest.approx(slow(ranks))
    each = [slow([rank for who, rank in zip(user, ranks, strict=True) if who == name]) for name in sorted(set(user))]
    expected = {metric: fmean(one[metric] for one in each) for metric in each[0]}
    assert macro(np.array(ranks), np.array(user)) == pytest.approx(expected)


@few
@given(TARGETS)
def test_intervals_like_a_loop_over_resamples(targets: list[tuple[int, float, float]]) -> None:
    user = np.array([t[0] for t in targets])
    ours, other = np.array(whole([t[1] for t in targets])), np.array(whole([t[2] for t in targets]))
    found = paired_intervals({"ours": ours, "other": other}, "other", user, 100, 3)["ours"]
    names, rng = np.unique(user), np.random.default_rng(3)
    micro, means = [], []
    for _ in range(100):
        drawn = [names[place] for place in rng.integers(len(names), size=len(names))]
        rows = np.concatenate([np.flatnonzero(user == name) for name in drawn])
        micro.append((ours[rows] < 10).mean() - (other[rows] < 10).mean())
        by_user = [(ours[user == name] < 10).mean() - (other[user == name] < 10).mean() for name in drawn]
        means.append(np.mean(by_user))
    for kind, draws in (("micro", micro), ("macro", means)):
        low, high = np.quantile(draws, [0.025, 0.975])
        interval = found[kind]["recall_at_10"]
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-9)
    assert found["micro"]["recall_at_10"].difference == pytest.approx((ours < 10).mean() - (other < 10).mean())


def test_a_model_beside_itself_differs_by_nothing() -> None:
    ranks, user = np.arange(40.0), np.repeat(np.arange(8), 5)
    found = paired_intervals({"a": ranks, "b": ranks.copy()}, "a", user, 200, 0)
    assert set(found) == {"b"}
    assert found["b"]["micro"]["recall_at_10"] == Interval(0, 0, 0)


def test_an_interval_narrows_with_more_users() -> None:
    rng = np.random.default_rng(1)

    def span(users: int) -> float:
        user = np.repeat(np.arange(users), 4)
        ranks = {name: rng.integers(0, 20, len(user)).astype(float) for name in ("a", "b")}
        interval = paired_intervals(ranks, "a", user, 300, 0)["b"]["micro"]["recall_at_10"]
        assert interval.low <= interval.difference <= interval.high
        return interval.high - interval.low

    assert span(1600) < span(25) / 3
