"""Events into a user record. Pure: the same set of events gives the same record, however often and in whatever order.

An event is its 64-bit hash. The history keeps the greatest MAX_HISTORY_ROWS rows by (timestamp_ms, event hash); the
greatest evicted pair is the floor, below which an unknown event can no longer be told from a forgotten duplicate: it is
`too_late`, stays out of history and count, while profile and seen set, which are maxima, still take it in.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from schemas.activity import UserActivity
from schemas.records import (
    HISTORY_ROW,
    MAX_HISTORY_ROWS,
    ProfileField,
    UserRecord,
    encode_value,
    hash64,
    newest_fields,
    profile_keeps,
)

ROW_BYTES = HISTORY_ROW.itemsize
PAIR_BYTES = 16  # (timestamp_ms, event hash), the head of a row
EVENT = slice(8, 16)
ITEM = slice(16, 24)
NO_ITEM = bytes(8)

_pack_row = struct.Struct(">QQQQf").pack
_pack_seen = struct.Struct("<QQ").pack
_action_hash = lru_cache(maxsize=1024)(hash64)


@dataclass(frozen=True, slots=True)
class Merged:
    """A record after some events. `seen` is appended to the seen set; nothing needs writing unless `changed`.

    `entered`: positions of the accepted events among those given; `profiles`: in parallel, the profile just after each.
    """

    record: UserRecord
    seen: bytes
    changed: bool
    entered: Sequence[int]
    profiles: Sequence[tuple[ProfileField, ...]]
    duplicates: int
    too_late: int
    forgotten: int

    @property
    def accepted(self) -> int:
        """How many events are new to the record."""
        return len(self.entered)


def merge(record: UserRecord, events: Sequence[UserActivity], seen_actions: frozenset[str]) -> Merged:
    """Take events into a record (a new user's is `UserRecord()`); with no `seen_actions`, every item counts as seen."""
    history, floor, count, profile = record.history, record.floor, record.count, record.profile
    seen: list[bytes] = []
    entered: list[int] = []
    profiles: list[tuple[ProfileField, ...]] = []
    duplicates = too_late = forgotten = 0
    for position, event in enumerate(events):
        if record.forgotten_ms and event.timestamp_ms <= record.forgotten_ms:
            forgotten += 1
            continue
        row = _row(event)
        place = _find(history, row[EVENT])
        accepted = repeated = False
        if place >= 0:
            duplicates += 1
            known = history[place : place + ROW_BYTES]
            repeated = row == known
            # The same event with other content, against the contract: the lesser row wins, in whatever order they come.
            if floor < row[:PAIR_BYTES] and row < known:
                history = history[:place] + history[place + ROW_BYTES :]
                count -= known[ITEM] != NO_ITEM
            else:
                row = b""
        elif row[:PAIR_BYTES] <= floor:
            too_late += 1
            row = b""
        else:
            accepted = True
        if row:
            history = _insert(history, row)
            count += row[ITEM] != NO_ITEM
            if len(history) > MAX_HISTORY_ROWS * ROW_BYTES:
                floor, history = history[:PAIR_BYTES], history[ROW_BYTES:]
        if event.attributes:
            profile = _merge_profile(profile, event.attributes, event.timestamp_ms)
        if accepted:
            entered.append(position)
            profiles.append(profile)
        if event.item_id is not None and not repeated and (not seen_actions or event.action in seen_actions):
            seen.append(_pack_seen(hash64(event.item_id), event.timestamp_ms))
    merged = replace(record, history=history, floor=floor, count=count, profile=profile)
    return Merged(
        record=merged,
        seen=b"".join(seen),
        changed=bool(seen) or merged.encode() != record.encode(),  # values may be equal and not the same: 1, 1.0, true
        entered=entered,
        profiles=profiles,
        duplicates=duplicates,
        too_late=too_late,
        forgotten=forgotten,
    )


def forget(record: UserRecord, taken_ms: int) -> UserRecord:
    """The record of a user to be forgotten: empty, and closed to every event up to the newest time known.

    `taken_ms` is the broker's time of the tombstone. One that was taken in before changes nothing: what came after it
    stays, however often it is delivered.
    """
    if taken_ms <= record.forget_taken_ms:
        return record
    newest_ms = int.from_bytes(record.history[-ROW_BYTES:][:8], "big")
    times_ms = [taken_ms, record.forgotten_ms, newest_ms, *(timestamp_ms for _, _, timestamp_ms in record.profile)]
    return UserRecord(token=record.token, forgotten_ms=max(times_ms), forget_taken_ms=taken_ms)


def _row(event: UserActivity) -> bytes:
    item = 0 if event.item_id is None else hash64(event.item_id)
    value = math.nan if event.value is None else event.value
    return _pack_row(event.timestamp_ms, hash64(event.event_id), item, _action_hash(event.action), value)


def _find(history: bytes, event: bytes) -> int:
    """Where the row of this event starts, or -1."""
    at = history.find(event)
    while at >= 0 and at % ROW_BYTES != EVENT.start:
        at = history.find(event, at + 1)
    return at - EVENT.start if at >= 0 else -1


def _insert(history: bytes, row: bytes) -> bytes:
    """The history with one more row at its place; rows sort by their bytes."""
    low, high = 0, len(history) // ROW_BYTES
    if history[-ROW_BYTES:] < row:  # nearly always: the newest event
        low = high
    while low < high:
        middle = (low + high) // 2
        if history[middle * ROW_BYTES : (middle + 1) * ROW_BYTES] < row:
            low = middle + 1
        else:
            high = middle
    at = low * ROW_BYTES
    return history[:at] + row + history[at:]


def _merge_profile(
    profile: tuple[ProfileField, ...], attributes: dict[str, Any], timestamp_ms: int
) -> tuple[ProfileField, ...]:
    """The newest value of each field; of equal times the greater encoded one, so that order does not matter."""
    fields = {name: (known_ms, encode_value(value), value) for name, value, known_ms in profile}
    for name, value in attributes.items():
        encoded = encode_value(value)
        if not profile_keeps(name, encoded):
            continue
        known = fields.get(name)
        if known is None or (timestamp_ms, encoded) > known[:2]:
            fields[name] = (timestamp_ms, encoded, value)
    newest = newest_fields({name: field[0] for name, field in fields.items()})
    return tuple((name, fields[name][2], fields[name][0]) for name in newest)
