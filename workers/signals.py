"""SIGTERM and SIGINT as a fact that a loop asks for."""

import signal
from collections.abc import Callable
from types import FrameType
from typing import NoReturn


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
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, handler)

    def _note(self, _: int, __: FrameType | None) -> None:
        self._asked = True

    def _interrupt(self, _: int, __: FrameType | None) -> NoReturn:
        self._asked = True
        raise KeyboardInterrupt
