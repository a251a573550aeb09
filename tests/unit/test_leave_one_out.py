"""Leave-one-out: the last event is foretold from all before it, also those of the same second, and without a clock."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.evaluation.leave_one_out import any_value, leave_one_out, window
from models.evaluation.timeline import Timeline
from models.event_log import Catalogue, EventLog
from models.spec import SpecError, builtin_spec, load_spec, parse_spec
from models.tensors import Encoding, Vocabularies
from schemas.activity import UserActivity
from schemas.items import ItemUpdate

PATH = builtin_spec("movielens")
SPEC, FEATURES = any_value(load_spec(PATH), PATH.read_text())
CATALOGUE = Catalogue.from_updates(ItemUpdate(item_id=f"i{n}", op="upsert", timestamp_ms=1) for n in range(10))


def log_of(events: list[tuple[int, int, int]]) -> EventLog:
    """(user, second, item), in log order."""
    return EventLog.from_activities(
        UserActivity(event_id=str(n), user_id=f"u{u}", action="rate", timestamp_ms=1000 * s, item_id=f"i{i}", value=2)
        for n, (u, s, i) in enumerate(events)
    )


EVENTS = [(0, 5, 1), (1, 5, 1), (0, 5, 2), (0, 5, 3), (0, 9, 4), (0, 9, 5)]
LOG = log_of([*EVENTS, (1, 6, 2), (2, 7, 9), (2, 7, 8), (2, 7, 7)])


def items_of(log: EventLog, user: int) -> list[int]:
    rows = log.order[log.offsets[user] : log.offsets[user + 1]]
    return CATALOGUE.index_of(log.item[rows]).tolist()


def test_by_hand() -> None:
    split = leave_one_out(LOG, CATALOGUE, SPEC)
    assert (split.user.tolist(), split.foretold.tolist()) == ([0, 2], [5, 7]), "user 1 has too few"
    assert (items_of(split.training, 0), items_of(split.visible, 0)) == ([1, 2, 3], [1, 2, 3, 4]), "in log order"
    assert items_of(split.training, 1) == items_of(split.visible, 1) == [1, 2]
    assert (items_of(split.training, 2), items_of(split.visible, 2)) == ([9], [9, 8])


def test_validation_foretells_the_one_before() -> None:
    split = leave_one_out(LOG, CATALOGUE, SPEC, validation=True)
    assert split.foretold.tolist() == [4, 8]
    assert items_of(split.visible, 0) == [1, 2, 3]


def test_a_request_sees_everything_and_no_time_of_its_own() -> None:
    split = leave_one_out(LOG, CATALOGUE, SPEC)
    timeline = Timeline(split.visible, CATALOGUE, Encoding(SPEC, Vocabularies({}, [])))
    asked = window(split, timeline)
    ends = timeline.visible(asked.requests.user, asked.requests.as_of_ms)
    assert (ends - timeline.log.offsets[asked.requests.user]).tolist() == [4, 2]
    newest = timeline.time_ms[ends - 1]
    assert (asked.requests.as_of_ms - newest).tolist() == [1000, 1000], "whatever the real gap was: 0 s and 0 s here"
    assert (asked.request.tolist(), asked.item.tolist()) == ([0, 1], [5, 7])
    assert [sorted(items.tolist()) for items in timeline.seen(asked.requests)] == [[1, 2, 3, 4], [8, 9]]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6), st.integers(0, 9)), max_size=30))
def test_time_is_the_place_in_the_history(events: list[tuple[int, int, int]]) -> None:
    log = log_of(events)
    split = leave_one_out(log, CATALOGUE, SPEC)
    for user, name in enumerate(log.user_ids):
        mine = [event for event in events if f"u{event[0]}" == name]
        items = [item for _, _, item in sorted(mine, key=lambda event: event[1])]
        for part, left_out in ((split.visible, 1), (split.training, 2)):
            kept = items[:-left_out] if len(items) >= 3 else items
            assert items_of(part, user) == kept
            assert np.sort(part.timestamp_ms[part.user == user]).tolist() == [1000 * n for n in range(1, len(kept) + 1)]


def test_profiles_are_known_before_the_first_event() -> None:
    log = EventLog.from_activities(
        [UserActivity(event_id="p", user_id="u0", action="x", timestamp_ms=10**12, attributes={"gender": "F"})]
    )
    assert leave_one_out(log, CATALOGUE, SPEC).visible.profiles == [(0, 0, {"gender": "F"})]


def test_any_value_is_a_target() -> None:
    assert SPEC.target.at_least is None
    assert parse_spec(FEATURES) == SPEC
    assert any_value(SPEC, FEATURES) == (SPEC, FEATURES), "one that has no least value stays as it is"


def test_a_target_in_another_form_is_refused() -> None:
    text = """
        name = "inline"
        target = { action = "rate", at_least = 4.0 }
        [history]
        length = 5
        [[history.codes]]
        action = "rate"
    """
    with pytest.raises(SpecError, match="at_least"):
        any_value(parse_spec(text), text)
