"""SIGTERM and SIGINT as a fact that a loop asks for."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

ENDING = (signal.SIGTERM, signal.SIGINT)


class Stopping:
    """Whether a signal has come that ends this process.

    No threading.Event: a handler that sets one can find its lock held by the very thread that it interrupted.
    """

    def __init__(self) -> None:
        self._asked = False

    def __bool__(self) -> bool:
        return self._asked

    def note(self) -> None:
        """From now on a signal is noted, and nothing else happens."""
        self._handle(self._note)

    def interrupt(self) -> None:
        """From now on a signal is noted and raises KeyboardInterrupt, which can be lost in a library's callback."""
        self._handle(self._interrupt)

    def _handle(self, handler: Callable[[int, FrameType | None], None]) -> None:
        for number in ENDING:
            signal.signal(number, handler)

    def _note(self, _: int, __: FrameType | None) -> None:
        self._asked = True

    def _interrupt(self, _: int, __: FrameType | None) -> NoReturn:
        self._asked = True
        raise KeyboardInterrupt


@contextmanager
def held_back() -> Iterator[None]:
    """Signals that come inside are delivered at the end: for code that an exception would leave in pieces."""
    if threading.current_thread() is not threading.main_thread():  # no handler runs in any other
        yield
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)
