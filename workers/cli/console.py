"""What commands print with: results on standard output, progress and all else on standard error.

Where no terminal is, nothing is coloured, folded or drawn over, and nothing is cut: a pipe takes lines of any length.
"""

import os
import select
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

WIDE = 1_000_000  # columns: no line is that long
COUNT_EVERY = 1000

T = TypeVar("T")


def results() -> Console:
    """For standard output: what was asked for. Text is printed as it is: neither markup nor emoji codes count."""
    return _console(stderr=False)


def notes() -> Console:
    """For standard error: everything that is no result."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not console.file.isatty():
        console.width = WIDE
    return console


def columns(*names: str) -> Table:
    """A table without a frame. Where a terminal is too narrow, cells go on in the next line; none is cut."""
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name, overflow="fold")
    return table


def harmless(text: str) -> str:
    """The same text, unable to steer a terminal or to break a line: replaced are control and format characters."""
    return "".join(each if _is_shown(each) else "\N{REPLACEMENT CHARACTER}" for each in text)


def _is_shown(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"  # spaces of all scripts


def cells(*texts: str) -> list[Text]:
    """A row of a table from texts that may be hostile."""
    return [Text(harmless(text)) for text in texts]


def reader_gone() -> bool:
    """Whether the other end of standard output is closed; known before the next line is printed."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return bool(poll.poll(0))


def stop_printing() -> None:
    """Who read standard output has gone: what is still to come goes nowhere, and nobody complains at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Working:
    """`with Working("reading") as working:` shows on a terminal what goes on; without one it says only what it is told.

    One line on standard error that is gone in the end.
    """

    def __init__(self, what: str) -> None:
        self._notes = notes()
        bar = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(30), TaskProgressColumn())
        self._bar = Progress(
            *bar,
            TimeElapsedColumn(),
            console=self._notes,
            transient=True,
            redirect_stdout=False,  # else results would go where progress goes
            disable=not (self._notes.file.isatty() and self._notes.is_interactive),
        )
        self._task = self._bar.add_task(what, total=None)

    def __enter__(self) -> "Working":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def update(self, what: str, part: float | None = None) -> None:
        """What goes on now, and how much of it is done (0 to 1) where that is known."""
        self._bar.update(self._task, description=what, total=None if part is None else 1.0, completed=part or 0.0)

    def say(self, line: str) -> None:
        """A line that stays."""
        self._notes.print(line)

    def each(self, what: Callable[[int], str], things: Sequence[T]) -> Iterator[T]:
        """The things, one after the other; meanwhile `what(how many were taken)` is what goes on."""
        for position, thing in enumerate(things):
            if position % COUNT_EVERY == 0:
                self.update(what(position), position / len(things))
            yield thing

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Nothing is drawn inside: for results that are printed on the way."""
        self._bar.stop()
        try:
            yield
        finally:
            self._bar.start()

    def stop(self) -> None:
        """Show nothing any more. May be called twice."""
        self._bar.stop()
