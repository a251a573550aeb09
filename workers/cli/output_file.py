"""A file beside what a command prints: nothing that took minutes is lost because it cannot be written."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workers.errors import ConfigurationError, RecallError


def expect_writable(option: str, file: Path) -> None:
    """Before the work. Raises ConfigurationError where the file could not be made."""
    if not file.resolve().parent.is_dir():
        raise ConfigurationError(f"{option}: {file.parent} is not a folder")
    if file.is_dir():
        raise ConfigurationError(f"{option}: {file} is a folder")


@contextmanager
def writing(file: Path) -> Iterator[None]:
    """After the result was printed. Raises RecallError when the file cannot be written."""
    try:
        yield
    except OSError as error:
        raise RecallError(f"{file} cannot be written: {error.strerror or error}") from error
