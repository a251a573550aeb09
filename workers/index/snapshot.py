"""What an index in the process leaves for the next one: its rows, and how far it has followed the topic. One file.

The file is a line that names the format, a checksum, and pieces of MessagePack, each behind its length: what it is of,
then some thousand rows at a time, for a piece is encoded in one go while everything else waits. The file is written
beside the one before and takes its place, so whoever reads finds a whole one; a checksum tells of one that was damaged.
"""

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec
import numpy as np
import orjson
import xxhash

from workers.index.schema import SCHEMA_FORMAT, Collection
from workers.ports import IndexRows

FORMAT = b"recall-index 1\n"
CHECKSUM_BYTES = 8
LENGTH_BYTES = 4

_written = itertools.count()


class Unfit(Exception):
    """Why a snapshot cannot be used, in one line."""


class Piece(msgspec.Struct):
    """Rows in columns: vectors as float32 little-endian, attributes as the JSON that is stored."""

    ids: list[str]
    vectors: bytes
    attributes: list[bytes]

    def rows(self, dim: int) -> IndexRows:
        """As an index takes them."""
        vectors = np.frombuffer(self.vectors, dtype="<f4").reshape(-1, dim).astype(np.float32)
        return IndexRows(self.ids, vectors, [orjson.loads(each) for each in self.attributes])


class Snapshot(msgspec.Struct):
    """All rows of `collection`.

    `positions`: partition of `item-updates` -> all before this offset is in it. `saved_ms`: when they were taken.
    """

    collection: str
    dim: int
    metric: str
    model_version: str
    schema_format: int
    positions: dict[int, int]
    saved_ms: int
    pieces: list[Piece] = []

    @staticmethod
    def empty(collection: Collection, positions: Mapping[int, int], saved_ms: int) -> "Snapshot":
        """One without rows."""
        names = (collection.name, collection.dim, collection.metric, collection.model_version, SCHEMA_FORMAT)
        return Snapshot(*names, dict(positions), saved_ms)

    @property
    def items(self) -> int:
        """How many rows."""
        return sum(len(piece.ids) for piece in self.pieces)

    def add(self, rows: IndexRows) -> None:
        """Take rows in, which are not there yet."""
        attributes = [orjson.dumps(each) for each in rows.attributes]
        self.pieces.append(Piece(list(rows.item_ids), rows.vectors.astype("<f4").tobytes(), attributes))

    def require(self, collection: Collection, ends: Mapping[int, int], since_ms: int) -> None:
        """Raise Unfit unless it is of this collection, of this topic, whose partitions end there, and of late.

        One that is older than the topic keeps deletions may hold what was deleted and is named nowhere any more.
        """
        found = (self.collection, self.dim, self.metric, self.model_version, self.schema_format)
        wanted = (collection.name, collection.dim, collection.metric, collection.model_version, SCHEMA_FORMAT)
        names = ("collection", "dimension", "metric", "model version", "schema format")
        for name, is_now, should_be in zip(names, found, wanted, strict=True):
            if is_now != should_be:
                raise Unfit(f"its {name} is {is_now}, not {should_be}")
        for piece in self.pieces:
            if len(piece.attributes) != len(piece.ids) or len(piece.vectors) != 4 * self.dim * len(piece.ids):
                raise Unfit("its columns are not equally long")
        for partition, position in self.positions.items():
            if position > ends.get(partition, 0):
                end = ends.get(partition, "nowhere")
                raise Unfit(f"it has read partition {partition} up to {position}, which ends at {end}")
        if self.saved_ms < since_ms:
            raise Unfit("it is older than the topic keeps deletions")


def write(path: Path, snapshot: Snapshot) -> None:
    """Write it, for sure, in place of the one before. Blocks. Raises OSError."""
    whole = msgspec.structs.replace(snapshot, pieces=[])
    parts = [_measured(msgspec.msgpack.encode(each)) for each in (whole, *snapshot.pieces)]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.{next(_written)}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(FORMAT + _checksum(parts))
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> Snapshot:
    """Blocks. Raises FileNotFoundError, and Unfit for one that is damaged."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unfit(f"it cannot be read: {error.strerror}") from error
    if not content.startswith(FORMAT):
        raise Unfit("it has another format")
    start = len(FORMAT) + CHECKSUM_BYTES
    body = memoryview(content)[start:]
    if _checksum([body]) != content[len(FORMAT) : start]:
        raise Unfit("it is damaged")
    try:
        whole, *pieces = _parts(body)
        snapshot = msgspec.msgpack.decode(whole, type=Snapshot)
        snapshot.pieces = [msgspec.msgpack.decode(piece, type=Piece) for piece in pieces]
    except ValueError as error:  # of msgspec too
        raise Unfit(f"it cannot be read: {error}") from error
    return snapshot


def _measured(part: bytes) -> bytes:
    return len(part).to_bytes(LENGTH_BYTES, "little") + part


def _parts(body: memoryview) -> Iterator[memoryview]:
    at = 0
    while at < len(body):
        end = at + LENGTH_BYTES + int.from_bytes(body[at : at + LENGTH_BYTES], "little")
        yield body[at + LENGTH_BYTES : end]
        at = end


def _checksum(parts: Iterable[bytes | memoryview]) -> bytes:
    checksum = xxhash.xxh3_64()
    for part in parts:
        checksum.update(part)
    return checksum.digest()
