"""Where a training keeps how far it is. Of a data folder there is one place, and one training at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workers.errors import RecallError
from workers.locks import locked
from workers.settings import Settings

FOLDER = "training"  # in `data_dir`


@contextmanager
def held_checkpoints(settings: Settings) -> Iterator[Path]:
    """The folder, which may not be there; while it lasts, no other process has it. Raises RecallError.

    The lock stands beside it: a training deletes the folder at its end.
    """
    folder = settings.data_dir / FOLDER
    busy = RecallError(f"another process is training: {folder} holds the checkpoints of one at a time")
    with locked(settings.data_dir / f"{FOLDER}.lock", busy):
        yield folder
