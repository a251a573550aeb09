"""The stored forms of a user and of an item: bytes that workers write and read in Redis. Independent of any bundle.

User record, big-endian, 51 bytes of head, then the history, then the profile:

    offset  size  field
         0     1  format, 1
         1     8  token: random, new at every write; what the compare-and-set compares
         9     8  count: accepted events that named an item
        17     8  forgotten_ms: events at or before this time no longer exist (0 = never forgotten)
        25     8  forget_taken_ms: the broker's time of the newest tombstone; one that is not newer is a repeat
        33    16  floor: (timestamp_ms, event hash) of the greatest evicted history row (zeros = none)
        49     2  number of history rows
        51  36*n  history, oldest first: HISTORY_ROW, whose bytes sort like (timestamp_ms, event hash)
      ....        profile: msgpack array of [field, value, timestamp_ms], sorted by field

Beside it, in the same hash slot, stands the seen set: SEEN_ENTRY rows in any order, where an item may stand several
times; what counts is the newest time of each. Appending is therefore idempotent by itself.

Item record, big-endian, 27 bytes of head:

    offset  size  field
         0     1  format, 1
         1     1  flags: bit 0 = deleted
         2     4  partition of the update       (the fence: what the compare-and-set of a write
         6     8  offset of the update           compares)
        14     8  version, -1 = none
        22     2  length of the item id in bytes
        24     2  dimension of the history vector, 0 = none
        26     1  reserved, 0
        27        item id, UTF-8; history vector, float32 little-endian; the update's bytes as they came
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

RECORD_FORMAT = 1
TOKEN_BYTES = 8
TOKEN_SLICE = slice(1, 1 + TOKEN_BYTES)
FORGET_SLICE = slice(25, 33)  # forget_taken_ms
MAX_HISTORY_ROWS = 64  # L of promise 2
MAX_SEEN_ITEMS = 2000
MAX_PROFILE_FIELDS = 64
MAX_PROFILE_VALUE_BYTES = 1024  # of an encoded value, and of a field's name

HISTORY_ROW = np.dtype(
    [("timestamp_ms", ">u8"), ("event", ">u8"), ("item", ">u8"), ("action", ">u8"), ("value", ">f4")]
)
"""`item` 0 = the event named no item; `value` NaN = it carried none; hashes are hash64 of the id or action name."""

SEEN_ENTRY = np.dtype([("item", "<u8"), ("timestamp_ms", "<u8")])

ITEM_HEAD = np.dtype([("format", "u1"), ("deleted", "u1"), ("partition", ">u4"), ("offset", ">u8")])
"""What an item record begins with."""

_digest = xxhash.xxh3_64_intdigest
_USER_HEAD = struct.Struct(">B8sQQQ16sH")
_ITEM_HEAD = struct.Struct(">BBIQqHHB")
_ITEM_FENCE = struct.Struct(">IQ")
_ITEM_SIZES = struct.Struct(">HH")  # length of the id, dimension: the part of the head that finds the vector
_ITEM_SIZES_AT = 22
encode_value = msgspec.msgpack.Encoder(order="deterministic").encode  # the order of keys in a value tells nothing
_NO_PROFILE = encode_value(())
_unpack_profile = msgspec.msgpack.Decoder(list[tuple[str, Any, int]]).decode

ProfileField = tuple[str, Any, int]
"""(field name, value, timestamp_ms of the event that set it)"""


class RecordFormatError(ValueError):
    """Stored bytes that this version cannot read."""


def hash64(text: str) -> int:
    """XXH3 64-bit hash of the UTF-8 bytes; 0 is kept free to mean 'none'."""
    return _digest(text.encode()) or 1


def hash64_each(texts: Sequence[str]) -> NDArray[np.uint64]:
    """uint64[N]: hash64 of each, in less than half the time."""
    hashes = np.fromiter(map(_digest, map(str.encode, texts)), dtype=np.uint64, count=len(texts))
    hashes[hashes == 0] = 1
    return hashes


def among(hashes: NDArray[np.uint64], known: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """bool[N]: which hashes are among the known ones, which are sorted. A tenth of the time of np.isin."""
    if not len(known):
        return np.zeros(len(hashes), dtype=np.bool_)
    return np.equal(known.take(known.searchsorted(hashes), mode="clip"), hashes)


def profile_keeps(name: str, encoded: bytes) -> bool:
    """Whether a profile has room for a field of this name and encoded value: the record is bounded."""
    return len(encoded) <= MAX_PROFILE_VALUE_BYTES and len(name.encode()) <= MAX_PROFILE_VALUE_BYTES


def newest_fields(times_ms: Mapping[str, int]) -> list[str]:
    """The fields that a profile keeps of these, sorted: the newest MAX_PROFILE_FIELDS by (time, name)."""
    if len(times_ms) <= MAX_PROFILE_FIELDS:
        return sorted(times_ms)
    return sorted(sorted(times_ms, key=lambda name: (times_ms[name], name))[-MAX_PROFILE_FIELDS:])


def compact_seen(raw: bytes) -> bytes:
    """The seen set without repeats: the newest time of each item, the newest MAX_SEEN_ITEMS by (time, item)."""
    return _compacted(_seen_entries(raw), MAX_SEEN_ITEMS).tobytes()


def seen_items(
    raw: bytes, before_ms: int | None = None, since_ms: int | None = None, cap: int = MAX_SEEN_ITEMS
) -> NDArray[np.uint64]:
    """uint64[n]: hashes of the items in a seen set, each once, sorted.

    `before_ms`: only those seen before that time; `since_ms`: only those seen at that time or later, which may lie
    before the epoch; `cap` (1 to MAX_SEEN_ITEMS): of what is left the newest that many, by (time, item).
    Of an item that was seen again, only the newest time is kept for good: as of an earlier time it may count as unseen.
    """
    entries = _seen_entries(raw)
    if len(entries) > MAX_SEEN_ITEMS:
        entries = _compacted(entries, MAX_SEEN_ITEMS)
    if before_ms is not None:
        entries = entries[entries["timestamp_ms"] < before_ms]
    if since_ms is not None:
        entries = entries[entries["timestamp_ms"] >= since_ms]
    if len(entries) > cap:
        entries = _compacted(entries, cap)
    items = np.sort(entries["item"])
    return items[_last_of_each(items)]


def _seen_entries(raw: bytes) -> NDArray[np.void]:
    """SEEN_ENTRY[n]; a stray end that is no whole entry is left out: a seen set is never worth a failed request."""
    return np.frombuffer(raw, dtype=SEEN_ENTRY, count=len(raw) // SEEN_ENTRY.itemsize)


def _compacted(entries: NDArray[np.void], most: int) -> NDArray[np.void]:
    """The newest time of each item, the newest `most` of these, oldest first by (time, item)."""
    by_item = entries[np.lexsort((entries["timestamp_ms"], entries["item"]))]
    newest = by_item[_last_of_each(by_item["item"])]
    return newest[np.lexsort((newest["item"], newest["timestamp_ms"]))][-most:]


def _last_of_each(items: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """bool[n] of sorted values: True where the next one differs. A quarter of the time of np.unique."""
    last = np.ones(len(items), dtype=np.bool_)
    np.not_equal(items[1:], items[:-1], out=last[:-1])
    return last


@dataclass(frozen=True, slots=True)
class UserRecord:
    """Facts about one user. `history` holds whole HISTORY_ROWs, oldest first; `profile` is sorted by field name."""

    token: bytes = bytes(TOKEN_BYTES)
    count: int = 0
    forgotten_ms: int = 0
    forget_taken_ms: int = 0
    floor: bytes = bytes(16)
    history: bytes = b""
    profile: tuple[ProfileField, ...] = ()

    def encode(self) -> bytes:
        """The stored bytes."""
        rows = len(self.history) // HISTORY_ROW.itemsize
        forgotten = (self.forgotten_ms, self.forget_taken_ms)
        head = _USER_HEAD.pack(RECORD_FORMAT, self.token, self.count, *forgotten, self.floor, rows)
        return head + self.history + encode_value(self.profile)

    @classmethod
    def decode(cls, data: bytes) -> "UserRecord":
        """Read stored bytes. Raises RecordFormatError for another format or truncated bytes."""
        try:
            version, token, count, forgotten_ms, forget_taken_ms, floor, rows = _USER_HEAD.unpack_from(data)
            end = _USER_HEAD.size + rows * HISTORY_ROW.itemsize
            if version != RECORD_FORMAT or len(data) <= end:
                raise RecordFormatError(f"user record of format {version}, {len(data)} bytes, cannot be read")
            history, profile = data[_USER_HEAD.size : end], tuple(_unpack_profile(data[end:]))
        except (struct.error, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RecordFormatError(f"user record cannot be read: {error}") from error
        return cls(token, count, forgotten_ms, forget_taken_ms, floor, history, profile)

    def rows(self) -> NDArray[np.void]:
        """The history as a read-only structured array HISTORY_ROW[n], oldest first."""
        return np.frombuffer(self.history, dtype=HISTORY_ROW)

    def with_token(self, token: bytes) -> "UserRecord":
        """The same facts under another token."""
        return replace(self, token=token)


def holds_event(data: bytes | None, event_id: str) -> bool:
    """Whether the history in a stored user record has this event; that of an unknown user (None) has not.

    An event that newer ones have pushed out of the history is not found. Raises RecordFormatError.
    """
    return data is not None and hash64(event_id) in UserRecord.decode(data).rows()["event"]


def is_of_nobody(data: bytes | None) -> bool:
    """Whether a stored user record says nothing of its user: there is none, or all was forgotten, and nothing since."""
    return data is None or (data[:1] == bytes([RECORD_FORMAT]) and len(data) == _USER_HEAD.size + len(_NO_PROFILE))


@dataclass(frozen=True, slots=True)
class ItemRecord:
    """What one view knows of one item. `update` is the accepted event's bytes, empty for a tombstone."""

    item_id: str
    partition: int
    offset: int
    deleted: bool = False
    version: int | None = None
    history_vector: bytes = b""  # float32[D], little-endian
    update: bytes = b""

    def encode(self) -> bytes:
        """The stored bytes."""
        item_id = self.item_id.encode()
        version = -1 if self.version is None else self.version
        dim = len(self.history_vector) // 4
        head = _ITEM_HEAD.pack(
            RECORD_FORMAT, int(self.deleted), self.partition, self.offset, version, len(item_id), dim, 0
        )
        return head + item_id + self.history_vector + self.update

    @classmethod
    def decode(cls, data: bytes) -> "ItemRecord":
        """Read stored bytes. Raises RecordFormatError for another format or truncated bytes."""
        try:
            record_format, flags, partition, offset, version, id_bytes, dim, _ = _ITEM_HEAD.unpack_from(data)
            vector = _ITEM_HEAD.size + id_bytes
            item_id = data[_ITEM_HEAD.size : vector].decode()
        except (struct.error, UnicodeDecodeError) as error:
            raise RecordFormatError(f"item record cannot be read: {error}") from error
        update = vector + 4 * dim
        if record_format != RECORD_FORMAT or len(data) < update:
            raise RecordFormatError(f"item record of format {record_format}, {len(data)} bytes, cannot be read")
        return cls(
            item_id=item_id,
            partition=partition,
            offset=offset,
            deleted=bool(flags & 1),
            version=None if version < 0 else version,
            history_vector=data[vector:update],
            update=data[update:],
        )


