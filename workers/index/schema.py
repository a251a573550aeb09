"""What a collection of item vectors holds, whichever index holds it. The schema of a collection is final.

    item_id     VARCHAR(256 bytes), primary key
    item_hash   INT64: schemas.records.hash64 of the id, as two's complement
    embedding   FLOAT_VECTOR(dim)
    attributes  JSON: the filterable attributes, and under `_f` which of them are present with which type

`_f` is a list of `name:t` with t = n (number), s (string), b (boolean), l (list of strings). It stands there because
Milvus says that `!=` and `not in` hold for a value that is missing or of another type, and ours must not: a clause on
`year` asks for `year:n` in `_f` as well.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import orjson

from models.spec import TYPES, FilterType
from schemas.activity import MAX_ID_BYTES
from schemas.records import hash64
from workers.errors import RowRefused
from workers.filters import type_of
from workers.ports import IndexRows

Metric = Literal["IP", "COSINE", "L2"]

SCHEMA_FORMAT = 1
ITEM_ID = "item_id"
ITEM_HASH = "item_hash"
EMBEDDING = "embedding"
ATTRIBUTES = "attributes"
PRESENT = TYPES
LETTERS: Final[dict[FilterType, str]] = {"number": "n", "string": "s", "bool": "b", "strings": "l"}
MAX_VALUE_BYTES = 4096
MAX_ATTRIBUTES_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Collection:
    """One bundle's collection: its name, what its vectors look like, and the bundle's version, stamped on it."""

    name: str
    dim: int
    metric: Metric
    model_version: str


def encode_attributes(attributes: Mapping[str, Any]) -> bytes:
    """The JSON of the field `attributes`: what can be filtered on, with the list of what is present."""
    kept = kept_attributes(attributes)
    tags = [_tag(name, kind) for name, value in kept.items() if (kind := type_of(value)) is not None]
    return orjson.dumps({**kept, PRESENT: tags})


def kept_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What can be filtered on.

    Left out, so that every clause on it is false: a value of another kind (null, object, mixed list), one whose JSON is
    longer than 4,096 bytes (cut, it would equal what it is not), and what does not fit into 65,536 bytes altogether,
    counted in the order given.
    """
    kept: dict[str, Any] = {}
    room = MAX_ATTRIBUTES_BYTES - len(PRESENT) - 8
    for name, value in attributes.items():
        kind = type_of(value)
        if kind is None or name == PRESENT:
            continue
        value_bytes = len(orjson.dumps(value))
        pair_bytes = value_bytes + len(orjson.dumps(name)) + len(orjson.dumps(_tag(name, kind))) + 3  # ":" and two ","
        if value_bytes > MAX_VALUE_BYTES or pair_bytes > room:
            continue
        room -= pair_bytes
        kept[name] = value
    return kept


def _tag(name: str, kind: FilterType) -> str:
    return f"{name}:{LETTERS[kind]}"


def signed_hash(item_id: str) -> int:
    """The item hash as INT64 holds it."""
    unsigned = hash64(item_id)
    return unsigned - (1 << 64) if unsigned >> 63 else unsigned


def part_of(item_id: str, parts: int) -> int:
    """Which of `parts` even parts of the range of signed hashes holds an item."""
    return (signed_hash(item_id) + (1 << 63)) * parts >> 64


def check_rows(dependency: str, rows: IndexRows, dim: int) -> None:
    """Raise RowRefused, with the positions, for rows that no index takes: over-long ids, values that are not finite."""
    if rows.vectors.shape != (len(rows.item_ids), dim):
        raise RowRefused(dependency, f"vectors have shape {rows.vectors.shape}, not ({len(rows.item_ids)}, {dim})")
    too_long = [len(item_id) * 4 > MAX_ID_BYTES and len(item_id.encode()) > MAX_ID_BYTES for item_id in rows.item_ids]
    guilty = np.flatnonzero(np.array(too_long, dtype=np.bool_) | ~np.isfinite(rows.vectors).all(axis=1))
    if len(guilty):
        line = f"{len(guilty)} rows have an id of more than {MAX_ID_BYTES} bytes or a value that is not finite"
        raise RowRefused(dependency, line, guilty.tolist())


def check_queries(dependency: str, vectors: Any, dim: int) -> None:
    """Raise RowRefused for query vectors of another dimension, or with values that are not finite."""
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise RowRefused(dependency, f"query vectors have shape {vectors.shape}, not (B, {dim})")
    guilty = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(guilty):
        raise RowRefused(dependency, f"{len(guilty)} query vectors have a value that is not finite", guilty.tolist())


def last_of_each(item_ids: Sequence[str]) -> list[int]:
    """Positions of the rows that count: of a repeated id the last one."""
    return sorted({item_id: position for position, item_id in enumerate(item_ids)}.values())
