"""A worker that passes records on: `python passthrough.py GROUP SOURCE TARGET WORK_MS`, settings in the environment.

The value `raise` makes its agent raise, the first time that this process group sees it (a file remembers).
"""

import asyncio
import sys
from pathlib import Path

import uvloop

from workers import logs
from workers.inflight import Batch, BatchPolicy
from workers.publisher import Outgoing, Publisher
from workers.settings import load_settings
from workers.transport import batch_topic, create_app, run_until, serve, stopping_on_signals


async def main(group: str, source: str, target: str, work_ms: float) -> int:
    settings = load_settings()
    app = create_app(group, settings, BatchPolicy(max_batch=64, in_flight=2))
    publisher = Publisher(app, 30_000)
    raised = Path(settings.data_dir) / f"{group}.raised"

    async def handle(batch: Batch) -> None:
        await asyncio.sleep(work_ms / 1000)
        if any(record.value == b"raise" for record in batch.records) and not raised.exists():
            raised.touch()
            raise RuntimeError("injected")
        await publisher.send(target, [Outgoing(record.key, record.value) for record in batch.records])
        batch.done()

    @app.agent(batch_topic(app, source))
    async def agent(stream) -> None:
        await serve(stream, handle)

    await run_until(app, stopping_on_signals())
    return 0


if __name__ == "__main__":
    logs.configure()
    sys.exit(uvloop.run(main(*sys.argv[1:4], float(sys.argv[4]))))
