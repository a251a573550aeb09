"""Activities from files: JSON lines or Parquet, line by line, each read as a worker would read it from the stream."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from schemas.activity import UserActivity
from schemas.codec import MAX_VALUE_BYTES, DecodeError, ErrorCode, decode_activity
from workers.errors import RecallError
from workers.parquet import ParquetRows
from workers.ports import Clock

STDIN = Path("-")
LINE_BYTES = MAX_VALUE_BYTES + len(b"\r\n")


class Line(NamedTuple):
    """A line of JSON or a row of Parquet, counted from 1: its activity, or why it is none."""

    number: int
    activity: UserActivity | DecodeError
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ActivityFile:
    """A file that is open. `lines` come once, in its order; `part` is how much of it they were so far, where known."""

    name: str
    lines: Iterator[Line]
    part: Callable[[], float | None]


@contextmanager
def open_activities(path: Path, clock: Clock) -> Iterator[ActivityFile]:
    """Open a file: Parquet by its ending, `-` standard input, else JSON lines. A line is held at a time.

    An activity more than 5 minutes ahead of `clock` is refused, as in the stream. Raises RecallError for a file that
    cannot be read, here and while its lines are read; ConfigurationError without the package that reads Parquet.
    """
    with ExitStack() as opened:
        if path.suffix.lower() == ".parquet":
            rows = ParquetRows(path)
            opened.callback(rows.close)
            yield ActivityFile(str(path), _parquet(rows, clock), rows.part)
        elif path == STDIN:
            yield ActivityFile("standard input", _json_lines(sys.stdin.buffer, "standard input", clock), lambda: None)
        else:
            try:
                stream = opened.enter_context(path.open("rb"))
                size_bytes = path.stat().st_size
            except OSError as error:
                raise RecallError(f"{path}: {error.strerror}") from error
            part = (lambda: stream.tell() / size_bytes) if size_bytes else (lambda: None)  # a pipe has no size
            yield ActivityFile(str(path), _json_lines(stream, str(path), clock), part)


def _parquet(rows: ParquetRows, clock: Clock) -> Iterator[Line]:
    for number, row in enumerate(rows, 1):
        if isinstance(row, DecodeError):
            yield Line(number, row, 0)
        else:
            yield Line(number, _decode(row, clock), len(row))


def _json_lines(stream: BinaryIO, name: str, clock: Clock) -> Iterator[Line]:
    """Lines that are not blank."""
    number = 0
    try:
        while (read := _read_line(stream))[1]:
            number, (line, size_bytes) = number + 1, read
            if size_bytes > LINE_BYTES:
                text = f"{size_bytes} bytes, at most {MAX_VALUE_BYTES} are allowed"
                yield Line(number, DecodeError(ErrorCode.VALUE_TOO_LARGE, text), 0)
            elif value := line.strip():
                yield Line(number, _decode(value, clock), size_bytes)
    except OSError as error:
        raise RecallError(f"{name}: {error.strerror}") from error


def _read_line(stream: BinaryIO) -> tuple[bytes, int]:
    """The next line and its length in bytes, 0 at the end; of one that is too long only the beginning is kept."""
    line = piece = stream.readline(LINE_BYTES)
    size_bytes = len(line)
    while piece and not piece.endswith(b"\n"):
        piece = stream.readline(LINE_BYTES)
        size_bytes += len(piece)
    return line, size_bytes


def _decode(value: bytes, clock: Clock) -> UserActivity | DecodeError:
    try:
        return decode_activity(value, record_timestamp_ms=clock.now_ms())
    except DecodeError as error:
        return error
