"""From facts to inputs: what is visible, where it stands, and that serving and fitting see the same."""

import random

import numpy as np
import pytest

from models import tensors
from models.columns import UserFeatures
from models.datasets import Dataset
from models.datasets.generated import generate
from models.datasets.marketplace import generate_marketplace
from models.event_log import EventLog
from models.spec import Field, builtin_spec, load_spec
from models.tensors import EVERYTHING_MS, Encoding, Vocabularies
from schemas.activity import UserActivity
from schemas.records import UserRecord, hash64
from workers.merge import merge

SPEC = load_spec(builtin_spec("movielens"))
ENCODING = Encoding(SPEC, Vocabularies({"profile.gender": ["F", "M"], "item.genres": ["Drama", "War"]}, ["a", "b"]))
H = SPEC.history.length


def rate(n: int, time_ms: int, item: str | None = None, value: float | None = 5.0) -> UserActivity:
    return UserActivity(
        event_id=f"e{n}", user_id="u", action="rate", timestamp_ms=time_ms, item_id=item or f"i{n}", value=value
    )


def record(*events: UserActivity) -> bytes:
    return merge(UserRecord(), events, frozenset()).record.encode()


def features(*records: bytes | None, before_ms: int = EVERYTHING_MS) -> UserFeatures:
    return tensors.user_features(records, np.full(len(records), before_ms), ENCODING)


def columns(found: UserFeatures) -> dict[str, np.ndarray]:
    plain = {n: getattr(found, n) for n in ("item_hashes", "codes", "timestamps_ms", "counts", "newest_ms", "known")}
    return plain | found.profile


def test_history_stands_right_aligned_newest_last() -> None:
    found = features(record(rate(1, 1000, value=1.0), rate(3, 3000, value=5.0), rate(2, 2000, value=None)))
    assert found.item_hashes[0, -3:].tolist() == [hash64("i1"), hash64("i2"), hash64("i3")]
    assert found.codes[0, -3:].tolist() == [1, 0, 5], "a rating without a value has no code"
    assert not found.item_hashes[0, :-3].any()
    assert (found.counts[0], found.newest_ms[0]) == (3, 3000)


def test_only_earlier_seconds_are_visible() -> None:
    stored = record(rate(1, 1999), rate(2, 2000), rate(3, 2999))
    assert features(stored, before_ms=2999).item_hashes[0, -1] == hash64("i1")
    assert features(stored, before_ms=2999).counts.tolist() == [1]
    assert features(stored, before_ms=3000).counts.tolist() == [3]
    assert features(stored, before_ms=1000).counts.tolist() == [0]


def test_only_the_newest_of_the_spec_are_seen_and_all_are_counted() -> None:
    found = features(record(*(rate(n, 1000 * n) for n in range(1, 61))))
    assert found.item_hashes.shape == (1, H)
    assert found.item_hashes[0].tolist() == [hash64(f"i{n}") for n in range(61 - H, 61)]
    assert found.counts.tolist() == [60]


def test_events_without_an_item_take_no_place() -> None:
    profile = UserActivity(event_id="p", user_id="u", action="profile", timestamp_ms=500, attributes={"gender": "M"})
    found = features(record(profile, rate(1, 1000)))
    assert np.count_nonzero(found.item_hashes) == 1
    assert (found.counts[0], found.profile["profile_gender"][0]) == (1, 2)
    assert features(record(profile), before_ms=500).profile["profile_gender"][0] == 0, "not yet visible"
    assert features(record(profile)).known.tolist() == [True]


def test_unknown_forgotten_and_unreadable_users() -> None:
    forgotten = UserRecord(forgotten_ms=5).encode()
    found = features(None, forgotten, b"\xff" + bytes(50), record(rate(1, 1000)))
    assert found.known.tolist() == [False, False, False, True]
    assert found.unreadable.tolist() == [False, False, True, False]
    assert found.counts.tolist() == [0, 0, 0, 1]


