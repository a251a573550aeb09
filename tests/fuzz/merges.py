"""The merge fuzz: random events of one user after the other, held against a slow merge that shares no code with it.

Promise 2: at most L events give the same bytes in any order, however often and in whatever batches they come. Of more,
the newest L stay and the greatest that was pushed out is the floor, in any order; what was taken in once, however long
ago, changes nothing when it comes again; and tombstones end what was before them.
"""

import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from schemas import codec
from schemas.activity import MAX_TIMESTAMP_MS, UserActivity
from schemas.records import RecordFormatError, UserRecord, compact_seen
from tests.chaos.formats import ROW, SEEN, USER_HEAD, hash64
from tests.fuzz.traffic import ENDINGS, VALUES
from workers.merge import forget, merge

HISTORY = 64
PROFILE_FIELDS = 64
PROFILE_BYTES = 1024
SEEN_ITEMS = 2000
RECORD_BYTES = USER_HEAD.size + HISTORY * ROW.size + PROFILE_FIELDS * (2 * PROFILE_BYTES + 32)
SEEN_ACTIONS = frozenset({"rate", "é"})

_encoded = msgspec.msgpack.Encoder(order="deterministic").encode

Step = UserActivity | int
"""An activity, or a tombstone by the time at which it was taken."""


@dataclass
class Slow:
    """One user, one event at a time. `encode` writes the bytes that docs/storage.md lays out."""

    count: int = 0
    forgotten_ms: int = 0
    taken_ms: int = 0
    floor: tuple[int, int] = (0, 0)
    rows: dict[int, tuple[int, int, int, int, bytes]] = field(default_factory=dict)
    profile: dict[str, tuple[int, bytes, Any]] = field(default_factory=dict)
    seen: dict[int, int] = field(default_factory=dict)

    def take(self, step: Step) -> None:
        """One event."""
        if isinstance(step, int):
            self._forget(step)
            return
        at_ms = step.timestamp_ms
        if self.forgotten_ms and at_ms <= self.forgotten_ms:
            return
        event, item = hash64(step.event_id), 0 if step.item_id is None else hash64(step.item_id)
        value = struct.pack(">f", float("nan") if step.value is None else step.value)
        row = at_ms, event, item, hash64(step.action), value
        known = self.rows.get(event)
        if (at_ms, event) > self.floor and (known is None or row < known):
            self.count += (item != 0) - (known is not None and known[2] != 0)
            self.rows[event] = row
            if len(self.rows) > HISTORY:
                oldest = min(self.rows.values())
                self.floor = oldest[:2]
                del self.rows[oldest[1]]
        for name, given in (step.attributes or {}).items():
            if len(name.encode()) <= PROFILE_BYTES and len(_encoded(given)) <= PROFILE_BYTES:
                new = at_ms, _encoded(given), given
                self.profile[name] = max(new, self.profile.get(name, new), key=lambda each: each[:2])
        for name in sorted(self.profile, key=lambda name: (self.profile[name][0], name))[:-PROFILE_FIELDS]:
            del self.profile[name]
        if item and step.action in SEEN_ACTIONS:
            self.seen[item] = max(at_ms, self.seen.get(item, 0))

    def _forget(self, taken_ms: int) -> None:
        if taken_ms <= self.taken_ms:
            return
        times = [row[0] for row in self.rows.values()] + [value[0] for value in self.profile.values()]
        self.forgotten_ms, self.taken_ms = max(taken_ms, self.forgotten_ms, *times, 0), taken_ms
        self.count, self.floor, self.rows, self.profile, self.seen = 0, (0, 0), {}, {}, {}

    def encode(self) -> tuple[bytes, bytes]:
        """The record without a token, and the compacted seen set."""
        rows = sorted(self.rows.values())
        times = self.forgotten_ms, self.taken_ms
        head = USER_HEAD.pack(1, bytes(8), self.count, *times, *self.floor, len(rows))
        history = b"".join(ROW.pack(*row[:4], 0.0)[:-4] + row[4] for row in rows)
        profile = [[name, value, at_ms] for name, (at_ms, _, value) in sorted(self.profile.items())]
        seen = sorted((at_ms, item) for item, at_ms in self.seen.items())[-SEEN_ITEMS:]
        return head + history + _encoded(profile), b"".join(SEEN.pack(item, at_ms) for at_ms, item in seen)


def expected(steps: Sequence[Step]) -> tuple[bytes, bytes]:
    """Record and seen set of the slow merge."""
    slow = Slow()
    for step in steps:
        slow.take(step)
    return slow.encode()


def taken(batches: Sequence[Sequence[Step]]) -> tuple[bytes, bytes]:
    """Record and seen set of the real one, which are stored, and read again, between batches. Checks every bound."""
    data, seen = UserRecord().encode(), b""
    for batch in batches:
        record = UserRecord.decode(data)
        run: list[UserActivity] = []
        for step in [*batch, None]:
            if isinstance(step, UserActivity):
                run.append(step)
                continue
            merged = merge(record, run, SEEN_ACTIONS)
            if merged.accepted + merged.duplicates + merged.too_late + merged.forgotten != len(run):
                raise AssertionError("an event is neither accepted nor anything else")
            record, seen, run = merged.record, seen + merged.seen, []
            if step is not None:
                forgotten = forget(record, step)
                seen = seen if forgotten is record else b""
                record = forgotten
        data = record.encode()
        if UserRecord.decode(data).encode() != data:
            raise AssertionError("what is read is not what was written")
        if len(record.history) > HISTORY * ROW.size or len(record.profile) > PROFILE_FIELDS or len(data) > RECORD_BYTES:
            raise AssertionError(f"a record of {len(data)} bytes, {len(record.profile)} fields")
    return data, compact_seen(seen)


