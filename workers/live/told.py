"""How long work on a live system tells a person what goes on."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Told:
    """`progress(what, part)` while something goes on, `done(line)` when it is over; whether a signal has come."""

    progress: Callable[[str, float | None], None]
    done: Callable[[str], None]
    interrupted: Callable[[], bool]
