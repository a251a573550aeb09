"""Signals as facts: none is lost, none comes where it must not."""

import os
import signal
from collections.abc import Iterator

import pytest

from workers.signals import ENDING, Stopping, held_back


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_is_noted(number: int) -> None:
    stopping = Stopping()
    stopping.note()
    assert not stopping
    os.kill(os.getpid(), number)
    assert stopping


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_interrupts_and_is_noted(number: int) -> None:
    stopping = Stopping()
    stopping.interrupt()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
    assert stopping


def test_what_is_held_back_comes_at_the_end() -> None:
    stopping = Stopping()
    stopping.interrupt()
    noted: list[bool] = []

    def interrupted() -> None:
        with held_back():
            os.kill(os.getpid(), signal.SIGINT)
            noted.append(bool(stopping))

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert noted == [False]
    assert stopping


def test_nothing_comes_when_nothing_came() -> None:
    stopping = Stopping()
    stopping.note()
    with held_back():
        pass
    assert not stopping
    os.kill(os.getpid(), signal.SIGTERM)
    assert stopping
