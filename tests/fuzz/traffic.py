"""Events by the million, a third of them malformed; each comes with what must become of it. The same for the same seed.

What has no single right answer is not made: a user with events in several partitions has fewer than a history holds,
and none that counts as popular; of an item, the later offset in its one partition wins.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from aiokafka.partitioner import murmur2

from tests.chaos.log import ACTIVITY, ITEMS, REQUESTS
from tests.chaos.workload import GENRES

SHARES = ((ACTIVITY, 0.85), (ITEMS, 0.07), (REQUESTS, 0.08))
BAD = 1 / 3
CATALOGUE = 2000
SPREAD_EVENTS = 40
REMEMBERED = 20_000
HOUR_MS = 3_600_000

# An id may be any text: what breaks keys, patterns, expressions and lines when it is pasted into one.
ENDINGS = ("",) * 12 + (
    "é🎬",
    "\x00",
    ":record:",
    '"\\',
    "'; --",
    "*?[a]",
    "{x}",
    "\n\r\u2028",
    " ",
    "x" * 240,
    "é" * 110,
)
VALUES: tuple[Any, ...] = (
    None, True, 0, -0.0, 1.0, 1e308, 5e-324, 2**63 - 1, -(2**63), "", "\x00", "é🎬", "x" * 1021, "x" * 1100, "x" * 3000,
    [], {}, [[[[[[[1]]]]]]], {"a": {"b": [None, {"c": "d"}]}}, [0] * 2000, {"z": 1, "a": 2},
)  # fmt: skip
HEADERS: tuple[tuple[tuple[str, bytes], ...], ...] = (
    (("dlq.topic", b"mine"), ("dlq.offset", b"-1"), ("kept", b"1")),
    (("request_id", b"another"), ("trace\nparent", b"\xff\xfe")),
    (("reply_partition", b"1" * 5000), ("reply_partition", b"99999999")),
    (("reply_partition", b"2"), ("", b"")),
    (("reply_partition", "٣".encode()), ("é🎬", b"\x00")),
    (("large", b"x" * 5000), ("small", b"1")),
    tuple((f"h{n}", b"v" * 20) for n in range(200)),
)

What = Literal["activity", "forget", "item", "delete", "answer", "rejected", "letter"]


@dataclass(frozen=True, slots=True)
class Due:
    """What must become of an event.

    `event`: of activities and items; `code` of a dead letter, which an item may also get from the ones before it;
    `subject`: the id of a request, or of the user or item of a null value; `reason` and `field` of a rejection.
    """

    what: What
    event: dict[str, Any] | None = None
    code: str = ""
    subject: str = ""
    user_id: str = ""
    reason: str = ""
    field: str | None = None
    early: bool = True
    """A rejection that comes before the deadline is looked at."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something to produce; without a partition its key routes it. `kind` is its name in the report."""

    topic: str
    kind: str
    key: bytes | None
    value: bytes | None
    due: Due
    headers: tuple[tuple[str, bytes], ...] = ()
    partition: int | None = None


