"""What the stream fuzz sends is malformed as it is meant to be, and its ledger sees what is missing."""

import json
import time
from dataclasses import dataclass, replace
from functools import cache

import pytest

from schemas import codec
from schemas.codec import DecodeError, ErrorCode
from schemas.dead_letter import DeadLetter, to_headers
from tests.chaos.formats import Item
from tests.chaos.log import ACTIVITY, ITEMS, REQUESTS
from tests.chaos.model import Rules
from tests.chaos.stored import Row, Stored
from tests.fuzz.ledger import Ledger
from tests.fuzz.stream import traffic_of
from tests.fuzz.traffic import Due, Event
from workers.pipelines.activity_event import decode_activity
from workers.pipelines.item_order import decode_item

NOW_MS = 2_000_000_000_000
RULES = Rules(frozenset({"rate"}), "rate", 4.0, 1000, "gender", frozenset("FM"))
BEHIND_THE_CODEC = {"hash_collision", "tower_output", "index_refused", "record_unreadable", "answer_too_large"}


@cache
def events() -> tuple[Event, ...]:
    return tuple(traffic_of(5, 8_000, 4, "v1"))


@dataclass(frozen=True)
class Taken:
    """A record as a worker gets it."""

    key: bytes | None
    value: bytes | None
    timestamp: int
    partition: int = 0
    offset: int = 0
    headers: tuple[tuple[str, bytes], ...] = ()


def read_request(record: Taken) -> object:
    return codec.decode_request(record.value)


def refusal(event: Event) -> tuple[str, str | None]:
    """The code and the field for which an event is refused when it is read; ('', None) when it is not."""
    decode = {ACTIVITY: decode_activity, ITEMS: decode_item, REQUESTS: read_request}
    try:
        decode[event.topic](Taken(event.key, event.value, time.time_ns() // 1_000_000))
    except DecodeError as error:
        return str(error.code), error.field
    return "", None


def test_every_malformed_event_is_refused_as_it_is_meant_to_be() -> None:
    for event in events():
        code, field = refusal(event)
        if event.due.what == "rejected" and event.due.early:
            assert code, event
            assert (codec.identify_request(event.value) or ("",))[0] == event.due.subject, event
            assert field == event.due.field, event
        elif event.due.what == "letter" and event.due.code != "invalid_embedding":
            assert code == event.due.code, event
            assert event.topic != REQUESTS or codec.identify_request(event.value) is None, event
        else:
            assert code == "", event


def test_every_code_that_an_event_can_bring_about_is_due_somewhere() -> None:
    assert {event.due.code for event in events()} - {""} == {*map(str, ErrorCode)} - BEHIND_THE_CODEC
    bad = sum(event.due.what in ("letter", "rejected") for event in events())
    assert 0.25 < bad / (len(events()) - 2000) < 0.35


def filled() -> Ledger:
    """Three events that have taken place: a bad activity, a request, an item."""
    ledger = Ledger(RULES)
    ledger.take(BAD, 1, 0, NOW_MS)
    ledger.take(REQUEST, 2, 0, NOW_MS)
    ledger.take(UPDATE, 3, 0, NOW_MS)
    return ledger


BAD = Event(ACTIVITY, "cut off", b"u", b"{", Due("letter", code="not_json"), headers=(("a", b"1"), ("dlq.topic", b"x")))
REQUEST = Event(REQUESTS, "too many", b"u", b"{}", Due("rejected", None, "", "r", "u", "invalid_request", "k"))
UPDATE = Event(ITEMS, "update", b"i", b"{...}", Due("item", {"item_id": "i", "op": "upsert"}))
LETTER = DeadLetter(
    topic="ns.user-activity",
    partition=1,
    offset=0,
    stage="activity",
    code="not_json",
    message="",
    timestamp_ms=5,
    key=b"u",
    value=b"{",
    headers=BAD.headers,
)
ANSWER = {"request_id": "r", "user_id": "u", "status": "rejected", "reasons": ["invalid_request"], "error_field": "k"}
STORED = Stored({}, {"i": Item("i", 3, 0, False, None, (), b"{...}")}, {"i": [Row([], {}, 0)]}, [])


def found(letter: DeadLetter | None = LETTER, answer: dict[str, object] | None = None, stored: Stored = STORED) -> str:
    """The first difference, '' for none."""
    ledger = filled()
    if letter is not None:
        ledger.letter(letter.key, letter.value, to_headers(letter))
    if answer != {}:
        ledger.answer(b"u", json.dumps(ANSWER | (answer or {})).encode(), [("request_id", b"r")])
    return next(iter(ledger.differences(stored)), "")


def test_of_popular_counts_the_newest_epochs_are_kept() -> None:
    ledger = Ledger(RULES)
    ledger.expected.popular = {(0, epoch, ""): {1: 1} for epoch in (0, 41, 42, 43)} | {(1, 0, "F"): {1: 1}}
    ledger.close()
    assert sorted(ledger.expected.popular) == [(0, 42, ""), (0, 43, ""), (1, 0, "F")]


def changed(**fields: object) -> DeadLetter:
    return DeadLetter(**{name: getattr(LETTER, name) for name in LETTER.__struct_fields__} | fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ({}, ""),
        ({"letter": None}, "no dead letter not_json"),
        ({"letter": changed(code="not_utf8")}, "must be not_json"),
        ({"letter": changed(value=b"{}")}, "other bytes"),
        ({"letter": changed(headers=())}, "other bytes"),
        ({"letter": changed(value=None, value_omitted=True)}, "no value"),
        ({"letter": changed(offset=1)}, "where nothing stands"),
        ({"letter": changed(topic="ns.item-updates", partition=3)}, "must be none"),
        ({"answer": {}}, "no answer"),
        ({"answer": {"user_id": "v"}}, "is for 'v'"),
        ({"answer": {"status": "ok"}}, "must be rejected"),
        ({"answer": {"error_field": None}}, "must be rejected"),
        ({"answer": {"request_id": "s"}}, "nobody asked"),
        ({"stored": replace(STORED, items={})}, "has no record"),
        ({"stored": replace(STORED, rows={})}, "stands 0 times"),
        ({"stored": replace(STORED, items={"i": Item("i", 3, 1, False, None, (), b"{...}")})}, "must be"),
        ({"stored": replace(STORED, rows=STORED.rows | {"j": [Row([], {}, 0)]})}, "no event made it"),
    ],
)
def test_the_ledger_sees_what_is_missing_or_wrong(what: dict[str, object], line: str) -> None:
    difference = found(**what)  # type: ignore[arg-type]
    assert line in difference
    assert bool(line) == bool(difference)
