"""Activities from JSON lines and from Parquet: what is read, what is refused, and that memory stays bounded."""

import math
import tracemalloc
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
from pyarrow import parquet

from schemas import codec
from schemas.activity import UserActivity
from schemas.codec import MAX_FUTURE_MS, MAX_VALUE_BYTES, DecodeError, ErrorCode
from workers.activity_files import open_activities
from workers.errors import RecallError

NOW_MS = 1_000_000
GOOD = {"event_id": "e", "user_id": "u", "action": "rate", "timestamp_ms": 1}


class At:
    """A clock that stands."""

    def now_ms(self) -> int:
        return NOW_MS


def read(path: Path) -> list[tuple[int, UserActivity | ErrorCode]]:
    with open_activities(path, At()) as file:
        lines = list(file.lines)
        assert file.part() in {None, 1.0}
    return [(n, each.code if isinstance(each, DecodeError) else each) for n, each, _ in lines]


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def table(path: Path, **columns: Any) -> Path:
    """A Parquet file with the columns of `GOOD`, all rows alike, unless others are given; None = without that one."""
    count = max(len(column) for column in columns.values() if column is not None)
    fields = {name: [value] * count for name, value in GOOD.items()} | columns
    parquet.write_table(pa.table({name: values for name, values in fields.items() if values is not None}), path)
    return path


def activity(**fields: Any) -> UserActivity:
    return UserActivity(**(GOOD | fields))


def test_lines_are_counted_whatever_they_hold_and_blank_ones_are_none(tmp_path: Path) -> None:
    line = orjson.dumps(GOOD)
    content = b"\n" + line + b"\r\n  \n\xff\nnull\n[1]\n" + line
    assert read(written(tmp_path / "a", content)) == [
        (2, activity()),
        (4, ErrorCode.NOT_JSON),
        (5, ErrorCode.UNEXPECTED_NULL),
        (6, ErrorCode.WRONG_TYPE),
        (7, activity()),
    ]
    assert read(written(tmp_path / "empty", b"")) == []


def test_the_largest_line_fits_and_a_larger_one_does_not(tmp_path: Path) -> None:
    line = orjson.dumps(GOOD)
    largest = line[:-1] + b" " * (MAX_VALUE_BYTES - len(line)) + b"}"
    for end in (b"\n", b"\r\n"):
        content = end.join([largest, largest[:-1] + b" }", line, b""])
        found = read(written(tmp_path / "a", content))
        assert found == [(1, activity()), (2, ErrorCode.VALUE_TOO_LARGE), (3, activity())]


def test_a_line_without_end_is_never_held(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as stream:
        for _ in range(40):
            stream.write(b"x" * 1_000_000)
        stream.write(b"\n" + orjson.dumps(GOOD))
    tracemalloc.start()
    assert read(tmp_path / "a") == [(1, ErrorCode.VALUE_TOO_LARGE), (2, activity())]
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 10_000_000


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_five_minutes_ahead_are_allowed_and_no_more(tmp_path: Path, name: str) -> None:
    times = [NOW_MS + MAX_FUTURE_MS, NOW_MS + MAX_FUTURE_MS + 1]
    path = tmp_path / name
    if name == "a.parquet":
        table(path, timestamp_ms=times)
    else:
        path.write_bytes(b"\n".join(orjson.dumps(GOOD | {"timestamp_ms": time}) for time in times))
    assert read(path) == [(1, activity(timestamp_ms=times[0])), (2, ErrorCode.FUTURE_TIMESTAMP)]


@pytest.mark.parametrize("name", ["nowhere.jsonl", "nowhere.parquet", "."])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecallError, match=r"nowhere.*No such file or directory|Is a directory"):
        read(tmp_path / name)


ATTRIBUTES = [{"age": 3, "city": "Bonn"}, {"age": None, "city": "Ulm"}, None]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(ATTRIBUTES),
        pa.array(['{"age": 3, "city": "Bonn"}', '{"city": "Ulm"}', None]),
        pa.array(['{"age": 3, "city": "Bonn"}', '{"city": "Ulm"}', None]).dictionary_encode(),
    ],
    ids=["struct", "text", "dictionary of text"],
)
def test_objects_of_parquet_are_structs_or_text(tmp_path: Path, column: Any) -> None:
    found = read(table(tmp_path / "a.parquet", attributes=column, context=column))
    expected = [{"age": 3, "city": "Bonn"}, {"city": "Ulm"}, None]
    assert [each for _, each in found] == [activity(attributes=each, context=each) for each in expected]


