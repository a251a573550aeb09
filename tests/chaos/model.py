"""What the topics must have led to: the rules of DESIGN's promises 1, 2 and 7 and of docs/storage.md, once more.

Plain and single-threaded: every record once, in the order of the log. It shares no code with the workers. For a user
whose events come through one partition that order is the order of the workers, whatever is delivered again. For a user
whose events come through several partitions order is chance: such a user has no more events than a history holds.
"""

import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from tests.chaos.formats import Event, hash64
from tests.chaos.log import ACTIVITY, ITEMS, REQUESTS, Entry, Place
from tests.chaos.reading import BadEventError, identity, read
from tests.chaos.workload import MOST_GENRES, REFUSED_BY_INDEX, WRONGED, partition_of

PopularSet = tuple[int, int, str]
"""(partition, epoch, segment; '' = everybody)"""

HISTORY = 64
PROFILE_FIELDS = 64
PROFILE_VALUE_BYTES = 1024
AFTER = "recall.after"

_encoded = msgspec.msgpack.Encoder(order="deterministic").encode


@dataclass(frozen=True)
class Rules:
    """What the bundle's features.toml and vocabularies.json say of activities."""

    seen_actions: frozenset[str]
    target_action: str
    at_least: float
    half_life_ms: int
    segment_field: str
    segments: frozenset[str]

    @classmethod
    def read(cls, folder: Path) -> "Rules":
        """Of a bundle's folder."""
        spec = tomllib.loads((folder / "features.toml").read_text())
        field_name = spec["popular"]["segment"]
        values = json.loads((folder / "vocabularies.json").read_text())["values"]
        return cls(
            seen_actions=frozenset(spec["seen"]["actions"]),
            target_action=spec["target"]["action"],
            at_least=spec["target"]["at_least"],
            half_life_ms=spec["popular"]["half_life_ms"],
            segment_field=field_name,
            segments=frozenset(values[f"profile.{field_name}"]),
        )


@dataclass
class ExpectedUser:
    """One user. `sources` tells from which record an event came, for whoever has to name one that is missing."""

    count: int = 0
    forgotten_ms: int = 0
    forget_taken_ms: int = 0
    floor: tuple[int, int] = (0, 0)
    history: dict[int, Event] = field(default_factory=dict)
    profile: dict[str, tuple[Any, int]] = field(default_factory=dict)
    seen: dict[int, int] = field(default_factory=dict)
    sources: dict[int, Entry] = field(default_factory=dict)
    seen_from: dict[int, Entry] = field(default_factory=dict)
    partitions: set[int] = field(default_factory=set)
    tombstones_ms: list[int] = field(default_factory=list)
    seen_at_ms: dict[int, list[int]] = field(default_factory=dict)
    """every item that was ever seen -> when the broker took the activities that are new to the history, in order"""

    def take(self, event: dict[str, Any], entry: Entry, seen_actions: frozenset[str]) -> bool:
        """One activity; whether it is new to the history."""
        at_ms, item_id = event["timestamp_ms"], event.get("item_id")
        self.partitions.add(entry.partition)
        if self.forgotten_ms and at_ms <= self.forgotten_ms:
            return False
        value = event.get("value")
        row = Event(
            timestamp_ms=at_ms,
            event=hash64(event["event_id"]),
            item=0 if item_id is None else hash64(item_id),
            action=hash64(event["action"]),
            value=None if value is None else float(value),
        )
        new = row.event not in self.history and row.pair > self.floor
        if new:
            self.history[row.event] = row
            self.sources[row.event] = entry
            self.count += item_id is not None
            if len(self.history) > HISTORY:
                self._evict()
        for name, given in event.get("attributes", {}).items():
            self._set(name, given, at_ms)
        if item_id is not None and event["action"] in seen_actions:
            self._see(row, entry, new=new)
        return new

    def forget(self, taken_ms: int) -> None:
        """A tombstone: nothing up to now, and nothing older than what was known, exists any more."""
        self.tombstones_ms.append(taken_ms)
        if taken_ms <= self.forget_taken_ms:
            return
        known = [row.timestamp_ms for row in self.history.values()] + [at_ms for _, at_ms in self.profile.values()]
        self.forgotten_ms = max([taken_ms, self.forgotten_ms, *known])
        self.forget_taken_ms, self.count, self.floor = taken_ms, 0, (0, 0)
        for kept in (self.history, self.profile, self.seen):
            kept.clear()

    def _see(self, row: Event, entry: Entry, *, new: bool) -> None:
        if row.timestamp_ms > self.seen.get(row.item, -1):
            self.seen[row.item], self.seen_from[row.item] = row.timestamp_ms, entry
        self.seen_at_ms.setdefault(row.item, []).extend([entry.taken_ms] * new)

    def _evict(self) -> None:
        if len(self.partitions) > 1:
            raise AssertionError("the workload gives a user of several partitions more events than a history holds")
        oldest = min(self.history.values(), key=lambda row: row.pair)
        self.floor = oldest.pair
        del self.history[oldest.event]

    def _set(self, name: str, value: Any, at_ms: int) -> None:
        if len(_encoded(value)) > PROFILE_VALUE_BYTES or len(name.encode()) > PROFILE_VALUE_BYTES:
            return
        known = self.profile.get(name)
        if known is None or (at_ms, _encoded(value)) > (known[1], _encoded(known[0])):
            self.profile[name] = (value, at_ms)
        if len(self.profile) > PROFILE_FIELDS:
            del self.profile[min(self.profile, key=lambda each: (self.profile[each][1], each))]


