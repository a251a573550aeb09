"""Files that one process at a time holds."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workers.errors import ConfigurationError, RecallError


@contextmanager
def locked(path: Path, busy: RecallError) -> Iterator[None]:
    """While it lasts, whoever else asks for this file gets their `busy`. Does not wait; the file stays.

    Raises `busy` when another one holds it, ConfigurationError when it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("ab")
    except OSError as error:
        raise ConfigurationError(f"{path.parent} cannot be written: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        yield