class Merges:
    """Rounds of events, each of one user."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._made = 0

    def round(self) -> int:
        """One user's; how many events it took. Raises AssertionError with the events that show what is wrong."""
        kinds = (self._few, self._few, self._many, self._forgotten)
        return self._chance.choice(kinds)()

    def _few(self) -> int:
        """At most L: in any order, any number of times, also of one id with other content."""
        chance = self._chance
        events = [self._event() for _ in range(chance.randint(0, HISTORY))]
        for n in range(len(events)):
            if chance.random() < 0.05:
                events[n] = msgspec.structs.replace(events[n], event_id=chance.choice(events).event_id)
        must = expected(events)
        again = [*events, *chance.choices(events, k=chance.randint(0, 3 * len(events)))] if events else []
        chance.shuffle(again)
        self._same(must, events, "in their order")
        self._same(must, again, "shuffled and repeated")
        self._same(must, again[::-1], "backwards")
        return len(events) + 2 * len(again)

    def _many(self) -> int:
        """More than L: the newest L and the floor whatever the order; nothing changes when it comes again."""
        chance = self._chance
        events = [self._event() for _ in range(chance.choice((HISTORY + 1, 100, 300, 1000)))]
        shuffled = chance.sample(events, len(events))
        self._same(expected(events), events, "in their order")
        redelivered = list(self._redelivered(shuffled))
        self._same(expected(shuffled), redelivered, "shuffled and delivered again")
        pairs = sorted((event.timestamp_ms, hash64(event.event_id)) for event in events)
        record = UserRecord.decode(taken([shuffled])[0])
        found = [(int(row["timestamp_ms"]), int(row["event"])) for row in record.rows()]
        if found != pairs[-HISTORY:] or record.floor != struct.pack(">QQ", *pairs[-HISTORY - 1]):
            raise AssertionError(f"not the newest of {events}")
        return len(events) + len(redelivered)

    def _forgotten(self) -> int:
        """Tombstones in between, everything delivered again and again."""
        chance = self._chance
        steps: list[Step] = []
        taken_ms = 1_600_000_000_000
        for _ in range(chance.randint(1, 150)):
            taken_ms += chance.choice((0, 1, 1000, 3_600_000))
            steps.append(taken_ms if chance.random() < 0.03 else self._event())
        redelivered = list(self._redelivered(steps))
        self._same(expected(steps), redelivered, "delivered again")
        return len(redelivered)

    def _redelivered(self, steps: Sequence[Step]) -> Iterator[Step]:
        """In this order, and again and again from somewhere before: as after a worker's death, or a rewind."""
        at = 0
        while at < len(steps):
            end = at + self._chance.choice((1, 10, 100, 500))
            yield from steps[at:end]
            at = end
            if self._chance.random() < 0.3:
                yield from steps[max(0, at - self._chance.choice((1, 20, 1000))) : at]

    def _same(self, must: tuple[bytes, bytes], steps: Sequence[Step], how: str) -> None:
        was = taken(list(self._cut(steps)))
        if was != must:
            raise AssertionError(f"{how}: {was}, must be {must}, of {steps}")
        self._damaged(was[0])

    def _cut(self, steps: Sequence[Step]) -> Iterator[Sequence[Step]]:
        at, size = 0, self._chance.choice((1, 3, 20, 1024))
        while at < len(steps):
            end = at + self._chance.randint(1, size)
            yield steps[at:end]
            at = end

    def _damaged(self, data: bytes) -> None:
        """Stored bytes that something has damaged: read, or refused as such; nothing else happens."""
        chance, damaged = self._chance, bytearray(data)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            UserRecord.decode(bytes(damaged[: chance.randint(0, len(damaged))] if chance.random() < 0.5 else damaged))
        except RecordFormatError:
            return

    def _event(self) -> UserActivity:
        """One as the codec lets it through: bytes that were read."""
        chance = self._chance
        self._made += 1
        attributes = None
        if (roll := chance.random()) < 0.2:
            attributes = {chance.choice(("age", "city", "")): chance.choice(VALUES)}
        elif roll < 0.22:
            attributes = {f"{n}{chance.choice(ENDINGS)}": chance.choice(VALUES) for n in range(chance.choice((70, 5)))}
        elif roll < 0.23:
            attributes = {"n" * chance.choice((1024, 1025)): 1}
        event = UserActivity(
            event_id=f"{self._made}{chance.choice(ENDINGS)}",
            user_id="u",
            action=chance.choice(("rate", "view", "é", "x" * 256)),
            timestamp_ms=chance.choice(
                (chance.randint(0, 5), 1_600_000_000_000 + chance.randint(0, 10**7), MAX_TIMESTAMP_MS)
                if chance.random() < 0.1
                else (1_600_000_000_000 + chance.randint(0, 10**9), 1_600_000_000_000 + chance.randint(0, 50))
            ),
            item_id=None if chance.random() < 0.2 else f"{chance.randint(0, 3000)}{chance.choice(ENDINGS)}",
            value=chance.choice((None, 1.0, 4.5, -0.0, 0.0, 1e-45, 5e-324, 3.4028235e38, -3.4028235e38, 16777217)),
            attributes=attributes,
        )
        return codec.decode_activity(codec.encode_event(event), record_timestamp_ms=MAX_TIMESTAMP_MS)


def run(seed: int, events: int) -> dict[str, object]:
    """Rounds until so many events were merged. Raises AssertionError."""
    merges, done, rounds = Merges(seed), 0, 0
    while done < events:
        done += merges.round()
        rounds += 1
    return {"seed": seed, "events": done, "users": rounds}
