"""Kinds in one process: one that cannot work ends the others, which drain first."""

import asyncio

import pytest

from workers.app import _together
from workers.errors import ConfigurationError

TURNS = 20  # of the loop, for which a drain takes


async def test_the_others_drain_and_the_first_reason_is_told() -> None:
    stopping = asyncio.Event()
    drained: list[str] = []

    async def drains(name: str, *, fails: bool) -> None:
        await stopping.wait()
        for _ in range(TURNS):
            await asyncio.sleep(0)
        drained.append(name)
        if fails:
            raise RuntimeError("what came of it")

    async def cannot_work() -> None:
        await asyncio.sleep(0)
        raise ConfigurationError("the reason")

    with pytest.raises(ConfigurationError, match="the reason"):
        await _together([drains("a", fails=True), cannot_work(), drains("b", fails=False)], stopping)
    assert drained == ["a", "b"]


async def test_a_drain_that_fails_is_told() -> None:
    stopping = asyncio.Event()

    async def done() -> None:
        stopping.set()

    async def fails() -> None:
        await stopping.wait()
        raise RuntimeError("a drain")

    with pytest.raises(RuntimeError, match="a drain"):
        await _together([done(), fails()], stopping)
