"""The harness: what a request may see, who is a candidate, and where a target stands, beside a slow implementation."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from models.evaluation import ranking
from models.evaluation.histories import decayed
from models.evaluation.ranking import Asked, RankingError, Scorer, rank
from models.evaluation.timeline import AT_ONCE, DAY_MS, Delay, Timeline
from models.evaluation.window import Window, time_window
from models.event_log import Catalogue, EventLog
from models.samples import Requests
from models.spec import builtin_spec, load_spec
from models.tensors import Encoding, Vocabularies
from schemas.activity import UserActivity
from schemas.items import ItemUpdate

SPEC = load_spec(builtin_spec("movielens"))
PROTOCOL = Encoding(SPEC, Vocabularies({}, []))
ITEMS = [f"i{n}" for n in range(7)]
CATALOGUE = Catalogue.from_updates(ItemUpdate(item_id=i, op="upsert", timestamp_ms=1) for i in ITEMS)
FROM_S = 6
RATING = st.tuples(st.integers(0, 2), st.integers(0, 14), st.integers(0, 6), st.sampled_from([2, 5]))
RATINGS = st.lists(RATING, max_size=25)
few = settings(max_examples=30, deadline=None)


def log_of(ratings: list[tuple[int, int, int, int]]) -> EventLog:
    """(user, second, item, value); an event for every user, so that all are known by the same index."""
    events = [(user, 0, 0, 2) for user in range(3)] + ratings
    return EventLog.from_activities(
        UserActivity(
            event_id=str(n),
            user_id=f"u{user}",
            action="rate",
            timestamp_ms=second * 1000 + n % 3,  # within its second
            item_id=ITEMS[item],
            value=value,
        )
        for n, (user, second, item, value) in enumerate(events)
    )


def asked_of(log: EventLog) -> tuple[Timeline, Window]:
    timeline = Timeline(log, CATALOGUE, PROTOCOL)
    return timeline, time_window(timeline, FROM_S * 1000)


class LastItems:
    """Prefers what is near the newest visible item in the catalogue: its scores depend on what it is shown."""

    def __call__(self, asked: Asked, /) -> Scorer:
        def scores(begin: int, end: int) -> np.ndarray:
            found = np.zeros((end - begin, len(asked.timeline.catalogue)), dtype=np.float32)
            for row, request in enumerate(range(begin, end)):
                rows = slice(asked.begin[request], asked.end[request])
                last = sum(asked.timeline.item[rows].tolist())
                found[row] = -np.abs(np.arange(found.shape[1]) - last % found.shape[1])
            return found

        return scores


@few
@given(RATINGS)
def test_ranks_like_a_slow_reading_of_the_protocol(ratings: list[tuple[int, int, int, int]]) -> None:
    timeline, window = asked_of(log_of(ratings))
    found = rank(LastItems(), timeline, window, lambda _: None)
    events = [(user, 0, 0, 2) for user in range(3)] + ratings
    expected, shown = [], np.zeros(7, dtype=int)
    wanted = sorted({(user, second) for user, second, _, value in events if value >= 4 and second >= FROM_S})
    for user, second in wanted:
        before = [item for who, at, item, _ in events if who == user and at < second]
        candidates = [item for item in range(7) if item not in before]
        score = {item: -abs(item - sum(before) % 7) for item in range(7)}
        shown[candidates] += 1
        for who, at, item, value in events:
            if (who, at) == (user, second) and value >= 4:
                better = sum(score[each] > score[item] for each in candidates)
                equal = sum(score[each] == score[item] for each in candidates if each != item)
                expected.append((user, second, item, better + equal / 2 if item in candidates else None))
    seconds = (window.requests.as_of_ms // 1000)[window.request]
    got = zip(window.user.tolist(), seconds.tolist(), window.item.tolist(), found.ranks.tolist(), strict=True)
    for (*ours, place), (*theirs, at) in zip(sorted(expected, key=str), sorted(got, key=str), strict=True):
        assert ours == theirs
        assert place is None or place == at
    assert found.shown.tolist() == shown.tolist()


@few
@given(RATINGS)
def test_nothing_of_the_request_s_own_second_or_later_changes_a_score(
    ratings: list[tuple[int, int, int, int]],
) -> None:
    """The user's events from the request's second on are replaced by others: scores and history stay."""
    timeline, window = asked_of(log_of(ratings))
    for n, (user, as_of_ms) in enumerate(zip(window.requests.user, window.requests.as_of_ms, strict=True)):
        second = int(as_of_ms) // 1000
        later = [each[0] == user and each[1] >= second for each in ratings]
        changed = [
            (u, s + 1, 6 - i, 7 - v) if new else (u, s, i, v) for (u, s, i, v), new in zip(ratings, later, strict=True)
        ]
        other = Timeline(log_of([*changed, (int(user), second, 3, 5)]), CATALOGUE, PROTOCOL)
        one = window.requests.piece(n, n + 1)
        before, after = (LastItems()(Asked.of(each, one))(0, 1) for each in (timeline, other))
        assert np.array_equal(before, after)
        histories = [decayed(Asked.of(each, one), 0, 1, 0.5).toarray() for each in (timeline, other)]
        assert np.array_equal(*histories)


@few
@given(RATINGS, st.integers(0, 5))
def test_delayed_features_are_those_of_the_record_that_long_before(
    ratings: list[tuple[int, int, int, int]], late_s: int
) -> None:
    timeline, window = asked_of(log_of(ratings))
    asked = Asked.of(timeline, window.requests, Delay(late_s * 1000))
    times = timeline.time_ms
    for request, (begin, end) in enumerate(zip(asked.begin.tolist(), asked.end.tolist(), strict=True)):
        limit = (int(window.requests.as_of_ms[request]) - late_s * 1000) // 1000
        mine = np.flatnonzero(timeline.log.user[timeline.log.order] == window.requests.user[request])
        assert list(range(begin, end)) == [row for row in mine.tolist() if times[row] // 1000 < limit]


def test_nightly_features_are_those_of_the_last_midnight() -> None:
    times = np.array([0, 1, DAY_MS - 1, DAY_MS, 3 * DAY_MS + 5])
    assert Delay(nightly=True).visible_before_ms(times).tolist() == [0, 0, 0, DAY_MS, 3 * DAY_MS]
    assert AT_ONCE.visible_before_ms(times).tolist() == times.tolist()


def test_pieces_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    ratings = [tuple(row) for row in rng.integers([0, 0, 0, 2], [3, 30, 7, 6], size=(60, 4)).tolist()]
    timeline, window = asked_of(log_of(ratings))
    at_once = rank(LastItems(), timeline, window, lambda _: None)
    monkeypatch.setattr(ranking, "MOST_ROWS", 3)
    pieces = rank(LastItems(), timeline, window, lambda _: None)
    assert len(window.requests.user) > 6
    assert np.array_equal(at_once.ranks, pieces.ranks)
    assert np.array_equal(at_once.shown, pieces.shown)


def test_only_the_first_hundred_are_shown() -> None:
    many = Catalogue.from_updates(ItemUpdate(item_id=f"i{n}", op="upsert", timestamp_ms=1) for n in range(150))
    timeline = Timeline(log_of([(0, 8, 1, 5)]), many, PROTOCOL)
    found = rank(LastItems(), timeline, time_window(timeline, FROM_S * 1000), lambda _: None)
    assert found.shown.tolist() == [0, *[1] * 100, *[0] * 49], "item 0 was seen"


def test_a_score_that_is_no_number_is_refused() -> None:
    """A comparison with NaN is false: such a model would have every target in the first place."""
    timeline, window = asked_of(log_of([(0, 8, 1, 5)]))
    with pytest.raises(RankingError, match="not a number"):
        rank(lambda _: lambda begin, end: np.full((end - begin, 7), np.nan, np.float32), timeline, window, print)


@few
@given(RATINGS)
def test_what_counts_is_what_the_spec_names(ratings: list[tuple[int, int, int, int]]) -> None:
    codes = tuple(structs.replace(code, action="buy") for code in SPEC.history.codes)
    spec = structs.replace(SPEC, history=structs.replace(SPEC.history, codes=codes))
    timeline = Timeline(log_of(ratings), CATALOGUE, replace(PROTOCOL, spec=spec))
    assert not timeline.counts.any()
    requests = Requests(np.array([0]), np.array([99_000]), [None])
    assert decayed(Asked.of(timeline, requests), 0, 1, 0.9).nnz == 0
