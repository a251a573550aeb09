"""Malformed events in every way that docs/events.md names, each with the code or the answer that it must get.

Of each topic a table: name of the kind -> how such an event is made. The first ones of a run go through all of them.
"""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec

from schemas import codec
from tests.chaos.log import ACTIVITY, ITEMS, REQUESTS
from tests.fuzz.damage import SEEDS, mutated
from tests.fuzz.traffic import HOUR_MS, Due, Event, Traffic, home, letter

REQUIRED = {
    ACTIVITY: ("event_id", "user_id", "action", "timestamp_ms"),
    ITEMS: ("item_id", "op", "timestamp_ms"),
    REQUESTS: ("request_id", "user_id"),
}
IDS = {ACTIVITY: ("event_id", "user_id", "action"), ITEMS: ("item_id",), REQUESTS: ("request_id", "user_id")}
DEEP: Any = [[[[[[[[[1]]]]]]]]]
TOO_LARGE_TO_CARRY_BYTES = 1_095_000  # with what says why, more than a topic takes
HUGE_BYTES = (1_000_001, 1_050_000, 1_080_000)
OTHERS = [json.dumps(event).encode() for events in SEEDS.values() for event in events]
MUTATED = 0.1
RARE = {"too large": 0.02, "too large to carry": 0.02}

Text = Callable[[random.Random, dict[str, Any], str], bytes]
"""(chance, a good event, its topic) -> a value that cannot be read."""


def _json(event: dict[str, Any]) -> bytes:
    return json.dumps(event).encode()


def _with(fields: Callable[[random.Random, str], dict[str, Any]]) -> Text:
    return lambda chance, event, topic: _json(event | fields(chance, topic))


def _put(old: bytes, *new: bytes) -> Text:
    """The first `old` of the text replaced by one of the others."""
    return lambda chance, event, _: _json(event).replace(old, chance.choice(new), 1)


def _cut(chance: random.Random, event: dict[str, Any], _: str) -> bytes:
    text = _json(event)
    return text[: chance.randrange(1, len(text))]


def _without(chance: random.Random, event: dict[str, Any], topic: str) -> bytes:
    gone = chance.choice(REQUIRED[topic])
    return _json({name: value for name, value in event.items() if name != gone})


