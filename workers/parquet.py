"""Parquet files as rows of JSON, so that they are read by the same codec."""

import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import orjson

from schemas.activity import UserActivity
from schemas.codec import DecodeError, ErrorCode
from workers.errors import ExtraMissing, RecallError

ROWS_AT_ONCE = 1024
COLUMNS = UserActivity.__struct_fields__
REQUIRED = tuple(field.name for field in msgspec.structs.fields(UserActivity) if field.required)
OBJECTS = ("attributes", "context")
INFINITE = (math.inf, -math.inf)
NOT_IN_PYTHON = (ValueError, OverflowError)  # text that is not UTF-8, dates after the year 9999


class ParquetRows:
    """The rows of a file with columns named like an activity's fields; others are not read.

    `attributes` and `context` are structs, maps, or JSON text. A null is absent, and so is NaN, which stands for none.
    """

    def __init__(self, path: Path) -> None:
        """Open it. Raises ExtraMissing without pyarrow, RecallError for a file that cannot be such a one."""
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError as error:
            raise ExtraMissing(f"{path}: Parquet", "parquet") from error
        self._path = path
        self._broken = (pyarrow.ArrowException, OSError)
        try:
            self._file: Any = parquet.ParquetFile(path)
        except self._broken as error:
            raise self._unreadable(error) from error
        names = self._file.schema_arrow.names
        missing = [name for name in REQUIRED if name not in names]
        if missing:
            raise RecallError(f"{path}: no column {', '.join(missing)}")
        self._columns = [name for name in COLUMNS if name in names]
        self._count: int = self._file.metadata.num_rows
        self._read = 0

    def __iter__(self) -> Iterator[bytes | DecodeError]:
        """Each row as a JSON object, or why it is none. Raises RecallError where the file is damaged."""
        batches = self._file.iter_batches(batch_size=ROWS_AT_ONCE, columns=self._columns)
        while True:
            try:
                batch = next(batches, None)
            except self._broken as error:
                raise self._unreadable(error) from error
            if batch is None:
                return
            self._read += batch.num_rows
            yield from map(_as_json, _rows(batch))

    def part(self) -> float:
        """How much of the file was read, 0 to 1."""
        return self._read / max(self._count, 1)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _unreadable(self, error: Exception) -> RecallError:
        if isinstance(error, OSError) and error.strerror:
            return RecallError(f"{self._path}: {error.strerror}")
        return RecallError(f"{self._path}: not a Parquet file that can be read: {' '.join(str(error).split())}")


def _rows(batch: Any) -> Iterator[dict[str, Any] | DecodeError]:
    with suppress(*NOT_IN_PYTHON):  # some value is none that Python can hold: find out whose
        yield from batch.to_pylist(maps_as_pydicts="lossy")
        return
    for position in range(batch.num_rows):
        try:
            yield batch.slice(position, 1).to_pylist(maps_as_pydicts="lossy")[0]
        except UnicodeDecodeError as error:
            yield DecodeError(ErrorCode.NOT_UTF8, f"not UTF-8 at byte {error.start}")
        except NOT_IN_PYTHON as error:
            yield DecodeError(ErrorCode.WRONG_TYPE, " ".join(str(error).split()))


def _as_json(row: dict[str, Any] | DecodeError) -> bytes | DecodeError:
    if isinstance(row, DecodeError):
        return row
    fields = {name: value for name, value in row.items() if _is_present(value)}
    if fields.get("value") in INFINITE:  # JSON has no word for it
        return DecodeError(ErrorCode.OUT_OF_RANGE, "value is infinite", "value")
    for name in OBJECTS:
        value = fields.get(name)
        if isinstance(value, str):
            try:
                msgspec.json.decode(value)
            except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
                return DecodeError(ErrorCode.NOT_JSON, f"{name} is no JSON text: {error}", name)
            fields[name] = orjson.Fragment(value)
        elif isinstance(value, dict):
            fields[name] = {key: each for key, each in value.items() if _is_present(each)}
    try:
        return orjson.dumps(fields)
    except TypeError as error:  # bytes, decimals, integers of more than 64 bits
        return DecodeError(ErrorCode.WRONG_TYPE, f"a value that JSON does not have: {error}")


def _is_present(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))
