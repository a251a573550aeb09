"""`recall bench seen`: who asks, what they are told apart by, and the arithmetic of its figures."""

from dataclasses import replace

import numpy as np
import pytest

from models.datasets import Dataset
from models.datasets.generated import generate
from models.evaluation.timeline import Timeline
from models.event_log import EventLog
from models.spec import builtin_spec, load_spec
from models.tensors import Encoding, build_vocabularies
from schemas import codec
from schemas.recall import CandidateList, Status
from workers.bench import readers
from workers.bench.readers import HELD_OUT, Reader
from workers.bench.seen import Ranked, quality, ratios
from workers.errors import RecallError

DATA = generate(items=900, users=60, events=20_000)
COUNTS = np.bincount(DATA.user, minlength=60)
SPEC = load_spec(builtin_spec(DATA.spec))
CATALOGUE = DATA.catalogue()
ENCODING = Encoding(SPEC, build_vocabularies(DATA.log, CATALOGUE.item_ids, CATALOGUE.attributes, SPEC))
NOW_MS = int(DATA.timestamp_ms.max())
STEP_MS = SPEC.history.time_resolution_ms


@pytest.fixture(autouse=True)
def smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody of so small a data set has seen 500 items."""
    monkeypatch.setattr(readers, "LEAST_SEEN", 300)


def reader(known: list[int], held_out: list[int]) -> Reader:
    return Reader("r", (0,), np.array(known), np.array(held_out, dtype=np.int64))


def test_heavy_readers_are_users_alone_and_then_pairs_of_the_busiest_others() -> None:
    busy = np.flatnonzero(COUNTS >= 300 + HELD_OUT)
    heavy = readers.heavy_readers(DATA, len(busy) + 2)
    assert all(300 <= len(one.seen(DATA)) <= 2000 for one in heavy)
    pairs = [one for one in heavy if len(one.members) == 2]
    assert sorted(one.members[0] for one in heavy if one not in pairs) == busy.tolist(), "nobody rates a film twice"
    assert len(pairs) == 2
    members = [user for one in heavy for user in one.members]
    assert len(set(members)) == len(members), "nobody takes part twice"
    assert pairs[0].user_id == "+".join(DATA.user_ids[user] for user in pairs[0].members)


def test_what_is_held_out_is_newer_than_what_is_known_of_a_user() -> None:
    for one in readers.heavy_readers(DATA, 20):
        assert len(one.held_out) == HELD_OUT * len(one.members)
        for user in one.members:
            known, held_out = (rows[DATA.user[rows] == user] for rows in (one.known, one.held_out))
            assert len(known) + len(held_out) == COUNTS[user]
            assert DATA.timestamp_ms[known].max() <= DATA.timestamp_ms[held_out].min()


def test_too_few_heavy_readers_are_an_error() -> None:
    with pytest.raises(RecallError, match="readers of 300 to 2000 items"):
        readers.heavy_readers(DATA, 60)


def test_light_readers_have_the_fewest_events_and_all_are_known() -> None:
    light = readers.light_readers(DATA, 5)
    assert sorted(len(one.known) for one in light) == sorted(COUNTS.tolist())[:5]
    assert all(len(one.held_out) == 0 for one in light)


def test_the_fit_does_not_know_what_is_held_out() -> None:
    heavy = readers.heavy_readers(DATA, 20)
    log = readers.fit_log(DATA, heavy)
    held_out = np.concatenate([one.held_out for one in heavy])
    assert len(log) == len(DATA.log) - len(held_out)
    assert not np.isin(DATA.log.event[held_out], log.event).any()


def test_the_offline_log_is_that_of_the_messages_that_are_sent() -> None:
    heavy = readers.heavy_readers(DATA, 20)
    some = [heavy[0], heavy[-1]]
    sent = [codec.decode_activity(value, record_timestamp_ms=NOW_MS) for _, value, _ in readers.messages(DATA, some)]
    assert {key for key, _, _ in readers.messages(DATA, some)} == {one.user_id.encode() for one in some}
    rated = EventLog.from_activities(activity for activity in sent if activity.item_id is not None)
    offline = readers.known_log(DATA, some)
    assert offline.user_ids == rated.user_ids
    for name in ("event", "item", "action", "value", "timestamp_ms"):
        assert np.array_equal(getattr(offline, name)[offline.order], getattr(rated, name)[rated.order]), name
    told = [(activity.timestamp_ms, activity.attributes) for activity in sent if activity.attributes]
    assert [change[1:] for change in offline.profiles] == told


def test_everything_known_is_visible_and_seen_in_the_request() -> None:
    heavy = readers.heavy_readers(DATA, 20)[-2:]
    asked = readers.window(DATA, heavy, [[3, 4], [5]], STEP_MS)
    assert (asked.request.tolist(), asked.item.tolist()) == ([0, 0, 1], [3, 4, 5])
    met = Timeline(readers.known_log(DATA, heavy), CATALOGUE, ENCODING).seen(asked.requests)
    for one, items in zip(heavy, met, strict=True):
        assert np.array_equal(np.unique(items), one.seen(DATA))


def test_targets_are_held_out_positives_that_were_not_seen() -> None:
    data = replace(
        DATA,
        user=np.zeros(6, dtype=np.int32),
        item=np.array([1, 2, 3, 4, 2, 4], dtype=np.int32),
        action=np.zeros(6, dtype=np.int8),
        value=np.array([5, 5, 2, 4, 5, 5], dtype=np.float32),
        timestamp_ms=np.arange(6) * 1000,
    )
    assert readers.held_out_targets(data, [reader([0, 1], [2, 3, 4, 5])], ENCODING) == [[4]]


def answer(*item_ids: str) -> CandidateList:
    return CandidateList(
        request_id="r",
        user_id="u",
        scene="default",
        status=Status.OK,
        timestamp_ms=1,
        item_ids=list(item_ids),
        scores=np.arange(len(item_ids), 0, -1, dtype=np.float32),
        sources=["tower"] * len(item_ids),
    )


def dataset(items: int) -> Dataset:
    return replace(DATA, item_ids=[f"i{n}" for n in range(items)])


def test_a_list_is_short_only_when_more_unseen_items_exist() -> None:
    """Two readers have seen one item; ninety shown are all of 91, and too few of 101."""
    one = reader([0], [])
    shown = [answer(*(f"i{n}" for n in range(90))) for _ in range(2)]
    whole = answer(*(f"i{n}" for n in range(100)))
    ranked = Ranked([[], []], np.zeros(0), [[], []], np.zeros(0))
    assert quality(dataset(91), [one, one], shown, ranked)["short_lists"] == 0
    assert quality(dataset(101), [one, one], shown, ranked)["short_lists"] == 2
    assert quality(dataset(101), [one, one], [shown[0], whole], ranked)["short_lists"] == 1


def test_recall_of_live_and_exact_lists_and_their_overlap() -> None:
    """Of two targets one is shown and both rank below 100; of 200 places 3 hold an item that belongs there."""
    one = reader([0], [])
    ranked = Ranked(
        targets=[[7], [8]],
        target_ranks=np.array([0.0, 99.5]),
        lists=[[7, 9], [1, 2]],
        list_ranks=np.array([0.0, 1.0, 99.0, 100.0]),
    )
    found = quality(dataset(500), [one, one], [answer("i7", "i9"), answer("i1", "i2")], ranked)
    assert (found["recall_at_100"], found["recall_at_100_exact"]) == (0.5, 1.0)
    assert found["overlap_at_100"] == 3 / 200
    assert (found["targets"], found["answers_ok"], found["short_lists"]) == (2, 2, 2)


def test_ratios_are_of_neighbouring_rounds() -> None:
    assert ratios({"light": [10.0, 20.0], "heavy": [15.0, 22.0]}) == [1.1, 1.5]
