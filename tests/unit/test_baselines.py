"""Each baseline against the textbook: dense, slow, and written from the formula in another form than the product's."""

import math

import numpy as np
import pytest

from models.evaluation.baselines import BASELINES
from models.evaluation.baselines.co_visitation import CoVisitation, CoVisitationOptions
from models.evaluation.baselines.decayed_popularity import DecayedPopularity
from models.evaluation.baselines.ease import Ease, EaseOptions
from models.evaluation.baselines.ials import Ials, IalsOptions
from models.evaluation.baselines.item_knn import ItemKnn, ItemKnnOptions
from models.evaluation.baselines.popularity import Popularity
from models.evaluation.histories import decayed, interactions
from models.evaluation.ranking import Asked, Ranker, rank
from models.evaluation.timeline import Timeline
from models.evaluation.window import time_window
from models.event_log import Catalogue, EventLog
from models.spec import builtin_spec, load_spec
from models.tensors import Encoding, Vocabularies
from schemas.activity import UserActivity
from schemas.items import ItemUpdate

SPEC = load_spec(builtin_spec("movielens"))
PROTOCOL = Encoding(SPEC, Vocabularies({}, []))
USERS, ITEMS, FROM_S = 12, 9, 60
RNG = np.random.default_rng(5)
RATINGS = [  # one a second: user, second, item, value; a user may rate an item again
    (int(RNG.integers(USERS)), second, int(RNG.integers(ITEMS - 1)), float(RNG.choice([3, 5]))) for second in range(90)
]
LOG = EventLog.from_activities(
    UserActivity(event_id=str(s), user_id=f"u{u}", action="rate", timestamp_ms=1000 * s, item_id=f"i{i}", value=value)
    for u, s, i, value in RATINGS
)
CATALOGUE = Catalogue.from_updates(ItemUpdate(item_id=f"i{n}", op="upsert", timestamp_ms=1) for n in range(ITEMS))
TIMELINE = Timeline(LOG, CATALOGUE, PROTOCOL)
TRAINING = Timeline(LOG.before(FROM_S * 1000), CATALOGUE, PROTOCOL)
WINDOW = time_window(TIMELINE, FROM_S * 1000)
ASKED = Asked.of(TIMELINE, WINDOW.requests)
REQUESTS = [
    (int(LOG.user_ids[u][1:]), int(t) // 1000)
    for u, t in zip(WINDOW.requests.user, WINDOW.requests.as_of_ms, strict=True)
]
MET = np.zeros((USERS, ITEMS))
for u_, s_, i_, _ in RATINGS:
    MET[u_, i_] = max(MET[u_, i_], s_ < FROM_S)


def scores(ranker: Ranker) -> np.ndarray:
    """All requests in two pieces."""
    scorer = ranker(ASKED)
    return np.concatenate([scorer(0, 3), scorer(3, len(REQUESTS))])


def newest_first(user: int, second: int) -> list[int]:
    """Items before a second, each once."""
    return list(dict.fromkeys(item for who, at, item, _ in reversed(RATINGS) if who == user and at < second))


def histories(decay: float) -> np.ndarray:
    found = np.zeros((len(REQUESTS), ITEMS))
    for row, (user, second) in enumerate(REQUESTS):
        for place, item in enumerate(newest_first(user, second)):
            found[row, item] = decay**place
    return found


def test_the_matrices_they_are_made_of() -> None:
    order = [int(name[1:]) for name in LOG.user_ids]
    assert np.array_equal(interactions(TRAINING).toarray(), MET[order])
    assert decayed(ASKED, 0, len(REQUESTS), 0.8).toarray() == pytest.approx(histories(0.8), rel=1e-6)


def test_what_is_far_back_is_forgotten() -> None:
    found = decayed(ASKED, 0, len(REQUESTS), 0.03)  # 0.03^2 is below a thousandth
    assert found.toarray().min(initial=1, where=found.toarray() > 0) == pytest.approx(0.03)
    assert max(np.diff(found.indptr)) == 2


def test_popularity_is_the_count_of_targets() -> None:
    counts = [sum(i == item and value >= 4 for _, s, i, value in RATINGS if s < FROM_S) for item in range(ITEMS)]
    assert scores(Popularity(TRAINING)).tolist() == [counts] * len(REQUESTS)


def test_decayed_popularity_halves_with_the_half_life() -> None:
    half_life_s = SPEC.popular.half_life_ms / 1000
    expected = np.zeros((len(REQUESTS), ITEMS))
    for row, (_, second) in enumerate(REQUESTS):
        for _, at, item, value in RATINGS:
            if at < second and value >= 4:
                expected[row, item] += 2 ** -((second - at) / half_life_s)
    assert scores(DecayedPopularity()) == pytest.approx(expected, rel=1e-6)
    assert not np.array_equal(expected[0], expected[-1])


def test_item_knn_is_the_shrunk_cosine_of_columns() -> None:
    similar = np.zeros((ITEMS, ITEMS))
    for a in range(ITEMS):
        for b in range(ITEMS):
            if a != b:
                both = sum(MET[user, a] and MET[user, b] for user in range(USERS))
                similar[a, b] = both / (math.sqrt(MET[:, a].sum() * MET[:, b].sum()) + 2)
    options = ItemKnnOptions(neighbours=ITEMS, shrink=2, decay=0.7)
    assert scores(ItemKnn(TRAINING, options)) == pytest.approx(histories(0.7) @ similar, rel=1e-5)
    for a in range(ITEMS):
        similar[a, similar[a] < sorted(similar[a])[-3]] = 0
    options = ItemKnnOptions(neighbours=3, shrink=2, decay=0.7)
    assert scores(ItemKnn(TRAINING, options)) == pytest.approx(histories(0.7) @ similar, rel=1e-5)


def test_ease_is_a_ridge_regression_of_each_item_on_the_others() -> None:
    """The problem that the closed form solves, one column at a time: min |X_j - X_-j w|^2 + lambda |w|^2."""
    weights = np.zeros((ITEMS, ITEMS))
    for target in range(ITEMS):
        others = [item for item in range(ITEMS) if item != target]
        x = MET[:, others]
        weights[others, target] = np.linalg.solve(x.T @ x + 4 * np.eye(len(others)), x.T @ MET[:, target])
    found = scores(Ease(TRAINING, EaseOptions(ridge=4, decay=0.9)))
    assert found == pytest.approx(histories(0.9) @ weights, rel=1e-4, abs=1e-5)


def test_ease_of_too_many_items_keeps_the_most_frequent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.evaluation.baselines.ease.MOST_ITEMS", 4)
    found = scores(Ease(TRAINING, EaseOptions(ridge=4)))
    kept = set(np.argsort(-MET.sum(0), kind="stable")[:4].tolist())
    assert {item for item in range(ITEMS) if found[:, item].any()} == kept


def test_ials_solves_the_users_as_the_paper_says() -> None:
    """x_u = (Y'Y + Y'(C - I)Y + lambda I)^-1 Y'C p, with c = alpha * weight, 1 where nothing was met."""
    options = IalsOptions(factors=4, regularization=0.5, alpha=3, iterations=5, decay=0.8)
    ranker = Ials(TRAINING, options)
    y = np.asarray(ranker.item_factors, dtype=np.float64)
    expected = np.zeros((len(REQUESTS), ITEMS))
    for row, history in enumerate(histories(0.8)):
        confidence = np.where(history > 0, 3 * history, 1)
        a = y.T @ np.diag(confidence) @ y + 0.5 * np.eye(4)
        expected[row] = y @ np.linalg.solve(a, y.T @ np.where(history > 0, confidence, 0))
    assert scores(ranker) == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert scores(Ials(TRAINING, options)) == pytest.approx(scores(ranker)), "the same seed, the same factors"


def test_ials_factors_are_a_fixed_point_of_the_alternation() -> None:
    """After enough steps, solving the items anew from the users gives the items again: it was fitted, and on this."""
    ranker = Ials(TRAINING, IalsOptions(factors=2, regularization=1, alpha=3, iterations=300))
    y, met = np.asarray(ranker.item_factors, dtype=np.float64), MET

    def solved(fixed: np.ndarray, rows: np.ndarray) -> np.ndarray:
        found = []
        for row in rows:
            confidence = np.where(row > 0, 3.0, 1.0)
            a = fixed.T @ np.diag(confidence) @ fixed + np.eye(2)
            found.append(np.linalg.solve(a, fixed.T @ np.where(row > 0, confidence, 0)))
        return np.array(found)

    assert solved(solved(y, met), met.T) == pytest.approx(y, abs=2e-2)
    assert np.abs(y).max() > 0.1


def test_co_visitation_counts_pairs_behind_each_other() -> None:
    sequences = [[i for who, s, i, _ in RATINGS if who == user and s < FROM_S] for user in range(USERS)]
    counts = [max(1, sum(items.count(item) for items in sequences)) for item in range(ITEMS)]
    pairs = np.zeros((ITEMS, ITEMS))
    for items in sequences:
        for place, earlier in enumerate(items):
            for distance, later in enumerate(items[place + 1 : place + 4], 1):
                if earlier != later:
                    pairs[earlier, later] += distance**-0.5 / counts[earlier] ** 0.5 / counts[later] ** 0.25
    found = scores(CoVisitation(TRAINING, CoVisitationOptions(window=3, decay=0.85)))
    assert found == pytest.approx(histories(0.85) @ pairs, rel=1e-5)


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_ranks_every_target(name: str) -> None:
    found = rank(BASELINES[name](TRAINING), TIMELINE, WINDOW, lambda _: None)
    assert np.isfinite(found.ranks).all()
    assert found.ranks.max() < ITEMS


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_stands_a_log_without_events(name: str) -> None:
    nothing = Timeline(LOG.before(0), CATALOGUE, PROTOCOL)
    found = BASELINES[name](nothing)(ASKED)(0, 2)
    assert found.shape == (2, ITEMS)
    assert np.isfinite(found).all()
