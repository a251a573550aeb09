"""Made-up traffic on the three topics, the same for the same seed but for the times: good, bad, twice and out of order.

Users `one-N` stay in one partition, that of their key at first, and have any number of events. Users `spread-N` get a
burst of at most as many events as a history holds through every partition at once, copies included, so that several
workers write them at the same moment; what they name is not liked, because two copies at one moment may count twice in
popularity. Users `moved-N` are likewise, and routed by their key: another partition once partitions were added.
Everything that depends on which of two partitions was read first is left out: it has no right answer.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from aiokafka.partitioner import murmur2

from tests.chaos.log import ACTIVITY, ITEMS, REQUESTS

ONE_USERS = 12
SPREAD_EVENTS = 48
HOT_ITEMS = 5
GENRES = ("Action", "Comedy", "Drama", "Horror", "Musical", "Mystery", "Romance", "SciFi", "Thriller", "War", "Western")
HOUR_MS = 3_600_000
REFUSED_BY_INDEX = "refused-"  # how ids of items begin that the index refuses
MOST_GENRES = 7  # the item tower refuses films of more
WRONGED = "wronged"  # the user in whose place in Redis something else stands


@dataclass(frozen=True, slots=True)
class Message:
    """Something to produce; without a partition its key routes it."""

    topic: str
    key: bytes | None
    value: bytes | None
    partition: int | None = None


@dataclass(frozen=True)
class Rates:
    """Messages of each topic in one step, and the chance of a burst of a user of several partitions."""

    activity: int = 20
    items: int = 4
    requests: int = 3
    burst: float = 0.15


@dataclass
class Workload:
    """`catalogue` first, then one `step` after the other. `partitions` is what the topics had at first."""

    seed: int
    partitions: int
    items: Sequence[tuple[str, Mapping[str, Any]]]
    rates: Rates = field(default_factory=Rates)
    _made: int = 0
    _sent: dict[str, list[Message]] = field(default_factory=dict)
    _versions: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._items = [item_id for item_id, _ in self.items]
        self._hot = [item_id for item_id in self._items if ord(item_id[-1]) % 2][:HOT_ITEMS]
        self.activity_partitions = self.partitions

    def catalogue(self, now_ms: int) -> list[Message]:
        """Every item once. It is to be taken in before anything else comes."""
        return [self._update(item_id, {**attributes}, now_ms) for item_id, attributes in self.items]

    def step(self, now_ms: int) -> list[Message]:
        """A tenth of a second's worth."""
        rates, chance = self.rates, self._random
        messages = [self._activity(now_ms) for _ in range(rates.activity)]
        if chance.random() < rates.burst:
            messages += self.burst(now_ms)
        messages += [self.item(now_ms) for _ in range(rates.items)]
        messages += [self.request() for _ in range(rates.requests)]
        return messages

    def burst(self, now_ms: int) -> list[Message]:
        """All events of one user, of each partition some, a quarter of them again through another one."""
        user = f"spread-{self._next()}"
        partitions = range(self.activity_partitions)
        events = [self._event(user, now_ms, best=7) for _ in range(SPREAD_EVENTS)]
        copies = self._random.sample(events, SPREAD_EVENTS // 4)
        return [
            Message(each.topic, each.key, each.value, self._random.choice(partitions)) for each in [*events, *copies]
        ]

    def moving(self, now_ms: int) -> list[Message]:
        """Events of users who are routed by their key alone; twice as many of a user still fit into a history."""
        users = [f"moved-{self._next()}" for _ in range(20)]
        return [self._event(user, now_ms, best=7) for user in users for _ in range(SPREAD_EVENTS // 2)]

    def moved(self, messages: Sequence[Message], now_ms: int) -> list[Message]:
        """The same events once more, and as many new ones of these users."""
        users = dict.fromkeys(message.key for message in messages)
        new = [self._event(key.decode(), now_ms, best=7) for key in users if key for _ in range(SPREAD_EVENTS // 2)]
        return self._random.sample([*messages, *new], len(messages) + len(new))

    def race(self, now_ms: int) -> list[Message]:
        """Updates of a few items at once, versions going up and down."""
        messages = []
        for _ in range(4):
            for item_id in self._hot:
                known = self._versions.get(item_id, 10)
                version = known + self._random.choice((-3, -1, 0, 1, 2))
                attributes = {"title": f"Film {self._next()}", "year": self._random.randint(1920, 2020)}
                update = {"item_id": item_id, "op": "upsert", "timestamp_ms": now_ms, "attributes": attributes}
                messages.append(Message(ITEMS, item_id.encode(), _json(update | {"version": version})))
                self._versions[item_id] = max(known, version)
        return messages

    def rubbish(self, topic: str, count: int) -> list[Message]:
        """What nobody can read, through all partitions."""
        return [Message(topic, f"rubbish-{self._next()}".encode(), b"{") for _ in range(count)]

    def item(self, now_ms: int) -> Message:
        """An update: of a known item, of a new one, a deletion, or one that is to be refused."""
        chance, roll = self._random, self._random.random()
        if roll < 0.02:
            return self._bad_item(now_ms)
        if roll < 0.12:
            item_id = f"new-{self._next()}"
            self._items.append(item_id)
        else:
            item_id = chance.choice(self._items)
        if roll > 0.97:
            return Message(ITEMS, item_id.encode(), None)
        if roll > 0.94:
            gone = {"item_id": item_id, "op": "delete", "timestamp_ms": now_ms}
            return Message(ITEMS, item_id.encode(), _json(gone))
        attributes: dict[str, Any] = {"title": f"Film {self._next()}"}
        if chance.random() < 0.95:
            attributes["genres"] = chance.sample(GENRES, chance.randint(0, 3))
        if chance.random() < 0.95:
            attributes["year"] = chance.randint(1920, 2020)
        return self._update(item_id, attributes, now_ms - chance.randint(0, HOUR_MS))

    def refused(self, now_ms: int, model: str, dim: int) -> list[Message]:
        """What a backend refuses, each among good ones and once, and an activity that finds no place in Redis."""
        bad = [self._update(f"{REFUSED_BY_INDEX}{self._next()}", {"year": 1999}, now_ms) for _ in range(2)]
        bad.append(self._update(f"all-{self._next()}", {"genres": list(GENRES)}, now_ms))
        huge: dict[str, Any] = {
            "item_id": f"huge-{self._next()}",
            "op": "upsert",
            "timestamp_ms": now_ms,
            "embedding_model": model,
        }
        bad.append(Message(ITEMS, huge["item_id"].encode(), _json(huge | {"embedding": [3e38] * dim})))
        messages = [*bad, *(self.item(now_ms) for _ in range(20))]
        return [*self._random.sample(messages, len(messages)), self._event(WRONGED, now_ms, best=7)]

    def request(self) -> Message:
        """A question, sometimes one that cannot be answered as it is asked, or cannot be read."""
        chance, number = self._random, self._next()
        user = self._asking()
        asked: dict[str, Any] = {"request_id": f"r-{self.seed}-{number}", "user_id": user, "k": chance.randint(1, 50)}
        roll = chance.random()
        if roll < 0.02:
            asked["k"] = 1001
        elif roll < 0.04:
            del asked["user_id"]
        elif roll < 0.05:
            return Message(REQUESTS, user.encode(), b'{"request_id": ')
        elif roll < 0.15:
            asked["exclude_items"] = chance.sample(self._items, min(5, len(self._items)))
        if chance.random() < 0.1:
            asked["timeout_ms"] = 500
        if chance.random() < 0.1:
            asked["after_event_id"] = self._awaited(user, number)
        return Message(REQUESTS, user.encode(), _json(asked))

    def _awaited(self, user: str, number: int) -> str:
        """What the user did a moment ago; or an event of anybody, or of nobody."""
        sent = self._sent.get(user)
        if sent and self._random.random() < 0.5:
            return str(json.loads(sent[-1].value or b"")["event_id"])
        return f"e-{self._random.randint(1, 2 * number)}"

    def _activity(self, now_ms: int) -> Message:
        chance, roll = self._random, self._random.random()
        user = self._acting()
        if roll < 0.02:
            return self._bad_activity(user, now_ms)
        if roll < 0.022:
            return Message(ACTIVITY, user.encode(), None, self._home(user))
        sent = self._sent.setdefault(user, [])
        if roll < 0.15 and sent:
            return chance.choice(sent)  # once more, as it was, however long ago
        sent.append(replace(self._act(user, now_ms), partition=self._home(user)))
        return sent[-1]

    def _acting(self) -> str:
        """Whose turn it is to do something."""
        return f"one-{min(int(self._random.expovariate(0.25)), ONE_USERS - 1)}"

    def _asking(self) -> str:
        """Who asks for a list."""
        return f"one-{self._random.randint(0, ONE_USERS)}"

    def _act(self, user: str, now_ms: int) -> Message:
        """What it does."""
        return self._event(user, now_ms)

    def _home(self, name: str) -> int:
        """The partition of a key, as the topics were at first."""
        return partition_of(name, self.partitions)

    def _event(self, user: str, now_ms: int, best: int = 10) -> Message:
        chance = self._random
        event: dict[str, Any] = {
            "event_id": f"e-{self._next()}",
            "user_id": user,
            "action": chance.choice(("rate", "rate", "rate", "view")),
            "timestamp_ms": now_ms - (chance.randint(0, 2000) if chance.random() < 0.7 else chance.randint(0, HOUR_MS)),
        }
        if chance.random() < 0.9:
            event |= {"item_id": chance.choice(self._items), "value": chance.randint(1, best) / 2}
        if chance.random() < 0.1:
            event["attributes"] = {"gender": chance.choice("FM"), "age": str(chance.randint(1, 7))}
        return Message(ACTIVITY, user.encode(), _json(event))

    def _update(self, item_id: str, attributes: dict[str, Any], now_ms: int) -> Message:
        update = {"item_id": item_id, "op": "upsert", "timestamp_ms": now_ms, "attributes": attributes}
        if ord(item_id[-1]) % 2 and self._random.random() < 0.8:
            known = self._versions.get(item_id, 10)
            lower = self._random.random() < 0.05
            update["version"] = known - 5 if lower else known + 1
            self._versions[item_id] = known if lower else known + 1
        return Message(ITEMS, item_id.encode(), _json(update))

    def _bad_activity(self, user: str, now_ms: int) -> Message:
        event = {"event_id": f"e-{self._next()}", "user_id": user, "action": "rate", "timestamp_ms": now_ms}
        value = self._random.choice(
            [
                b'{"event_id":',
                b"[1]",
                b'{"event_id": "\xff"}',
                _json(event | {"action": None}),
                _json(event | {"user_id": ""}),
                _json(event | {"timestamp_ms": now_ms + 2 * HOUR_MS}),
                _json(event | {"value": "five"}),
            ]
        )
        return Message(ACTIVITY, user.encode(), value)

    def _bad_item(self, now_ms: int) -> Message:
        """Refused updates of items that have stood since before the traffic began."""
        item_id = self._random.choice(self.items)[0]
        update = {"item_id": item_id, "op": "upsert", "timestamp_ms": now_ms, "attributes": {}}
        roll = self._random.randint(0, 5)
        if roll == 5:
            return Message(ITEMS, item_id.encode(), _json(update), (self._home(item_id) + 1) % self.partitions)
        if roll == 0:
            return Message(ITEMS, b"another", _json(update))
        if roll == 1:
            return Message(ITEMS, item_id.encode(), _json(update | {"op": "merge"}))
        if roll == 2:
            return Message(ITEMS, item_id.encode(), b'{"item_id"')
        if roll == 3:
            return Message(ITEMS, b"", None)
        return Message(ITEMS, item_id.encode(), _json(update | {"timestamp_ms": "today"}))

    def _next(self) -> int:
        self._made += 1
        return self._made


def partition_of(key: str, partitions: int) -> int:
    """Murmur2 of the key, its sign left out."""
    return int(murmur2(key.encode()) & 0x7FFFFFFF) % partitions


def one_of_each_partition(partitions: int) -> list[str]:
    """Users `one-N`, the first of each partition."""
    found: dict[int, str] = {}
    for number in count():
        if len(found) == partitions:
            break
        found.setdefault(partition_of(f"one-{number}", partitions), f"one-{number}")
    return list(found.values())


def _json(event: dict[str, Any]) -> bytes:
    return json.dumps(event).encode()
