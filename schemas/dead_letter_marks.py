"""Marks: what is written about dead letters into their own topic, beside them.

A mark has the header `dlq.mark` and lacks those of a letter: readers of letters pass over it. `replayed` stands in the
partition of the letters that it is about, behind them, and so outlives them; `resume` lets paused workers go on.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from schemas.dead_letter import TIMESTAMP_MS, Headers

MARK = "dlq.mark"
REPLAYED = b"replayed"
RESUME = b"resume"
RESUME_PARTITION = 0

Offset = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class Replayed(Struct, frozen=True):
    """A run of letters: `count` of them, from offset `letter` on in the mark's partition, are dealt with.

    Their events stand in `topic` and `partition` from `offset` on now, replayed `replays` times in all. Without a topic
    they are copies of letters that were replayed.
    """

    letter: Offset
    count: Annotated[int, Meta(ge=1)] = 1
    topic: str = ""
    partition: int = 0
    offset: Offset = 0
    replays: int = 0

    def followed_by(self, other: "Replayed") -> bool:
        """Whether another run goes on where this one ends, in both topics."""
        step = self.count
        moved = msgspec.structs.replace(self, letter=self.letter + step, offset=self.offset + step, count=other.count)
        return other == (moved if self.topic else msgspec.structs.replace(moved, offset=self.offset))


_decode = msgspec.json.Decoder(list[Replayed]).decode


def headers(kind: bytes, now_ms: int) -> Headers:
    """Those of a mark of this kind."""
    return (MARK, kind), (TIMESTAMP_MS, str(now_ms).encode())


def is_mark(found: Sequence[tuple[str, bytes]], kind: bytes) -> bool:
    """Whether a record with these headers is a mark of this kind."""
    return any(name == MARK and value == kind for name, value in found)


def encode(replayed: Iterable[Replayed]) -> bytes:
    """The value of a mark: single letters in the order of their offsets, put together to runs."""
    runs: list[Replayed] = []
    for each in replayed:
        if runs and runs[-1].followed_by(each):
            runs[-1] = msgspec.structs.replace(runs[-1], count=runs[-1].count + each.count)
        else:
            runs.append(each)
    return msgspec.json.encode(runs)


def decode(value: bytes | None) -> list[Replayed]:
    """The runs of a mark; none where somebody else wrote it."""
    try:
        return _decode(value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