def home(key: bytes, partitions: int) -> int:
    """Where Kafka's own rule routes a key."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


def packed(event: dict[str, Any]) -> bytes:
    """JSON, its text in ASCII or UTF-8."""
    return json.dumps(event, ensure_ascii=len(event) % 2 == 0).encode()


def letter(code: str) -> Due:
    """A dead letter of this code."""
    return Due("letter", code=code)


class Traffic:
    """The good events; malformed ones are made by `tests/fuzz/malformed.py`."""

    def __init__(self, seed: int, events: int, partitions: int, now_ms: int) -> None:
        self.chance = random.Random(seed)
        self.now_ms = now_ms
        self.partitions = partitions
        self.made = 0
        self._users = max(50, events // 40)
        self._spread = 0
        self._spread_left = 0
        self._sent: list[Event] = []
        self._homeless = 0
        self.versions: dict[str, int] = {}

    def good(self, topic: str) -> Event:
        """One that has an effect or an answer."""
        self.made += 1
        event = {ACTIVITY: self._activity, ITEMS: self._item, REQUESTS: self._request}[topic]()
        return self.with_headers(event)

    def with_headers(self, event: Event) -> Event:
        """Now and then headers that nobody asked for."""
        if self.chance.random() < 0.05:
            return replace(event, headers=self.chance.choice(HEADERS))
        return event

    def user(self) -> str:
        """Some have very many events, most a few."""
        number = int(self._users * self.chance.random() ** 3)
        return f"user-{number}{ENDINGS[number % len(ENDINGS)]}"

    def item_id(self) -> str:
        """Of the catalogue."""
        number = self.chance.randrange(CATALOGUE)
        return f"i-{number}{ENDINGS[number % len(ENDINGS)]}"

    def activity(self, user_id: str, best: int = 10) -> dict[str, Any]:
        """Any activity of a user; `best` is twice the greatest value that a rating has."""
        chance = self.chance
        back_ms = int(chance.expovariate(1 / HOUR_MS)) if chance.random() < 0.95 else -chance.randint(0, 240_000)
        event: dict[str, Any] = {
            "event_id": f"e-{self.made}{chance.choice(ENDINGS)}",
            "user_id": user_id,
            "action": chance.choice(("rate", "rate", "rate", "view", "é🎬")),
            "timestamp_ms": self.now_ms - back_ms,
        }
        if chance.random() < 0.005:  # as old as can be
            event |= {"action": "view", "timestamp_ms": chance.choice((0, 1))}
        if chance.random() < 0.9:
            event |= {"item_id": self.item_id(), "value": chance.randint(1, best) / 2}
        elif chance.random() < 0.5:
            event["value"] = chance.choice((-0.0, 1e-45, -3.4028235e38, 2**30, 0))
        if chance.random() < 0.1:
            event["attributes"] = self._attributes()
        if chance.random() < 0.05:
            event["context"] = {"device": chance.choice(VALUES)}
        return event

    def _attributes(self) -> dict[str, Any]:
        chance = self.chance
        found: dict[str, Any] = {"gender": chance.choice("FMX"), "age": str(chance.randint(1, 7))}
        if chance.random() < 0.3:
            found |= {f"field {chance.randrange(100)}": chance.choice(VALUES) for _ in range(chance.randint(1, 40))}
        if chance.random() < 0.02:
            found["n" * chance.choice((1024, 1025))] = 1
        return found

    def _activity(self) -> Event:
        chance, roll = self.chance, self.chance.random()
        if roll < 0.15 and self._sent:
            return replace(chance.choice(self._sent), kind="again")
        if roll < 0.152:
            number = chance.randrange(0, self._users, 20)
            user_id = f"user-{number}{ENDINGS[number % len(ENDINGS)]}"
            return Event(ACTIVITY, "forget", user_id.encode(), None, Due("forget", subject=user_id))
        if roll < 0.2:
            return self._through_any_partition()
        made = self.activity(self.user())
        event = Event(ACTIVITY, "activity", made["user_id"].encode(), packed(made), Due("activity", made))
        if roll < 0.22:  # of two equal names in an object the later one counts
            twice = packed({"event_id": "first"})[:-1] + b", " + packed(made)[1:]
            event = replace(event, kind="name twice", value=twice)
        if len(self._sent) < REMEMBERED:
            self._sent.append(event)
        else:
            self._sent[chance.randrange(REMEMBERED)] = event
        return event

    def _through_any_partition(self) -> Event:
        if not self._spread_left:
            self._spread, self._spread_left = self._spread + 1, SPREAD_EVENTS
        self._spread_left -= 1
        made, key = self.activity(f"spread-{self._spread}", best=7), self.chance.choice((None, b"", b"\xff", b"other"))
        partition = self.chance.randrange(self.partitions)
        return Event(ACTIVITY, "any partition", key, packed(made), Due("activity", made), partition=partition)

    def update(self, item_id: str) -> dict[str, Any]:
        """An item as it is from now on."""
        chance = self.chance
        attributes: dict[str, Any] = {"title": chance.choice(("Film", "é🎬", "x" * 5000, "\x00"))}
        if chance.random() < 0.9:
            attributes["genres"] = chance.sample(GENRES, chance.randint(0, 3))
        if chance.random() < 0.9:
            attributes["year"] = chance.randint(1920, 2020)
        if chance.random() < 0.1:
            attributes |= {"year": chance.choice(VALUES), "genres": chance.choice(VALUES)}
        if chance.random() < 0.002:
            attributes["genres"] = ["x" * 1000] * 100
        return {"item_id": item_id, "op": "upsert", "timestamp_ms": self.now_ms, "attributes": attributes}

    def _item(self) -> Event:
        chance, item_id, roll = self.chance, self.item_id(), self.chance.random()
        key = item_id.encode()
        if roll < 0.05:
            self.versions.pop(item_id, None)
            return Event(ITEMS, "tombstone", key, None, Due("delete", subject=item_id))
        update = self.update(item_id)
        if roll < 0.1:
            update = {"item_id": item_id, "op": "delete", "timestamp_ms": self.now_ms}
        if chance.random() < 0.3 and item_id in self.versions:
            update["version"] = self.versions[item_id] + chance.randint(0, 3)
        elif chance.random() < 0.3:
            update["version"] = chance.choice((2**63 - 2, max(10, self.versions.get(item_id, 0))))
            update["version"] = max(update["version"], self.versions.get(item_id, 0))
        if "version" in update:
            self.versions[item_id] = update["version"] = min(update["version"], 2**63 - 1)
        else:
            self.versions.pop(item_id, None)
        return Event(ITEMS, "update" if roll >= 0.1 else "delete", key, packed(update), Due("item", update))

    def request(self) -> dict[str, Any]:
        """A question that can be answered."""
        chance = self.chance
        asked: dict[str, Any] = {"request_id": f"r-{self.made}{chance.choice(ENDINGS)}", "user_id": self.user()}
        asked["k"] = chance.choice((1, 10, 10, 20, 50, 1000)) if chance.random() < 0.1 else chance.randint(1, 30)
        if chance.random() < 0.1:
            asked["filter"] = chance.choice(
                (
                    [{"field": "year", "op": "ge", "value": chance.choice((1990, -1e308, 2**53))}],
                    [{"field": "genres", "op": "contains_any", "value": ["Drama", "'\"\\\n\x00"]}],
                    [{"field": "year", "op": "not_in", "value": list(range(1900, 2000))}] * 16,
                )
            )
        if chance.random() < 0.05:
            asked["exclude_items"] = [self.item_id() for _ in range(chance.choice((1, 10, 1000)))]
        if chance.random() < 0.05:
            asked["anchor_items"] = [self.item_id() for _ in range(3)]
        if chance.random() < 0.05:
            asked["timestamp_ms"] = chance.choice((0, self.now_ms, self.now_ms + 9 * HOUR_MS, 253_402_300_799_999))
        if chance.random() < 0.02:
            asked["timeout_ms"] = chance.choice((1, 60_000))
        if chance.random() < 0.005:
            asked["after_event_id"] = "e-nobody"
        if chance.random() < 0.05:
            asked["context"] = {"device": chance.choice(VALUES)}
        return asked

    def _request(self) -> Event:
        asked = self.request()
        key = self.chance.choice((asked["user_id"].encode(), None, b"", b"\xff"))
        due = Due("answer", subject=asked["request_id"], user_id=asked["user_id"])
        partition = self.chance.randrange(self.partitions) if self.chance.random() < 0.1 else None
        return Event(REQUESTS, "request", key, packed(asked), due, partition=partition)


def catalogue(traffic: Traffic) -> Iterator[Event]:
    """Every item once, before anything else: so that each has its partition."""
    for number in range(CATALOGUE):
        update = traffic.update(f"i-{number}{ENDINGS[number % len(ENDINGS)]}")
        yield Event(ITEMS, "catalogue", update["item_id"].encode(), packed(update), Due("item", update))
