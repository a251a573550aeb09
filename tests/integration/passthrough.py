"""A worker that passes records on: `python passthrough.py GROUP SOURCE TARGET WORK_MS HOW`; settings: environment.

HOW is `whole`: each batch is finished as it came; or `apart`: its records wait in an intake, as those of recall do.
The value `raise` makes its agent raise, the first time that this process group sees it (a file remembers).
"""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from schemas.recall import RecallRequest
from workers import logs
from workers.clock import SystemClock
from workers.ending import stopping_on_signals
from workers.inflight import Batch, BatchPolicy
from workers.intake import Entry, Intake
from workers.pipelines.recall import Incoming
from workers.publisher import Outgoing, Publisher
from workers.runners import Runners
from workers.settings import load_settings
from workers.transport import batch_topic, create_app, run_until, serve


async def main(group: str, source: str, target: str, work_ms: float, how: str) -> int:
    settings = load_settings()
    policy = BatchPolicy(max_batch=64, in_flight=2) if how == "whole" else BatchPolicy(max_batch=1024, in_flight=1)
    app = create_app(group, settings, policy)
    publisher = Publisher(app, 30_000)
    raised = Path(settings.data_dir) / f"{group}.raised"

    async def pass_on(records: Sequence[Any]) -> None:
        await asyncio.sleep(work_ms / 1000)
        if any(record.value == b"raise" for record in records) and not raised.exists():
            raised.touch()
            raise RuntimeError("injected")
        await publisher.send(target, [Outgoing(record.key, record.value) for record in records])

    async def handle_whole(batch: Batch) -> None:
        await pass_on(batch.records)
        batch.done()

    async def answer(entries: Sequence[Entry]) -> None:
        await pass_on([entry.record for entry in entries])
        for entry in entries:
            entry.batch.done(entry.record)

    intake = Intake(SystemClock())
    runners = Runners(intake, answer, answer)

    async def handle_apart(batch: Batch) -> None:
        for record in batch.records:
            batch.hold(record)
        request = RecallRequest(request_id="r", user_id="u", timeout_ms=60_000)
        runners.put([Entry(record, batch, Incoming(request, record.timestamp)) for record in batch.records])

    @app.agent(batch_topic(app, source))
    async def agent(stream) -> None:
        await (serve(stream, handle_whole) if how == "whole" else serve(stream, handle_apart, intake))

    await run_until(app, stopping_on_signals())
    return 0


if __name__ == "__main__":
    logs.configure()
    sys.exit(uvloop.run(main(*sys.argv[1:4], float(sys.argv[4]), sys.argv[5])))
