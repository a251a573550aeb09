"""Events from files of JSON lines, each read as a worker would read it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from schemas import codec
from schemas.activity import UserActivity
from schemas.codec import DecodeError
from schemas.items import ItemUpdate

T = TypeVar("T")


class JsonLinesError(ValueError):
    """A file or a line that cannot be read; one line that names both."""


def read_activities(path: Path, now_ms: Callable[[], int]) -> Iterator[UserActivity]:
    """Every activity of a file, as if it were produced now. Raises JsonLinesError at the first bad line."""
    return _read(path, lambda line: codec.decode_activity(line, record_timestamp_ms=now_ms()))


def read_items(path: Path) -> Iterator[ItemUpdate]:
    """Every item update of a file. Raises JsonLinesError at the first bad line."""
    return _read(path, codec.decode_item)


def _read(path: Path, decode: Callable[[bytes], T]) -> Iterator[T]:
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    try:
                        yield decode(line)
                    except DecodeError as error:
                        raise JsonLinesError(f"{path}:{number}: {error.code}: {error}") from error
    except OSError as error:
        raise JsonLinesError(f"{path}: {error.strerror}") from error
