"""Milvus' messages to and from arrays: gRPC stubs and bytes, no object per row and none per hit.

Milvus Lite takes the same messages. Where it differs, functions have a parameter `lite`.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import orjson

from workers.index import milvus_expression
from workers.index.milvus_protocol import common_pb2, milvus_pb2, schema_pb2
from workers.index.schema import ATTRIBUTES, EMBEDDING, ITEM_HASH, ITEM_ID, encode_attributes, signed_hash
from workers.ports import Float32, Hits, IndexRows, UInt64

MAX_ROWS_PER_CALL = 1000
MAX_BYTES_PER_CALL = 4_000_000
BOUNDED = common_pb2.ConsistencyLevel.Value("Bounded")
BOUNDED_TIMESTAMP = 2  # what pymilvus sends with Bounded: the server puts a time a few seconds ago in its place
EXPRESSION = common_pb2.DslType.Value("BoolExprV1")
FLOAT_ARRAY_TAG = b"\x0a"  # field 1 of FloatArray, packed
LITE_VERSION = "milvus_lite"  # how its version begins


def pairs(**values: object) -> list[Any]:
    """KeyValuePairs; anything but a string as JSON."""
    return [
        common_pb2.KeyValuePair(key=key, value=value if isinstance(value, str) else json.dumps(value))
        for key, value in values.items()
    ]


def search_request(
    collection: str,
    vectors: Float32,
    k: int,
    metric: str,
    params: dict[str, int],
    where: str = "",
    *,
    lite: bool = False,
) -> Any:
    """One search of all float32[B, D] among the rows for which an expression holds.

    Ids and scores come back, no other field (Lite sends all when none is named).
    """
    rows = np.ascontiguousarray(vectors, dtype="<f4")
    values = common_pb2.PlaceholderValue(
        tag="$0", type=common_pb2.PlaceholderType.Value("FloatVector"), values=[row.tobytes() for row in rows]
    )
    return milvus_pb2.SearchRequest(
        collection_name=collection,
        dsl=where,
        dsl_type=EXPRESSION,
        placeholder_group=common_pb2.PlaceholderGroup(placeholders=[values]).SerializeToString(),
        search_params=pairs(anns_field=EMBEDDING, topk=k, metric_type=metric, params=params, round_decimal=-1),
        output_fields=[ITEM_ID] if lite else [],
        nq=len(rows),
        consistency_level=BOUNDED,
        guarantee_timestamp=BOUNDED_TIMESTAMP,
    )


def read_hits(results: Any, queries: int, sign: float) -> Hits:
    """The answer to `queries` vectors. `sign` -1 turns distances into scores."""
    ids = list(results.ids.str_id.data)
    scores = np.array(results.scores, dtype=np.float32) * np.float32(sign)
    ends = np.cumsum(np.array(results.topks or [0] * queries, dtype=np.intp)).tolist()
    starts = [0, *ends[:-1]]
    return Hits(
        item_ids=[ids[start:end] for start, end in zip(starts, ends, strict=True)],
        scores=[scores[start:end] for start, end in zip(starts, ends, strict=True)],
    )


def upsert_requests(collection: str, rows: IndexRows, positions: Sequence[int]) -> Iterator[Any]:
    """The calls that write these rows: each of at most 1,000 rows and about 4 MB."""
    row_bytes = rows.vectors.shape[1] * 4
    piece: list[int] = []
    attributes: list[bytes] = []
    size = 0
    for position in positions:
        encoded = encode_attributes(rows.attributes[position])
        if piece and (len(piece) == MAX_ROWS_PER_CALL or size + row_bytes + len(encoded) > MAX_BYTES_PER_CALL):
            yield _upsert_request(collection, rows, piece, attributes)
            piece, attributes, size = [], [], 0
        piece.append(position)
        attributes.append(encoded)
        size += row_bytes + len(encoded)
    if piece:
        yield _upsert_request(collection, rows, piece, attributes)


def _upsert_request(collection: str, rows: IndexRows, positions: Sequence[int], attributes: Sequence[bytes]) -> Any:
    scalar, data = schema_pb2.ScalarField, schema_pb2.FieldData
    ids = [rows.item_ids[position] for position in positions]
    vectors = rows.vectors[list(positions)]
    return milvus_pb2.UpsertRequest(
        collection_name=collection,
        num_rows=len(ids),
        fields_data=[
            data(
                type=schema_pb2.DataType.Value("VarChar"),
                field_name=ITEM_ID,
                scalars=scalar(string_data=schema_pb2.StringArray(data=ids)),
            ),
            data(
                type=schema_pb2.DataType.Value("Int64"),
                field_name=ITEM_HASH,
                scalars=scalar(long_data=schema_pb2.LongArray(data=[signed_hash(item_id) for item_id in ids])),
            ),
            data(
                type=schema_pb2.DataType.Value("FloatVector"),
                field_name=EMBEDDING,
                vectors=schema_pb2.VectorField(dim=vectors.shape[1], float_vector=_floats(vectors)),
            ),
            data(
                type=schema_pb2.DataType.Value("JSON"),
                field_name=ATTRIBUTES,
                scalars=scalar(json_data=schema_pb2.JSONArray(data=attributes)),
            ),
        ],
    )


def _floats(vectors: Float32) -> Any:
    """A FloatArray parsed from its own encoding: twenty times faster than handing over Python floats."""
    values = np.ascontiguousarray(vectors, dtype="<f4").tobytes()
    length, rest = bytearray(), len(values)
    while rest > 127:
        length.append(rest & 127 | 128)
        rest >>= 7
    length.append(rest)
    return schema_pb2.FloatArray.FromString(FLOAT_ARRAY_TAG + bytes(length) + values)


def ids_expression(item_ids: Sequence[str], *, lite: bool = False) -> str:
    """An expression that holds for these ids."""
    literals = ", ".join(milvus_expression.literal(item_id, lite=lite) for item_id in item_ids)
    return f"{ITEM_ID} in [{literals}]"


def slices(number: int) -> Iterator[str]:
    """Expressions that together hold once for every item: even parts of the range of signed 64-bit hashes."""
    return (slice_of(n, number) for n in range(number))


def slice_of(part: int, parts: int) -> str:
    """The expression of one of these parts."""
    low, high = (-(-(n << 64) // parts) - (1 << 63) for n in (part, part + 1))
    clauses = [f"{ITEM_HASH} >= {low}"] if part > 0 else []  # none at the ends: -2^63 cannot be parsed
    clauses += [f"{ITEM_HASH} < {high}"] if part < parts - 1 else []
    return " and ".join(clauses) or f'{ITEM_ID} != ""'


def hashes_expression(hashes: UInt64) -> str:
    """An expression that holds for the items with these hashes."""
    return f"{ITEM_HASH} in {hashes.astype(np.int64).tolist()}"


def delete_requests(collection: str, item_ids: Sequence[str], *, lite: bool = False) -> Iterator[Any]:
    """The calls that delete these items."""
    for start in range(0, len(item_ids), MAX_ROWS_PER_CALL):
        expression = ids_expression(item_ids[start : start + MAX_ROWS_PER_CALL], lite=lite)
        yield milvus_pb2.DeleteRequest(collection_name=collection, expr=expression)


def query_request(collection: str, expression: str, *fields: str) -> Any:
    """Fields of the rows for which the expression holds, as a search would see them now."""
    return milvus_pb2.QueryRequest(
        collection_name=collection,
        expr=expression,
        output_fields=list(fields),
        consistency_level=BOUNDED,
        guarantee_timestamp=BOUNDED_TIMESTAMP,
    )


def read_rows(response: Any, dim: int) -> IndexRows:
    """The rows of a query for id, vector and attributes."""
    fields = {field.field_name: field for field in response.fields_data}
    ids = list(fields[ITEM_ID].scalars.string_data.data) if ITEM_ID in fields else []
    vectors = np.zeros((len(ids), dim), dtype=np.float32)
    if ids:
        vectors[:] = np.array(fields[EMBEDDING].vectors.float_vector.data, dtype=np.float32).reshape(len(ids), dim)
    texts = fields[ATTRIBUTES].scalars.json_data.data if ids else []
    return IndexRows(ids, vectors, [orjson.loads(text) for text in texts])


def load_request(collection: str) -> Any:
    """Make a collection searchable; changes nothing when it is."""
    return milvus_pb2.LoadCollectionRequest(collection_name=collection)


def health_request() -> Any:
    """Whether the server is well."""
    return milvus_pb2.CheckHealthRequest()
