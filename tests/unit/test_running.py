"""A command's work ends at Ctrl-C, also where a library loses the first word of it."""

import asyncio
import os
import signal

import pytest

from workers.cli.running import run


async def deaf(times: int) -> str:
    """Loses so many cancellations."""
    asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGINT)
    for _ in range(times):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            continue
    await asyncio.sleep(60)
    return "never"


async def quick() -> str:
    return "done"


async def failing() -> str:
    raise ValueError("no")


def test_what_it_gives_and_what_it_raises() -> None:
    assert run(quick()) == "done"
    with pytest.raises(ValueError, match="no"):
        run(failing())


@pytest.mark.parametrize("times", [0, 1, 2])
@pytest.mark.timeout(30)
def test_ctrl_c_ends_it_however_often_it_is_lost(times: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(deaf(times))