def item_fence(partition: int, offset: int) -> bytes:
    """Bytes 2 to 13 of an item record: what the compare-and-set compares."""
    return _ITEM_FENCE.pack(partition, offset)


def item_heads(stored: Sequence[bytes]) -> NDArray[np.void]:
    """ITEM_HEAD[N] of stored item records, or of their first ITEM_HEAD.itemsize bytes; zeros where there are fewer."""
    heads = b"".join(data[: ITEM_HEAD.itemsize].ljust(ITEM_HEAD.itemsize, b"\0") for data in stored)
    return np.frombuffer(heads, dtype=ITEM_HEAD)


def item_vectors(stored: Sequence[bytes | None], dim: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """History vectors of stored item records: float32[N, dim] and bool[N], True where the row holds one.

    A row is zeros and False where there is no record, the item is deleted, or the bytes hold no vector of `dim`.
    """
    size = 4 * dim
    known = np.zeros(len(stored), dtype=np.bool_)
    pieces: list[bytes] = []
    for position, data in enumerate(stored):
        if data is None or len(data) < _ITEM_HEAD.size or data[0] != RECORD_FORMAT or data[1] & 1:
            continue
        id_bytes, stored_dim = _ITEM_SIZES.unpack_from(data, _ITEM_SIZES_AT)
        start = _ITEM_HEAD.size + id_bytes
        piece = data[start : start + size]
        if stored_dim == dim and len(piece) == size:
            known[position] = True
            pieces.append(piece)
    vectors = np.zeros((len(stored), dim), dtype=np.float32)
    vectors[known] = np.frombuffer(b"".join(pieces), dtype="<f4").reshape(-1, dim)
    return vectors, known