def _bad_text(chance: random.Random, event: dict[str, Any], topic: str) -> bytes:
    bad = chance.choice((b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\x80"))
    return _json(event | {IDS[topic][0]: "HERE"}).replace(b"HERE", bad)


# What no event may be, in any topic: dead letters all, because what names a request cannot be read either.
UNREADABLE: dict[str, tuple[str, Text]] = {
    "cut off": ("not_json", _cut),
    "empty value": ("not_json", lambda chance, *_: chance.choice((b"", b" ", b"\n\t"))),
    "null bytes": ("not_json", lambda chance, *_: bytes(chance.randint(1, 2000))),
    "null byte in a string": ("not_json", _put(b'": "', b'": "\x00', b'": "\n')),
    "bytes outside strings": ("not_json", _put(b": ", b": \xff\xfe", b": \x80")),
    "byte order mark": ("not_json", lambda _, event, __: b"\xef\xbb\xbf" + _json(event)),
    "UTF-16": ("not_json", lambda _, event, __: _json(event).decode().encode("utf-16")),
    "other quotes": ("not_json", lambda _, event, __: _json(event).replace(b'"', b"'")),
    "a comma too many": ("not_json", lambda _, event, __: _json(event)[:-1] + b",}"),
    "something behind it": ("not_json", lambda chance, event, _: _json(event) + chance.choice((b"x", b"{}", b"\x00"))),
    "a comment": ("not_json", lambda _, event, __: b"/**/" + _json(event)),
    "NaN": (
        "not_json",
        _with(lambda chance, topic: {REQUIRED[topic][-1]: chance.choice((float("nan"), float("inf")))}),
    ),
    "a number with 0 before it": ("not_json", lambda _, event, __: b'{"timestamp_ms": 012, ' + _json(event)[1:]),
    "half a surrogate": ("not_json", lambda _, event, topic: _json(event | {IDS[topic][0]: "\ud800"})),
    "not UTF-8": ("not_utf8", _bad_text),
    "too deep where unread": (
        "too_deep",
        lambda chance, event, _: b'{"x":' + chance.choice((b"[", b'{"a":')) * 5000 + _json(event)[1:],
    ),
    "not an object": (
        "wrong_type",
        lambda chance, *_: chance.choice((b"[1]", b"12", b'"text"', b"true", b"[" * 5000, b"-0.0")),
    ),
    "the word null": ("unexpected_null", lambda *_: b"null"),
    "missing": ("missing_field", _without),
    "null where required": ("missing_field", _with(lambda chance, topic: {chance.choice(REQUIRED[topic]): None})),
    "id of another type": (
        "wrong_type",
        _with(lambda chance, topic: {chance.choice(IDS[topic]): chance.choice((5, 1.5, True, [], {}, ["a"]))}),
    ),
    "empty id": ("invalid_id", _with(lambda chance, topic: {chance.choice(IDS[topic]): ""})),
    "long id": (
        "invalid_id",
        _with(lambda chance, topic: {chance.choice(IDS[topic]): chance.choice(("x" * 257, "é" * 129, "🎬" * 5000))}),
    ),
}


def _field(code: str, *fields: dict[str, Any]) -> tuple[str, Text]:
    return code, _with(lambda chance, _: chance.choice(fields))


BIG_INTEGERS = (2**64, -(2**63) - 1, 10**400)
OF_ACTIVITY: dict[str, tuple[str, Text]] = {
    "field of another type": _field(
        "wrong_type",
        *({"timestamp_ms": bad} for bad in ("1", 1.5, True, [], {})),
        *({"value": bad} for bad in ("1", True, [], {})),
        *({name: bad} for name in ("attributes", "context") for bad in ("x", 1, [1])),
        {"item_id": 7},
    ),
    "too deep": _field("too_deep", {"context": {"a": DEEP}}, {"attributes": {"a": {"b": DEEP}}}),
    "number out of range": (
        "out_of_range",
        lambda chance, event, _: (
            _json(event | {"value": "V", "timestamp_ms": "T"})
            .replace(b'"V"', chance.choice((b"1e400", b"-1e39", b"9" * 400, b"1e999999999")))
            .replace(b'"T"', b"5")
        ),
    ),
    "time out of range": _field(
        "out_of_range", *({"timestamp_ms": bad} for bad in (-1, 253_402_300_800_000, 10**30, -(2**70)))
    ),
    "integer too long": _field(
        "out_of_range", *({name: {"a": bad}} for name in ("attributes", "context") for bad in BIG_INTEGERS)
    ),
}
OF_ITEM: dict[str, tuple[str, Text]] = {
    "field of another type": _field(
        "wrong_type",
        *({"timestamp_ms": bad} for bad in ("1", 1.5, True, [], {})),
        *({"version": bad} for bad in ("1", 1.5, True, [])),
        *({"embedding": bad} for bad in ("x", 1, {}, ["x"], [[1]])),
        *({"attributes": bad} for bad in ("x", 1, [1])),
        {"op": 1},
    ),
    "too deep": _field("too_deep", {"attributes": {"a": DEEP}}),
    "number out of range": _field(
        "out_of_range",
        *({"version": bad} for bad in (-1, 2**63, 10**400)),
        *({"timestamp_ms": bad} for bad in (-1, 253_402_300_800_000)),
        *({"attributes": {"year": bad}} for bad in BIG_INTEGERS),
    ),
    "unknown op": _field("unknown_op", *({"op": bad} for bad in ("patch", "", "UPSERT", "delete\x00"))),
}

YEAR = {"field": "year", "op": "eq", "value": 1990}
NOT_LISTED: tuple[Any, ...] = (1, "a", {})

# Requests that name themselves and their user, and cannot be done: (what is wrong with them, the guilty field).
REFUSED: dict[str, tuple[tuple[dict[str, Any], str], ...]] = {
    "field of another type": (
        *(({"k": bad}, "k") for bad in ("ten", 1.5, True, [])),
        *(({name: bad}, name) for name in ("exclude_items", "anchor_items") for bad in NOT_LISTED),
        ({"exclude_items": ["a", 1]}, "exclude_items[1]"),
        ({"exclude_seen": "no"}, "exclude_seen"),
        ({"context": [1]}, "context"),
        ({"scene": 5}, "scene"),
    ),
    "number out of range": (
        *(({"k": bad}, "k") for bad in (0, -1, 1001, 10**30)),
        *(({"timeout_ms": bad}, "timeout_ms") for bad in (0, 60_001)),
        ({"timestamp_ms": -1}, "timestamp_ms"),
        ({"context": {"a": 2**64}}, "context"),
    ),
    "too many": (({"exclude_items": ["a"] * 1001}, "exclude_items"), ({"anchor_items": ["a"] * 11}, "anchor_items")),
    "bad id": (
        ({"scene": ""}, "scene"),
        ({"scene": "x" * 300}, "scene"),
        ({"after_event_id": ""}, "after_event_id"),
        ({"exclude_items": ["a", ""]}, "exclude_items[1]"),
        ({"anchor_items": ["é" * 129]}, "anchor_items[0]"),
    ),
    "too deep": (({"context": {"a": DEEP}}, "context"), ({"filter": [YEAR | {"value": DEEP}]}, "filter[0].value")),
    "bad filter": (
        ({"filter": [YEAR | {"op": "near"}]}, "filter[0].op"),
        ({"filter": [YEAR, {"field": "year", "op": "eq"}]}, "filter[1].value"),
        ({"filter": [YEAR, {"op": "eq", "value": 1}]}, "filter[1].field"),
        ({"filter": [YEAR | {"value": 2**64}]}, "filter[0].value"),
        ({"filter": {"year": 1990}}, "filter"),
        ({"filter": [None]}, "filter[0]"),
    ),
}
# The same where only the worker's bundle and scenes can tell; one that is too late by then is `expired`.
UNANSWERABLE: dict[str, tuple[tuple[dict[str, Any], str], ...]] = {
    "filter on nothing declared": (
        *(({"filter": [YEAR, YEAR | {"field": bad}]}, "filter[1].field") for bad in ("price", "_f", 'year"] or ["')),
        *(({"filter": [YEAR | {"op": bad}]}, "filter[0].op") for bad in ("contains", "contains_any")),
        *(({"filter": [YEAR | {"value": bad}]}, "filter[0].value") for bad in ("1990", None, True, [1], 2**53 + 1)),
        ({"filter": [{"field": "genres", "op": "contains_any", "value": []}]}, "filter[0].value"),
        ({"filter": [{"field": "year", "op": "in", "value": list(range(101))}]}, "filter[0].value"),
        ({"filter": [YEAR] * 17}, "filter"),
    ),
    "unknown scene": (({"scene": "nowhere"}, "scene"), ({"scene": "\x00'\""}, "scene")),
}


class Malformed:
    """Makes malformed events out of good ones."""

    def __init__(self, traffic: Traffic, model_version: str) -> None:
        self._traffic = traffic
        self._chance = traffic.chance
        self._model_version = model_version
        unreadable = {topic: self._unreadable(topic) for topic in (ACTIVITY, ITEMS, REQUESTS)}
        self._makers = {
            ACTIVITY: unreadable[ACTIVITY] | self._of_activity(),
            ITEMS: unreadable[ITEMS] | self._of_items(),
            REQUESTS: unreadable[REQUESTS] | self._of_requests(),
        }
        self._first = {topic: iter(list(makers)) for topic, makers in self._makers.items()}

    def event(self, topic: str) -> Event:
        """One, of any kind that the topic has; at first one of each."""
        self._traffic.made += 1
        makers = self._makers[topic]
        kind = next(self._first[topic], "")
        while not kind:
            kind = "mutated" if self._chance.random() < MUTATED else self._chance.choice(list(makers))
            if self._chance.random() > RARE.get(kind, 1.0):
                kind = ""
        event = replace(makers[kind](), kind=kind)
        return event if kind == "too large to carry" else self._traffic.with_headers(event)

    def _base(self, topic: str) -> dict[str, Any]:
        """A good event of a user, item or request of its own."""
        traffic = self._traffic
        own = f"bad-{traffic.made}-"
        if topic == ACTIVITY:
            return traffic.activity(own)
        return traffic.update(own) if topic == ITEMS else traffic.request() | {"request_id": own}

    def _key(self, topic: str, event: dict[str, Any]) -> bytes:
        return str(event["item_id" if topic == ITEMS else "user_id"]).encode()

    def _unreadable(self, topic: str) -> dict[str, Callable[[], Event]]:
        table = UNREADABLE | {ACTIVITY: OF_ACTIVITY, ITEMS: OF_ITEM, REQUESTS: {}}[topic]

        def maker(code: str, make: Text) -> Callable[[], Event]:
            def made() -> Event:
                base = self._base(topic)
                return Event(topic, "", self._key(topic, base), make(self._chance, base, topic), letter(code))

            return made

        makers = {kind: maker(code, make) for kind, (code, make) in table.items()}
        return makers | {"mutated": lambda: self._mutated(topic)}

    def _padded(self, topic: str, size: int) -> Event:
        """One of so many bytes."""
        base = self._base(topic)
        base["padding"] = "x" * (size - len(_json(base | {"padding": ""})))
        return Event(topic, "", self._key(topic, base), _json(base), letter("value_too_large"))

    def _mutated(self, topic: str) -> Event:
        """Whatever random damage makes of an event; the codec, which is fuzzed apart, says which it is.

        Damage that makes it another's event, or whose fate depends on when it comes, is not used.
        """
        while True:
            base = self._base(topic)
            value, key = mutated(_json(base), OTHERS, self._chance), self._key(topic, base)
            due = self._judged(topic, value, key, f"bad-{self._traffic.made}-")
            if due is not None:
                return Event(topic, "", key, value, due)

    def _judged(self, topic: str, value: bytes, key: bytes, own: str) -> Due | None:
        now_ms = self._traffic.now_ms
        try:
            if topic == ACTIVITY:
                activity = codec.decode_activity(value, record_timestamp_ms=now_ms + HOUR_MS)
                segment = (activity.attributes or {}).get("gender", "")
                if activity.timestamp_ms > now_ms or not isinstance(segment, str):
                    return None
                return Due("activity", msgspec.to_builtins(activity)) if activity.user_id.startswith(own) else None
            if topic == ITEMS:
                return Due("item", msgspec.to_builtins(codec.decode_item(value, key)))
            request = codec.decode_request(value)
            due = Due("answer", subject=request.request_id, user_id=request.user_id, reason="any")
        except codec.DecodeError as error:
            identity = codec.identify_request(value) if topic == REQUESTS else None
            if identity is None:
                return letter(str(error.code))
            reason = "invalid_filter" if (error.field or "").startswith("filter") else "invalid_request"
            due = Due("rejected", subject=identity[0], user_id=identity[1], reason=reason, field=error.field)
        return due if due.subject.startswith(own) else None

    def _of_activity(self) -> dict[str, Callable[[], Event]]:
        chance, now_ms = self._chance, self._traffic.now_ms

        def future() -> Event:
            base = self._base(ACTIVITY) | {"timestamp_ms": now_ms + chance.randint(10 * HOUR_MS, 10**14)}
            return Event(ACTIVITY, "", self._key(ACTIVITY, base), _json(base), letter("future_timestamp"))

        def no_key() -> Event:
            key = chance.choice((None, b"", b"\xff", b"x" * 257))
            return Event(ACTIVITY, "", key, None, letter("invalid_key"), partition=0)

        return {
            "future": future,
            "null under no id": no_key,
            "too large": lambda: self._padded(ACTIVITY, chance.choice(HUGE_BYTES)),
            "too large to carry": lambda: self._padded(ACTIVITY, TOO_LARGE_TO_CARRY_BYTES),
        }

    def _of_items(self) -> dict[str, Callable[[], Event]]:
        chance, traffic = self._chance, self._traffic

        def mismatch() -> Event:
            base = self._base(ITEMS)
            key = chance.choice((b"", b"another", b"\xff", base["item_id"].encode() + b" "))
            return Event(ITEMS, "", key, _json(base), letter("key_mismatch"))

        def no_key() -> Event:
            return Event(ITEMS, "", chance.choice((b"", b"\xff", b"x" * 257)), None, letter("invalid_key"))

        def elsewhere() -> Event:
            item_id = traffic.item_id()
            key, update = item_id.encode(), traffic.update(item_id)
            partition = (home(key, traffic.partitions) + 1) % traffic.partitions
            value = chance.choice((_json(update), None))
            due = Due("delete", subject=item_id, code="wrong_partition")
            if value is not None:
                due = Due("item", update, code="wrong_partition")
            return Event(ITEMS, "", key, value, due, partition=partition)

        def stale() -> Event:
            item_id = chance.choice(list(traffic.versions)) if traffic.versions else traffic.item_id()
            update = traffic.update(item_id)
            stands = traffic.versions.get(item_id)
            if stands:
                update["version"] = stands - 1
                return Event(ITEMS, "", item_id.encode(), _json(update), Due("item", update, code="stale_version"))
            return Event(ITEMS, "", item_id.encode(), _json(update), Due("item", update))

        def embedding() -> Event:
            base = self._base(ITEMS) | {"embedding_model": self._model_version}
            base["embedding"] = chance.choice(([], [1.0], [1e300] * 32, [0.5] * 33, [1.0] * 5000))
            return Event(ITEMS, "", self._key(ITEMS, base), _json(base), letter("invalid_embedding"))

        return {
            "key of another": mismatch,
            "null under no id": no_key,
            "wrong partition": elsewhere,
            "older version": stale,
            "wrong embedding": embedding,
            "too large": lambda: self._padded(ITEMS, chance.choice(HUGE_BYTES)),
            "too large to carry": lambda: self._padded(ITEMS, TOO_LARGE_TO_CARRY_BYTES),
        }

    def _of_requests(self) -> dict[str, Callable[[], Event]]:
        def maker(variants: tuple[tuple[dict[str, Any], str], ...], *, early: bool) -> Callable[[], Event]:
            def made() -> Event:
                fields, guilty = self._chance.choice(variants)
                base = {"request_id": "", "user_id": self._traffic.user(), "k": 3} | fields
                base["request_id"] = f"bad-{self._traffic.made}"
                reason = "invalid_filter" if guilty.startswith("filter") else "invalid_request"
                return self._rejected(base, _json(base), reason, guilty, early=early)

            return made

        def large() -> Event:
            base = {"request_id": f"bad-{self._traffic.made}", "user_id": "u"}
            value = _json(base | {"scene": "x" * self._chance.choice(HUGE_BYTES)})
            return self._rejected(base, value, "invalid_request", None)

        def null() -> Event:
            key = self._chance.choice((None, b"u", b"\xff"))
            return Event(REQUESTS, "", key, None, letter("unexpected_null"), partition=0)

        makers = {kind: maker(variants, early=True) for kind, variants in REFUSED.items()}
        makers |= {kind: maker(variants, early=False) for kind, variants in UNANSWERABLE.items()}
        return makers | {"too large": large, "null value": null}

    def _rejected(
        self, base: dict[str, Any], value: bytes, reason: str, field: str | None, *, early: bool = True
    ) -> Event:
        due = Due(
            "rejected", subject=base["request_id"], user_id=base["user_id"], reason=reason, field=field, early=early
        )
        return Event(REQUESTS, "", base["user_id"].encode(), value, due)
