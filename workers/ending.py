"""How a worker process ends: asked to by a signal, which lets it drain; or at once, without a commit."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import NoReturn

import structlog

from workers.errors import ConfigurationError, StoreLost

WRONG_CONFIGURATION = 2  # exit code

log = structlog.get_logger()


def stopping_on_signals() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set, from now on, in the running loop."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    return stopping


async def or_end_process(work: Awaitable[None], leave: Callable[[], Awaitable[None]] | None = None) -> None:
    """Work that must not raise. If it does, the process ends without a commit; what a store has lost, others will have
    to read again, and `leave` lets them begin at once.

    A supervisor starts it again, and nothing is lost; not after a ConfigurationError, which somebody has to mend.
    """
    try:
        await work
    except StoreLost as error:
        log.error("ending without a commit, to read again what kafka retains", why=str(error))  # noqa: TRY400
        if leave is not None:
            await leave()
        end_process()
    except ConfigurationError as error:
        log.error("worker cannot go on, ending it without a commit", why=str(error))  # noqa: TRY400  # one line
        sys.stderr.write(f"recall: {error}\n")  # as every command says what it cannot do
        sys.stderr.flush()
        end_process(WRONG_CONFIGURATION)
    except Exception:
        log.exception("an agent raised; ending without a commit")
        end_process()


def end_process(code: int = 1) -> NoReturn:
    """End at once, offsets uncommitted: whatever was not acknowledged will be delivered again."""
    logging.shutdown()
    os._exit(code)
