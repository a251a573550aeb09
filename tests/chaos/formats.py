"""Stored bytes as docs/storage.md and the head of schemas/records.py lay them out, read by a decoder of our own."""

import math
import struct
from dataclasses import dataclass
from typing import Any

import msgspec
import xxhash

USER_HEAD = struct.Struct(">B8sQQQQQH")
ROW = struct.Struct(">QQQQf")
SEEN = struct.Struct("<QQ")
ITEM_HEAD = struct.Struct(">BBIQqHHB")


def hash64(text: str) -> int:
    """XXH3, 64 bits, of the UTF-8 bytes; 0 means none."""
    return xxhash.xxh3_64_intdigest(text.encode()) or 1


@dataclass(frozen=True, slots=True)
class Event:
    """A row of a history; `item` 0 = none, `value` None = none."""

    timestamp_ms: int
    event: int
    item: int
    action: int
    value: float | None

    @property
    def pair(self) -> tuple[int, int]:
        """What histories are ordered by."""
        return self.timestamp_ms, self.event


@dataclass(frozen=True, slots=True)
class User:
    """What Redis holds of a user. `profile`: name -> (value, timestamp_ms); `seen`: item hash -> newest time."""

    count: int
    forgotten_ms: int
    forget_taken_ms: int
    floor: tuple[int, int]
    history: list[Event]
    profile: dict[str, tuple[Any, int]]
    seen: dict[int, int]


@dataclass(frozen=True, slots=True)
class Item:
    """What Redis holds of an item."""

    item_id: str
    partition: int
    offset: int
    deleted: bool
    version: int | None
    vector: tuple[float, ...]
    update: bytes


def read_user(record: bytes, seen: bytes) -> User:
    """Raises ValueError, struct.error or msgspec's errors for anything else than a user record."""
    form, _, count, forgotten_ms, taken_ms, floor_ms, floor_event, rows = USER_HEAD.unpack_from(record)
    if form != 1:
        raise ValueError(f"format {form}")
    end = USER_HEAD.size + rows * ROW.size
    history = [
        Event(at_ms, event, item, action, None if math.isnan(value) else value)
        for at_ms, event, item, action, value in ROW.iter_unpack(record[USER_HEAD.size : end])
    ]
    profile = {name: (value, at_ms) for name, value, at_ms in msgspec.msgpack.decode(record[end:])}
    newest: dict[int, int] = {}
    for item, at_ms in SEEN.iter_unpack(seen):
        newest[item] = max(at_ms, newest.get(item, 0))
    return User(count, forgotten_ms, taken_ms, (floor_ms, floor_event), history, profile, newest)


def read_item(record: bytes) -> Item:
    """Raises ValueError or struct.error for anything else than an item record."""
    form, flags, partition, offset, version, id_bytes, dim, _ = ITEM_HEAD.unpack_from(record)
    if form != 1:
        raise ValueError(f"format {form}")
    start = ITEM_HEAD.size + id_bytes
    return Item(
        item_id=record[ITEM_HEAD.size : start].decode(),
        partition=partition,
        offset=offset,
        deleted=bool(flags & 1),
        version=None if version < 0 else version,
        vector=struct.unpack_from(f"<{dim}f", record, start),
        update=record[start + 4 * dim :],
    )
