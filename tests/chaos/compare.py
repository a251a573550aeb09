"""Expected against found. Every difference is one of four kinds, and names the event or the record where it shows."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tests.chaos.answers import Watched, read_answers, wrong_answers
from tests.chaos.difference import Difference, Kind
from tests.chaos.formats import User, hash64
from tests.chaos.keys import wrong_keys
from tests.chaos.log import ACTIVITY, CANDIDATES, DEAD_LETTERS, ITEMS, Entry, Place, source_topic
from tests.chaos.model import Expected, ExpectedUser, last_of_each_key, rebuilt
from tests.chaos.stored import Stored
from tests.chaos.vectors import ItemTower

TOLERANCE = 1e-4
STALE = "stale_version"
UNREADABLE_RECORD = "record_unreadable"  # of the user, not of the event
LETTERS = {bool: "b", int: "n", float: "n", str: "s", list: "l"}


def compare(
    expected: Expected,
    stored: Stored,
    topics: dict[str, list[Entry]],
    tower: ItemTower,
    watched: Watched,
) -> list[Difference]:
    """All differences: users, popular counts, items, collection, keys, markers, item topic, answers, dead letters."""
    found = [Difference("wrong_state", line) for line in stored.unreadable]
    found += _users(expected, stored)
    found += _popular(expected, stored)
    found += _next(expected, stored, topics[ACTIVITY])
    found += _items(expected, stored, tower)
    found += [Difference("wrong_state", line) for line in wrong_keys(stored.lives_ms, stored.items)]
    found += _complete(stored, topics)
    found += _compaction(expected, topics[ITEMS])
    found += wrong_answers(expected, read_answers(topics[CANDIDATES]), watched)
    found += _letters(expected, topics[DEAD_LETTERS], watched.refilled)
    return found


def _users(expected: Expected, stored: Stored) -> Iterator[Difference]:
    for user_id, user in expected.users.items():
        record = stored.users.get(user_id)
        if record is None:
            first = next(iter(user.sources.values()), "a tombstone")
            yield Difference("lost", f"user {user_id} has no record; {first}")
        else:
            yield from _user(user_id, user, record)
    for user_id in stored.users.keys() - expected.users.keys():
        yield Difference("wrong_state", f"user {user_id} has a record, and no event")


def _user(user_id: str, user: ExpectedUser, record: User) -> Iterator[Difference]:
    events = Counter(row.event for row in record.history)
    for event in user.history.keys() - events.keys():
        yield Difference("lost", f"user {user_id}: the history has not {user.sources[event]}")
    for event, times in events.items():
        if times > 1:
            yield Difference("double_effects", f"user {user_id}: {times} rows of {user.sources.get(event, event)}")
        if event not in user.history:
            yield Difference("wrong_state", f"user {user_id}: the history has event {event:016x}, which it must not")
    for row in record.history:
        if row.event in user.history and row != user.history[row.event]:
            yield Difference("wrong_state", f"user {user_id}: {row}, not {user.history[row.event]}")
    if record.history != sorted(record.history, key=lambda row: row.pair):
        yield Difference("wrong_state", f"user {user_id}: the history is not in order")
    if record.count != user.count:
        kind: Kind = "double_effects" if record.count > user.count else "lost"
        yield Difference(kind, f"user {user_id}: {record.count} events counted, {user.count} came")
    yield from _profile_and_seen(user_id, user, record)


def _profile_and_seen(user_id: str, user: ExpectedUser, record: User) -> Iterator[Difference]:
    for item, at_ms in user.seen.items():
        if record.seen.get(item, -1) < at_ms:
            yield Difference("lost", f"user {user_id}: not seen at {at_ms}: {user.seen_from[item]}")
        elif record.seen[item] > at_ms:
            yield Difference("wrong_state", f"user {user_id}: item {item:016x} seen at {record.seen[item]}")
    for item in record.seen.keys() - user.seen.keys():
        yield Difference("wrong_state", f"user {user_id}: item {item:016x} counts as seen")
    for name, was, must in (
        ("profile", record.profile, user.profile),
        ("floor", record.floor, user.floor),
        ("forgotten_ms", record.forgotten_ms, user.forgotten_ms),
        ("forget_taken_ms", record.forget_taken_ms, user.forget_taken_ms),
    ):
        if was != must:
            yield Difference("wrong_state", f"user {user_id}: {name} is {was}, must be {must}")


def _popular(expected: Expected, stored: Stored) -> Iterator[Difference]:
    for place in sorted(expected.popular.keys() | stored.popular.keys()):
        must, was = expected.popular.get(place, {}), stored.popular.get(place, {})
        for item in must.keys() | was.keys():
            more = was.get(item, 0) - must.get(item, 0)
            if more:
                line = f"popular in {place}: item {item:016x} has {was.get(item, 0)}, {must.get(item, 0)} came"
                yield Difference("double_effects" if more > 0 else "lost", line)


def _next(expected: Expected, stored: Stored, entries: list[Entry]) -> Iterator[Difference]:
    """Popular counts have taken in every activity that can be read, and none that has not come."""
    log = max((entry.log for entry in entries), default=0)
    last: dict[int, tuple[int, int]] = {}  # partition -> of all, of those that can be read
    for entry in sorted((entry for entry in entries if entry.log == log), key=lambda entry: entry.offset):
        readable = expected.letters.get(entry.place, (entry, ""))[1] in {"", UNREADABLE_RECORD}
        last[entry.partition] = entry.offset, entry.offset if readable else last.get(entry.partition, (-1, -1))[1]
    for partition, (end, readable) in last.items() if stored.popular_next is not None else ():
        expects = stored.popular_next.get(partition, 0)
        if readable >= 0 and not readable < expects <= end + 1:
            line = f"popular counts of partition {partition} expect {expects}: the last of {ACTIVITY} is {end}"
            yield Difference("wrong_state", line)


def _items(expected: Expected, stored: Stored, tower: ItemTower) -> Iterator[Difference]:
    live = [item_id for item_id, item in expected.items.items() if not item.deleted]
    indexed, history = tower.embed(live, [expected.items[item_id].attributes for item_id in live])
    vectors = {item_id: (indexed[n], history[n]) for n, item_id in enumerate(live)}
    for item_id, item in expected.items.items():
        record, entry = stored.items.get(item_id), item.entry
        if record is None:
            yield Difference("lost", f"item {item_id} has no record: {entry}")
            continue
        must = (entry.partition, entry.offset, item.deleted, item.version, entry.value or b"")
        was = (record.partition, record.offset, record.deleted, record.version, record.update)
        if was[:2] != must[:2]:
            yield Difference("lost", f"item {item_id}: {was[0]}@{was[1]} stands, and not {entry}")
        elif was != must:
            yield Difference("wrong_state", f"item {item_id}: {was}, must be {must}")
        vector = np.array(record.vector, dtype=np.float32)
        if item.deleted:
            wrong = len(vector) > 0
        else:
            wrong = vector.shape != vectors[item_id][1].shape or not _near(vector, vectors[item_id][1])
        if wrong:
            yield Difference("wrong_state", f"item {item_id}: the history vector is not that of {entry}")
    for item_id in stored.items.keys() - expected.items.keys():
        yield Difference("wrong_state", f"item {item_id} has a record, and no event")
    yield from _collection(expected, stored, {item_id: both[0] for item_id, both in vectors.items()}, tower)


def _collection(expected: Expected, stored: Stored, vectors: dict[str, Any], tower: ItemTower) -> Iterator[Difference]:
    fields = tuple(tower.spec["filterable"])
    for item_id, vector in vectors.items():
        item, rows = expected.items[item_id], stored.rows.get(item_id, [])
        if not rows:
            yield Difference("lost", f"item {item_id} is not in the collection: {item.entry}")
        if len(rows) > 1:
            yield Difference("double_effects", f"item {item_id} stands {len(rows)} times in the collection")
        for row in rows:
            if not _near(np.array(row.vector, dtype=np.float32), vector):
                yield Difference("wrong_state", f"item {item_id}: the indexed vector is not that of {item.entry}")
            was = row.attributes | {"_f": sorted(row.attributes.get("_f", ["none"]))}
            must = _filterable(item.attributes, fields)
            if was != must:
                yield Difference("wrong_state", f"item {item_id}: attributes {was}, must be {must}: {item.entry}")
            if row.item_hash % 2**64 != hash64(item_id):
                yield Difference("wrong_state", f"item {item_id} is indexed under the hash {row.item_hash}")
    for item_id in stored.rows.keys() - vectors.keys():
        known = expected.items.get(item_id)
        yield Difference("wrong_state", f"item {item_id} is in the collection: {known.entry if known else 'no event'}")


def _filterable(attributes: Mapping[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    """What can be filtered on, and under `_f` of which type each is. Of the workload nothing is to be left out."""
    kept = {name: attributes[name] for name in fields if attributes.get(name) is not None}
    return kept | {"_f": sorted(f"{name}:{LETTERS[type(value)]}" for name, value in kept.items())}


def _complete(stored: Stored, topics: dict[str, list[Entry]]) -> Iterator[Difference]:
    """Every partition must be marked as complete once all is done, else unknown users are not told from lost ones."""
    for name, topic in (("recall-activity", ACTIVITY), ("recall-items.", ITEMS)) if stored.complete is not None else ():
        groups = [marked for group, marked in stored.complete.items() if group.startswith(name)]
        missing = {entry.partition for entry in topics[topic]} | {-1}
        for marked in groups:
            missing -= marked
        if missing:
            yield Difference("wrong_state", f"partitions of {topic} are not marked as complete: {sorted(missing)}")


def _compaction(expected: Expected, entries: list[Entry]) -> Iterator[Difference]:
    """Where a view that is built from what compaction leaves would be another one.

    Left out are items whose last record cannot be read: nothing is produced behind those.
    """
    elsewhere = {place for place, (_, code) in expected.letters.items() if code == "wrong_partition"}
    kept = last_of_each_key([entry for entry in entries if entry.place not in elsewhere])
    unreadable = {entry.key for entry in kept if expected.letters.get(entry.place, (entry, ""))[1] not in {"", STALE}}
    items = rebuilt(kept).items
    for item_id, item in expected.items.items():
        if item_id.encode() in unreadable:
            continue
        other = items.get(item_id)
        if other is None or (other.deleted, other.entry.value) != (item.deleted, item.entry.value):
            found = "nothing" if other is None else other.entry
            yield Difference("lost", f"item {item_id}: compaction leaves {found}, and not {item.entry}")


def _near(was: Any, must: Any) -> bool:
    return was.shape == must.shape and bool(np.abs(was - must).max() <= TOLERANCE)


def _letters(expected: Expected, entries: list[Entry], refilled: Sequence[tuple[int, int]]) -> Iterator[Difference]:
    """Each that is due with its bytes, and no other.

    An update through a partition where its item does not live is passed over, without a letter, if it is read before
    those at home are back.
    """
    found: dict[Place, list[tuple[str, Entry]]] = {}
    for entry in entries:
        headers = {name: value.decode() for name, value in entry.headers}
        place = source_topic(entry), entry.log, int(headers["dlq.partition"]), int(headers["dlq.offset"])
        found.setdefault(place, []).append((headers["dlq.error.code"], entry))
    for place, (entry, code) in expected.letters.items():
        letters = found.pop(place, [])
        passed_over = code == "wrong_partition" and any(since <= entry.taken_ms <= until for since, until in refilled)
        if not letters and not passed_over:
            yield Difference("lost", f"no dead letter {code} of {entry}")
        for was, letter in letters:
            if was != code or (letter.key, letter.value) != (entry.key, entry.value):
                yield Difference("wrong_state", f"dead letter {was}, must be {code} with the bytes of {entry}")
    for place, letters in found.items():
        codes = {code for code, _ in letters}
        if codes != {expected.may_be_letters.get(place)}:
            yield Difference("wrong_state", f"dead letter {', '.join(sorted(codes))} of {place}, which can be read")
