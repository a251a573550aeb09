"""An app of Faust at work: its batches handed to an agent, and its end.

    app = create_app("recall-requests", settings, policy)
    topic = batch_topic(app, "recall-requests")

    @app.agent(topic)
    async def agent(stream):
        await serve(stream, handle)

`handle(batch)` must end with `batch.done()`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NoReturn

import structlog

from workers.cancelling import cancel
from workers.ending import end_process, or_end_process
from workers.inflight import Backlog, Batch

EXIT_AFTER_S = 9.5
LEAVE_WITHIN_S = 1.0

log = structlog.get_logger()


async def serve(stream: Any, handle: Callable[[Batch], Awaitable[None]], backlog: Backlog | None = None) -> None:
    """Run `handle` for every batch, as many at once as the policy allows. It must finish or hold each record.

    What is held belongs to the agent's `backlog`, which has a say in when to poll. An exception ends the process.
    """
    consumer = stream.app.consumer
    consumer.backlog = backlog
    running: set[asyncio.Task[None]] = set()
    async for batch in stream.noack():
        if batch.void:  # a rebalance took its partitions while it lay in the agent's queue
            continue
        batch.started = True
        task = asyncio.create_task(or_end_process(handle(batch), partial(leave_and_end, stream.app)))
        running.add(task)
        task.add_done_callback(running.discard)


async def leave_and_end(app: Any) -> NoReturn:
    """End at once, offsets uncommitted, but leave the group."""
    try:
        async with asyncio.timeout(LEAVE_WITHIN_S):
            await app.consumer.leave()
    finally:
        end_process()


async def run_until(app: Any, stopping: asyncio.Event) -> None:
    """Start the app and run it until `stopping` is set; then drain, commit, stop. A crash ends the process.

    A start waits for brokers without end; one that is still under way then is given up.
    """
    starting, stop = asyncio.ensure_future(app.start()), asyncio.create_task(stopping.wait())
    await asyncio.wait({starting, stop}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done() and not (await asyncio.wait({starting}, timeout=EXIT_AFTER_S))[0]:
        log.warning("the engine had not started; nothing was in hand")
        end_process(0)
    await cancel(stop)
    await starting
    ends = [asyncio.create_task(event.wait()) for event in (stopping, app._crashed, app._stopped)]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    await cancel(*ends)
    if app._crashed.is_set() or not stopping.is_set():
        log.error("the engine stopped by itself; ending without a commit", reason=repr(app.crash_reason))
        end_process()
    try:
        await asyncio.wait_for(app.stop(), EXIT_AFTER_S)
    except TimeoutError:
        log.exception("the engine did not stop in time; ending without a further commit")
        end_process()