def test_a_batch_is_its_users_one_by_one() -> None:
    stored = [record(*(rate(n, 1000 * n) for n in range(count))) for count in (0, 1, 5, 64, 100)] + [None]
    together = features(*stored, before_ms=50_000)
    for n, one in enumerate(stored):
        alone = columns(features(one, before_ms=50_000))
        for name, column in columns(together).items():
            np.testing.assert_array_equal(column[n : n + 1], alone[name])


def test_ages_and_gaps_go_in_steps_and_never_below_zero() -> None:
    found = features(record(rate(1, 1500), rate(2, 9900)))
    inputs = tensors.history_inputs(found, np.array([4200]), SPEC)
    assert inputs["history_age_s"][0, -2:].tolist() == [3.0, 0.0]
    assert inputs["gap_s"].tolist() == [0.0]
    assert inputs["event_count"].tolist() == [2.0]


@pytest.mark.parametrize(
    ("field", "values", "expected"),
    [
        (Field("category"), ["b", "a", None, "new", 3, True, ["a"]], [2, 1, 0, 0, 3, 0, 0]),
        (Field("bucket", edges=(10, 20)), [5, 10, 19.9, 20, None, "10", True], [1, 2, 2, 3, 0, 0, 0]),
        (Field("number"), [1.5, 2, None, "2"], [1.5, 2.0, 0.0, 0.0]),
        (Field("number", log=True), [0, np.e - 1, -5], [0.0, 1.0, 0.0]),
        (Field("multi"), [["a", "b"], ["b", "new"], "a", None, 7], [[1, 1, 0], [0, 1, 0], [1, 0, 0], [0] * 3, [0] * 3]),
    ],
    ids=["category", "bucket", "number", "log", "multi"],
)
def test_one_column_per_field(field: Field, values: list, expected: list) -> None:
    column = tensors.encode_field(field, values, {"a": 1, "b": 2, "3": 3})
    np.testing.assert_allclose(column, expected, atol=1e-6)


def test_a_vocabulary_holds_the_most_frequent_values() -> None:
    genres = [{"genres": [f"g{n:04}", f"g{n % 2000:04}"]} for n in range(2200)]  # the first 200 stand there twice
    log = EventLog.from_activities([])
    vocabulary = tensors.build_vocabularies(log, [], [*genres, {}, {"genres": None}], SPEC).values["item.genres"]
    assert vocabulary == sorted(vocabulary)
    assert len(vocabulary) == tensors.MAX_VALUES
    assert vocabulary[:200] == [f"g{n:04}" for n in range(200)]


def test_a_vocabulary_has_no_value_that_no_record_keeps() -> None:
    values = ["M", "F" * 1100, ["x"] * 600, "F" * 1021, "F" * 1022]  # each with three bytes before it
    log = EventLog.from_activities(
        UserActivity(event_id=f"e{n}", user_id="u", action="profile", timestamp_ms=n, attributes={"gender": value})
        for n, value in enumerate(values)
    )
    assert tensors.build_vocabularies(log, [], [], SPEC).values["profile.gender"] == ["F" * 1021, "M"]


def test_item_inputs() -> None:
    inputs = tensors.item_inputs(["b", "zzz"], [{"genres": ["War"], "year": 1926}, {}], ENCODING)
    assert inputs["item_code"].tolist() == [2, 0]
    assert inputs["item_genres"].tolist() == [[0, 1], [0, 0]]
    assert inputs["item_year"].tolist() == [2, 0]


@pytest.mark.parametrize(
    "dataset", [generate(300, 80, 6000), generate_marketplace(200, 60, 1200)], ids=lambda d: d.name
)
def test_fitting_sees_what_serving_sees(dataset: Dataset) -> None:
    """Every user's events merged into a record in random batches, against the columns straight from the log."""
    rng = random.Random(5)
    spec = load_spec(builtin_spec(dataset.spec))
    log = dataset.log
    vocabularies = tensors.build_vocabularies(log, dataset.item_ids, dataset.attributes, spec)
    encoding = Encoding(spec, vocabularies)
    rows = rng.sample(range(len(log)), 150)
    users, before_ms = log.user[rows].astype(np.int64), log.timestamp_ms[rows] + rng.choice([0, 1, 999])
    stored = [
        _record_before(dataset, int(user), int(limit), spec, rng) for user, limit in zip(users, before_ms, strict=True)
    ]
    live = tensors.user_features(stored, before_ms, encoding)
    straight = tensors.log_features(log, users, before_ms, encoding)
    for name, column in columns(live).items():
        np.testing.assert_array_equal(column, columns(straight)[name], err_msg=name)
        assert column.dtype == columns(straight)[name].dtype, name