@dataclass
class ExpectedItem:
    """The last accepted update of an item, and where the item lives."""

    entry: Entry
    deleted: bool
    version: int | None
    attributes: dict[str, Any]


@dataclass
class Expected:
    """All that must be so. `letters`: code of each; `may_be_letters`: those that may have gone either way."""

    users: dict[str, ExpectedUser] = field(default_factory=dict)
    items: dict[str, ExpectedItem] = field(default_factory=dict)
    requests: dict[Place, tuple[Entry, str, str]] = field(default_factory=dict)
    """readable requests: the record, the status `rejected` or '' for any other, the request id"""
    letters: dict[Place, tuple[Entry, str]] = field(default_factory=dict)
    may_be_letters: dict[Place, str] = field(default_factory=dict)
    popular: dict[PopularSet, dict[int, int]] = field(default_factory=dict)
    first_upserts_ms: dict[str, int] = field(default_factory=dict)
    """every item that ever existed -> when the broker took the first update that was accepted"""
    whole_items: bool = True
    """compaction has taken no update yet"""
    item_partitions: int = 4  # they never grow


def expected(topics: dict[str, list[Entry]], rules: Rules) -> Expected:
    """From the three topics that come in."""
    result = Expected(whole_items=whole(topics[ITEMS]))
    for entry in topics[ACTIVITY]:
        _activity(result, entry, rules)
    for entry in topics[ITEMS]:
        _item(result, entry)
    for entry in topics[REQUESTS]:
        _request(result, entry)
    return result


def _activity(result: Expected, entry: Entry, rules: Rules) -> None:
    if entry.value is None:
        user_id = _key(entry)
        if user_id is None:
            result.letters[entry.place] = entry, "invalid_key"
        else:
            result.users.setdefault(user_id, ExpectedUser()).forget(entry.taken_ms)
        return
    try:
        event = read(ACTIVITY, entry.value, entry.taken_ms)
    except BadEventError as code:
        result.letters[entry.place] = entry, str(code)
        return
    if event["user_id"] == WRONGED:
        result.letters[entry.place] = entry, "record_unreadable"
        return
    user = result.users.setdefault(event["user_id"], ExpectedUser())
    if user.take(event, entry, rules.seen_actions):
        _count(result, user, event, entry, rules)


def _count(result: Expected, user: ExpectedUser, event: dict[str, Any], entry: Entry, rules: Rules) -> None:
    """Popularity: 2^10 at the start of an epoch of 16 half-lives, twice as much with every half-life after it."""
    value = event.get("value")
    if event["action"] != rules.target_action or "item_id" not in event or value is None or value < rules.at_least:
        return
    epoch, since_ms = divmod(event["timestamp_ms"], 16 * rules.half_life_ms)
    amount = round(1024 * 2.0 ** (since_ms / rules.half_life_ms))
    segment, _ = user.profile.get(rules.segment_field, ("", 0))
    for name in {"", segment if segment in rules.segments else ""}:
        counts = result.popular.setdefault((entry.partition, epoch, name), {})
        item = hash64(event["item_id"])
        counts[item] = counts.get(item, 0) + amount


