"""A consumer group's coordinator, as aiokafka has it: what it refuses, how a member stays away and leaves.

All but `hear` is for the thread of the consumer. Like transport.py this knows what aiokafka's consumer is made of.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from aiokafka.errors import KafkaError

from workers.dependencies import SAY_EVERY_S
from workers.ending import end_process

HEAR_EVERY_S = 1.0

log = structlog.get_logger()


async def hear(ask: Callable[[Callable[[Any], Awaitable[bool]]], Awaitable[bool]]) -> None:
    """Say what the coordinator refuses, and have it asked again: aiokafka waits until somebody has heard it.

    Without end; `ask` runs `heard` on the consumer. The process ends when the group is given up altogether.
    """
    said_s = -SAY_EVERY_S
    while True:
        await asyncio.sleep(HEAR_EVERY_S)
        try:
            well = await ask(heard)
        except KafkaError as error:
            if time.monotonic() >= said_s + SAY_EVERY_S:
                said_s = time.monotonic()
                log.error("the consumer group refuses this worker", why=f"{type(error).__name__}: {error}")  # noqa: TRY400
        else:
            if not well:
                log.error("aiokafka has given up its group or its fetches; ending without a commit")
                end_process()


async def heard(consumer: Any) -> bool:
    """Whether it is in touch with its group, and fetches, or is about to leave it.

    Raises KafkaError that nobody has heard yet.
    """
    coordinator = consumer._coordinator
    if coordinator is None or coordinator._closing.done():
        return True
    if coordinator._coordination_task.done() or consumer._fetcher._fetch_task.done():
        return False
    coordinator.check_errors()
    return True


def stay_away(consumer: Any, joining: Callable[[], None]) -> None:
    """It joins its group no more, and leaves it when it is stopped. `joining` is called when it would have joined."""
    coordinator = consumer._coordinator

    async def not_again(_: Any) -> bool:
        joining()
        await asyncio.wait([coordinator._closing])
        return False

    coordinator._do_rejoin_group = not_again


async def leave(consumer: Any) -> None:
    """Tell the group: who takes over need not wait for the session's end."""
    await consumer._coordinator._maybe_leave_group()