def _record_before(dataset: Dataset, user: int, limit_ms: int, spec, rng: random.Random) -> bytes | None:
    """The record as it stood strictly before a request: from everything that is visible to it."""
    step_ms = spec.history.time_resolution_ms
    visible = np.flatnonzero((dataset.user == user) & (dataset.timestamp_ms // step_ms < limit_ms // step_ms))
    events = list(dataset.activities(visible.tolist()))
    events += [event for event in dataset.profile_activities() if event.user_id == dataset.user_ids[user]]
    if not events:
        return None
    stored = UserRecord()
    while events:
        size = rng.randint(1, 9)
        stored = UserRecord.decode(merge(stored, events[:size], frozenset()).record.encode())
        events = events[size:]
    return stored.encode()


def test_an_empty_log_has_no_history() -> None:
    log = EventLog.from_activities([])
    assert len(log) == 0
    log = EventLog.from_activities([UserActivity(event_id="p", user_id="u", action="x", timestamp_ms=1)])
    found = tensors.log_features(log, np.array([0]), np.array([10_000]), ENCODING)
    assert (found.counts.tolist(), found.known.tolist()) == ([0], [True])


def test_events_without_an_item_and_ties_are_seen_alike() -> None:
    """A quarter of the events are searches; many share their time; the profile changes twice in one millisecond.

    Values of more than 1 KiB are among its changes, which no record keeps.
    """
    rng = random.Random(3)
    genders = [{"gender": value} for value in ("M", "F", "X", "F" * 1100)]
    events = [
        UserActivity(
            event_id=f"e{n}",
            user_id="u",
            action="rate" if n % 4 else "search",
            timestamp_ms=1000 * (n // 3),
            item_id=f"i{n}" if n % 4 else None,
            value=float(rng.randint(1, 5)) if n % 4 else None,
            attributes=genders[rng.randrange(4)] if n < 50 else None,
        )
        for n in range(150)
    ]
    rng.shuffle(events)
    assert_seen_alike(events, np.arange(0, 60_000, 700))


def test_a_field_that_newer_ones_push_out_of_the_record_is_not_seen() -> None:
    """Nor is one with a name of more than 1 KiB, nor does it push out others."""
    others = [{f"{letter}{n:02}": n for n in range(32)} for letter in "ab"]
    changes = [
        {"gender": "M"},
        others[0],
        {"n" * 1025: 1},
        others[1],
        {"gender": "F"},
        {"gender": "M", "z": "z" * 1100},
    ]
    events = [
        UserActivity(event_id=f"e{n}", user_id="u", action="profile", timestamp_ms=1000 * n, attributes=change)
        for n, change in enumerate(changes)
    ]
    straight = assert_seen_alike(events, 1000 * np.arange(1, 7))
    assert straight["profile_gender"].tolist() == [2, 2, 2, 0, 1, 2]


def assert_seen_alike(events: list[UserActivity], before_ms: np.ndarray) -> dict[str, np.ndarray]:
    """What a log of a user's events shows at these times is what a record of the earlier ones shows; the columns."""
    log = EventLog.from_activities(events)
    straight = columns(tensors.log_features(log, np.zeros(len(before_ms), dtype=np.int64), before_ms, ENCODING))
    for n, limit_ms in enumerate(before_ms.tolist()):
        visible = [event for event in events if event.timestamp_ms // 1000 < limit_ms // 1000]
        visible.sort(key=lambda event: event.timestamp_ms)  # an event below the floor would come too late to count
        live = columns(features(record(*visible) if visible else None, before_ms=limit_ms))
        for name, column in live.items():
            np.testing.assert_array_equal(column, straight[name][n : n + 1], err_msg=f"{name} before {limit_ms}")
    return straight