def _item(result: Expected, entry: Entry) -> None:
    """The later offset wins; a lower version, another partition or another key is refused.

    An item moves to the partition that the usual partitioner gives its key, once an update comes through that.

    A winner that was produced again wins whatever its version, unless another update was accepted behind what it names
    that has other bytes.
    """
    event: dict[str, Any] = {}
    if entry.value is None:
        item_id = _key(entry)
        if item_id is None:
            result.letters[entry.place] = entry, "invalid_key"
            return
    else:
        try:
            event = read(ITEMS, entry.value, entry.taken_ms)
        except BadEventError as code:
            result.letters[entry.place] = entry, str(code)
            return
        item_id = event["item_id"]
        if (entry.key or b"") != item_id.encode():
            result.letters[entry.place] = entry, "key_mismatch"
            return
    stands, version = result.items.get(item_id), event.get("version")
    if stands is not None and stands.entry.partition != entry.partition:
        if entry.partition != partition_of(item_id, result.item_partitions):
            result.letters[entry.place] = entry, "wrong_partition"
            return
        stands = None  # it moves
    after = next((int(value) for name, value in entry.headers if name == AFTER), None)
    if after is not None:
        if stands is not None and stands.entry.offset > after and stands.entry.value != entry.value:
            return
    elif stands is not None and version is not None and stands.version is not None and version < stands.version:
        result.letters[entry.place] = entry, "stale_version"
        return
    attributes, deleted = event.get("attributes", {}), entry.value is None or event["op"] == "delete"
    code = _refusal(item_id, event)
    if code:
        result.letters[entry.place] = entry, code
        return
    _superseded(result, stands)
    if not deleted:
        result.first_upserts_ms.setdefault(item_id, entry.taken_ms)
    result.items[item_id] = ExpectedItem(entry, deleted, version, attributes)


def _refusal(item_id: str, event: dict[str, Any]) -> str:
    """Which dead letter an update is that a backend refuses, '' for none."""
    if "embedding" in event:
        return "invalid_embedding"  # the workload gives none but those whose scores would overflow
    if item_id.startswith(REFUSED_BY_INDEX):
        return "index_refused"
    return "tower_output" if len(event.get("attributes", {}).get("genres", ())) > MOST_GENRES else ""


def last_of_each_key(entries: list[Entry]) -> list[Entry]:
    """What compaction leaves of a topic."""
    return list({(entry.partition, entry.key): entry for entry in entries}.values())


def whole(entries: list[Entry]) -> bool:
    """Whether no record of a topic that was never made anew is missing."""
    last = {entry.partition: entry.offset for entry in sorted(entries, key=lambda entry: entry.offset)}
    return sum(last.values()) + len(last) == len(entries)


def rebuilt(entries: list[Entry]) -> Expected:
    """What a new view makes of these records of the item topic."""
    result = Expected()
    for entry in sorted(entries, key=lambda entry: (entry.partition, entry.offset)):
        _item(result, entry)
    return result


def _superseded(result: Expected, stands: ExpectedItem | None) -> None:
    """What was refused before a later update is no loss when, delivered again behind that, it is only passed over."""
    if stands is None:
        return
    for place, (entry, code) in list(result.letters.items()):
        if code == "stale_version" and entry.key == stands.entry.key:
            result.may_be_letters[place] = code
            del result.letters[place]


def _request(result: Expected, entry: Entry) -> None:
    ids = identity(entry.value)
    try:
        read(REQUESTS, entry.value, entry.taken_ms)
    except BadEventError as code:
        if ids is None:
            result.letters[entry.place] = entry, str(code)
        else:
            result.requests[entry.place] = entry, "rejected", ids[0]
        return
    assert ids is not None
    result.requests[entry.place] = entry, "", ids[0]


def _key(entry: Entry) -> str | None:
    try:
        text = (entry.key or b"").decode()
    except UnicodeDecodeError:
        return None
    return text if 0 < len(entry.key or b"") <= 256 else None
