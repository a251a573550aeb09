"""A worker that passes records on: `python passthrough.py GROUP SOURCE TARGET WORK_MS HOW`; settings: environment.

HOW is `whole`: each batch is finished as it came; or `apart`: its records wait in an intake, as those of recall do; or
`asking`: as `whole`, and before each commit the file GROUP.answer is read: nothing is committed unless it says `yes`,
and `leave` makes the worker leave its group and end.
The value `raise` makes its agent raise, the first time that this process group sees it (a file remembers). A file
PID.begun has a line for each batch that was begun: its partitions.
"""

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from schemas.recall import RecallRequest
from workers import logs
from workers.clock import SystemClock
from workers.ending import stopping_on_signals
from workers.engine import leave_and_end, run_until, serve
from workers.errors import DependencyUnavailable
from workers.inflight import Batch, BatchPolicy
from workers.intake import Entry, Intake
from workers.pipelines.recall import Incoming
from workers.publisher import Outgoing, Publisher
from workers.runners import Runners
from workers.settings import load_settings
from workers.transport import batch_topic, create_app


async def main(group: str, source: str, target: str, work_ms: float, how: str) -> int:
    settings = load_settings()
    policy = BatchPolicy(max_batch=1024, in_flight=1) if how == "apart" else BatchPolicy(max_batch=64, in_flight=2)
    app = create_app(group, settings, policy)
    answer_file = Path(settings.data_dir) / f"{group}.answer"
    publisher = Publisher(app, 30_000)
    begun = Path(settings.data_dir) / f"{os.getpid()}.begun"
    raised = Path(settings.data_dir) / f"{group}.raised"

    async def pass_on(records: Sequence[Any]) -> None:
        with begun.open("a") as file:
            file.write(" ".join({str(record.partition) for record in records}) + "\n")
        await asyncio.sleep(work_ms / 1000)
        if any(record.value == b"raise" for record in records) and not raised.exists():
            raised.touch()
            raise RuntimeError("injected")
        await publisher.send(target, [Outgoing(record.key, record.value) for record in records])

    async def ask() -> None:
        said = answer_file.read_text() if answer_file.exists() else ""
        if said == "leave":
            await leave_and_end(app)
        if said != "yes":
            raise DependencyUnavailable("file", "it does not say yes")

    if how == "asking":
        app.recall_before_commit = ask

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
        await (serve(stream, handle_apart, intake) if how == "apart" else serve(stream, handle_whole))

    await run_until(app, stopping_on_signals())
    return 0


if __name__ == "__main__":
    logs.configure()
    sys.exit(uvloop.run(main(*sys.argv[1:4], float(sys.argv[4]), sys.argv[5])))
