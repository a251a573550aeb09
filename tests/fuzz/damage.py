"""Good events, and random damage to bytes: for the fuzz runs of the codecs and of the whole stream."""

import random
from typing import Any

NOW_MS = 2_000_000_000_000

SEEDS: dict[str, list[dict[str, Any]]] = {
    "activity": [
        {"event_id": "e-1", "user_id": "u-1", "action": "rate", "timestamp_ms": NOW_MS, "item_id": "i", "value": 4.5},
        {
            "event_id": "é🎬",
            "user_id": "u",
            "action": "view",
            "timestamp_ms": 1,
            "attributes": {"a": [1, {"b": None}], "price": 1e30},
            "context": {"device": "tv", "deep": {"x": {"y": True}}},
        },
    ],
    "item": [
        {"item_id": "i", "op": "upsert", "timestamp_ms": 5, "attributes": {"genres": ["Drama"], "year": 1999}},
        {"item_id": "i", "op": "delete", "timestamp_ms": 5, "version": 2**63 - 1},
        {"item_id": "i", "op": "upsert", "timestamp_ms": 5, "embedding": [0.5, -1e9, 3], "embedding_model": "m"},
    ],
    "request": [
        {"request_id": "r", "user_id": "u", "k": 10, "timeout_ms": 50, "scene": "home", "after_event_id": "e"},
        {
            "request_id": "r",
            "user_id": "u",
            "filter": [{"field": "year", "op": "ge", "value": 1990}, {"field": "g", "op": "in", "value": ["a", "b"]}],
            "exclude_items": ["a", "b"],
            "anchor_items": ["c"],
            "exclude_seen": False,
            "context": {"device": "web"},
        },
    ],
}
HOSTILE = (
    b"null", b"true", b"-1", b"1e400", b"-1e400", b"NaN", b"Infinity", b"9223372036854775808", b"1e999999999", b"0.0",
    b'""', b'"\\u0000"', b'"\\ud800"', b"\xff\xfe", b"\xed\xa0\x80", b"[]", b"{}", b"[" * 2000, b'{"a":' * 9, b"\x00",
    b'"' + b"x" * 300 + b'"', b"18446744073709551616", b"-0", b"01", b"'", b"//", b"\xef\xbb\xbf", b'"op":"upsert",',
)  # fmt: skip


def mutated(value: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """Some bytes of an event cut, repeated, flipped, replaced by hostile ones or by a part of another event."""
    data = bytearray(value)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        start = chance.randrange(len(data) + 1)
        end = min(len(data), start + chance.choice((0, 1, 1, 2, 5, 20)))
        kind = chance.randrange(6)
        if kind == 0:
            del data[start:end]
        elif kind == 1:
            data[start:end] = data[start:end] * 3
        elif kind == 2 and start < len(data):
            data[start] ^= 1 << chance.randrange(8)
        elif kind == 3:
            data[start:end] = chance.choice(HOSTILE)
        elif kind == 4:
            other = chance.choice(others)
            cut = chance.randrange(len(other))
            data[start:end] = other[cut : cut + chance.randrange(40)]
        else:
            data[start:end] = str(chance.randrange(-10, 10 ** chance.randrange(1, 25))).encode()
    return bytes(data)
