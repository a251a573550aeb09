"""What an index in the process leaves for the next one: its rows, and how far it has followed the topic. One file.

The file is a line that names the format, a checksum, and MessagePack. It is written beside the one before and takes its
place, so whoever reads finds a whole one; a file that was damaged since is told by its checksum.
"""

import itertools
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import orjson
import xxhash

from workers.index.schema import SCHEMA_FORMAT, Collection
from workers.ports import IndexRows

FORMAT = b"recall-index 1\n"
CHECKSUM_BYTES = 8

_written = itertools.count()


class Unfit(Exception):
    """Why a snapshot cannot be used, in one line."""


class Snapshot(msgspec.Struct):
    """Rows in columns, all of `collection`: vectors as float32 little-endian, attributes as the JSON that is stored.

    `positions`: partition of `item-updates` -> all before this offset is in it. `saved_ms`: when they were taken.
    """

    collection: str
    dim: int
    metric: str
    model_version: str
    schema_format: int
    positions: dict[int, int]
    saved_ms: int
    ids: list[str]
    vectors: list[bytes]
    attributes: list[bytes]

    @staticmethod
    def empty(collection: Collection, positions: Mapping[int, int], saved_ms: int) -> "Snapshot":
        """One without rows."""
        names = (collection.name, collection.dim, collection.metric, collection.model_version, SCHEMA_FORMAT)
        return Snapshot(*names, dict(positions), saved_ms, [], [], [])

    def add(self, rows: IndexRows) -> None:
        """Take rows in, which are not there yet."""
        self.ids += rows.item_ids
        self.vectors += [vector.tobytes() for vector in rows.vectors.astype("<f4")]
        self.attributes += [orjson.dumps(each) for each in rows.attributes]

    def rows(self, start: int, end: int) -> IndexRows:
        """Some of them."""
        vectors = np.frombuffer(b"".join(self.vectors[start:end]), dtype="<f4").reshape(-1, self.dim)
        return IndexRows(
            self.ids[start:end], vectors.astype(np.float32), [orjson.loads(each) for each in self.attributes[start:end]]
        )

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
        if len({len(self.ids), len(self.vectors), len(self.attributes)}) != 1:
            raise Unfit("its columns are not equally long")
        if any(len(vector) != 4 * self.dim for vector in self.vectors):
            raise Unfit(f"its vectors have not {self.dim} values")
        for partition, position in self.positions.items():
            if position > ends.get(partition, 0):
                end = ends.get(partition, "nowhere")
                raise Unfit(f"it has read partition {partition} up to {position}, which ends at {end}")
        if self.saved_ms < since_ms:
            raise Unfit("it is older than the topic keeps deletions")


def write(path: Path, snapshot: Snapshot) -> None:
    """Write it, for sure, in place of the one before. Blocks. Raises OSError."""
    body = msgspec.msgpack.encode(snapshot)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.{next(_written)}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(FORMAT + xxhash.xxh3_64_digest(body))
            file.write(body)
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
    if xxhash.xxh3_64_digest(body) != content[len(FORMAT) : start]:
        raise Unfit("it is damaged")
    try:
        return msgspec.msgpack.decode(body, type=Snapshot)
    except msgspec.DecodeError as error:
        raise Unfit(f"it cannot be read: {error}") from error