def test_objects_of_parquet_may_be_maps(tmp_path: Path) -> None:
    column = pa.array([[("age", 3)], [], None], type=pa.map_(pa.string(), pa.int64()))
    assert [each for _, each in read(table(tmp_path / "a.parquet", attributes=column))] == [
        activity(attributes={"age": 3}),
        activity(attributes={}),
        activity(),
    ]


def test_nan_and_null_are_absent(tmp_path: Path) -> None:
    attributes = pa.array([{"age": math.nan}, {"age": 3.5}])
    found = read(
        table(tmp_path / "a.parquet", value=[math.nan, 4.5], item_id=[None, "i"], attributes=attributes, more=[1, 2])
    )
    assert [each for _, each in found] == [
        activity(attributes={}),
        activity(value=4.5, item_id="i", attributes={"age": 3.5}),
    ]


@pytest.mark.parametrize(
    ("columns", "code"),
    [
        ({"user_id": pa.array([1])}, ErrorCode.WRONG_TYPE),
        ({"user_id": pa.array([b"u"])}, ErrorCode.WRONG_TYPE),
        ({"user_id": pa.array([""])}, ErrorCode.INVALID_ID),
        ({"user_id": pa.array([None], type=pa.string())}, ErrorCode.MISSING_FIELD),
        ({"timestamp_ms": pa.array([1], type=pa.timestamp("ms"))}, ErrorCode.WRONG_TYPE),
        ({"timestamp_ms": pa.array([1.5])}, ErrorCode.WRONG_TYPE),
        ({"value": pa.array([math.inf])}, ErrorCode.OUT_OF_RANGE),
        ({"value": pa.array([1e39])}, ErrorCode.OUT_OF_RANGE),
        ({"attributes": pa.array(['{"age": 3}, "user_id": "other"'])}, ErrorCode.NOT_JSON),
        ({"attributes": pa.array(["[1]"])}, ErrorCode.WRONG_TYPE),
        ({"attributes": pa.array(['{"a": 99999999999999999999}'])}, ErrorCode.OUT_OF_RANGE),
        ({"attributes": pa.array([{"a": b"bytes"}])}, ErrorCode.WRONG_TYPE),
    ],
    ids=lambda each: str(each)[:60] if isinstance(each, ErrorCode) else next(iter(each)),
)
def test_rows_that_are_no_activity(tmp_path: Path, columns: dict[str, Any], code: ErrorCode) -> None:
    assert read(table(tmp_path / "a.parquet", **columns)) == [(1, code)]


def test_a_row_that_is_not_utf8_spoils_no_other(tmp_path: Path) -> None:
    bad = pa.Array.from_buffers(pa.string(), 3, pa.array([b"u", b"\xff", b"v"]).buffers())
    found = read(table(tmp_path / "a.parquet", user_id=bad))
    assert found == [(1, activity()), (2, ErrorCode.NOT_UTF8), (3, activity(user_id="v"))]


def test_a_parquet_file_that_lacks_a_column_or_is_none(tmp_path: Path) -> None:
    with pytest.raises(RecallError, match=r"a\.parquet: no column user_id, action$"):
        read(table(tmp_path / "a.parquet", user_id=None, action=None, more=[1]))
    with pytest.raises(RecallError, match=r"b\.parquet: not a Parquet file that can be read: "):
        read(written(tmp_path / "b.parquet", b"rubbish"))
    path = tmp_path / "c.parquet"
    content = table(path, event_id=[f"event {n}" for n in range(20_000)]).read_bytes()
    path.write_bytes(content[:100] + b"\0" * 2000 + content[2100:])  # damaged where the data lie
    with pytest.raises(RecallError, match=r"c\.parquet: not a Parquet file that can be read: "):
        read(path)


def test_both_forms_of_a_file_are_the_same_activities(tmp_path: Path) -> None:
    rows = [
        GOOD | {"event_id": f"e{n}", "item_id": f"i{n}" if n % 3 else None, "value": n / 2 if n % 5 else None}
        for n in range(3000)
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(map(orjson.dumps, rows)))
    lines = read(tmp_path / "a.jsonl")
    assert read(tmp_path / "a.parquet") == lines
    assert [n for n, _ in lines] == list(range(1, 3001))
    assert [codec.decode_activity(orjson.dumps(row), record_timestamp_ms=NOW_MS) for row in rows] == [
        each for _, each in lines
    ]
