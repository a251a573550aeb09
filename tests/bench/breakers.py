"""`python -m tests.bench.breakers`: how long answers take while Redis or Milvus is frozen, with breakers and without.

A local stack and one worker of each kind for each, 50 requests a second; SIGSTOP freezes the server. Prints JSON.
Without: a module put before the worker's own start lets every call through, so that nothing in the product switches it.
"""

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from models.bundle import Bundle
from models.datasets import Dataset
from models.datasets.generated import generate
from schemas.recall import CandidateList, RecallRequest
from tests.e2e.conftest import fit_small, load, prepare
from workers.client import RecallClient
from workers.local.discover import with_local_stack
from workers.local.ready import wait_ready
from workers.local.stack import LocalStack
from workers.local.workers import WorkerProcesses
from workers.settings import Settings, load_settings

PER_SECOND = 50
SETTLE_S = 8.0  # after the fault began, before it is measured: by then a breaker is open
MEASURED_S = 12.0
WITHOUT = """
import workers.breaker
workers.breaker.Breaker.lets_through = lambda self: True
"""


async def ask(client: RecallClient) -> tuple[float, CandidateList]:
    """Milliseconds until the answer was here, and the answer."""
    request = RecallRequest(request_id=uuid.uuid4().hex, user_id=f"u{uuid.uuid4().hex[:8]}", k=20, timeout_ms=5000)
    started = time.perf_counter()
    answer = await client.ask(request)
    return (time.perf_counter() - started) * 1000, answer


async def paced(client: RecallClient, seconds: float) -> list[tuple[float, CandidateList]]:
    """Answers to requests that come evenly, however long they take."""
    asking = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        asking.append(asyncio.create_task(ask(client)))
        await asyncio.sleep(1 / PER_SECOND)
    return await asyncio.gather(*asking)


async def frozen(settings: Settings, stack: LocalStack, name: str) -> dict[str, Any]:
    """What answers are like while a server is frozen, and how long after its return the first one is `ok` again."""
    service: Any = next(service for service in stack.services if service.name == name)
    async with RecallClient(settings) as client:
        well = await paced(client, 5.0)
        os.kill(service.process.pid, signal.SIGSTOP)
        await paced(client, SETTLE_S)
        found = await paced(client, MEASURED_S)
        if name == "milvus":  # it ends by itself when it was away for so long
            service.process.kill()
            service.stop()
            await asyncio.to_thread(stack.restart, name)
        else:
            os.kill(service.process.pid, signal.SIGCONT)
        back = time.monotonic()
        while (await ask(client))[1].status != "ok":
            await asyncio.sleep(0.05)
        figures: dict[str, Any] = {"normal_after_s": round(time.monotonic() - back, 1)}
    for state, answers in (("well", well), ("frozen", found)):
        times_ms = [elapsed_ms for elapsed_ms, _ in answers]
        said = Counter(",".join([answer.status, *answer.reasons]) for _, answer in answers)
        p50, p99 = (round(float(q), 1) for q in np.percentile(times_ms, [50, 99]))
        figures[state] = {"requests": len(answers), "p50_ms": p50, "p99_ms": p99, "answers": dict(said)}
    return figures


def run(folder: Path, dataset: Dataset, bundle: Bundle) -> dict[str, Any]:
    """Both faults, on servers and workers of their own."""
    stack = LocalStack(folder, lambda line: print(line, file=sys.stderr))
    stack.start()
    try:
        settings = with_local_stack(load_settings(namespace=f"b{uuid.uuid4().hex[:8]}", data_dir=folder))
        asyncio.run(prepare(settings, bundle))
        workers = WorkerProcesses(settings)
        workers.start()
        try:
            wait_ready(workers)
            asyncio.run(load(settings, dataset))
            return {name: asyncio.run(frozen(settings, stack, name)) for name in ("redis", "milvus")}
        finally:
            workers.stop()
    finally:
        stack.stop()


def main() -> None:
    """Both variants."""
    with tempfile.TemporaryDirectory(prefix="recall-breakers-") as name:
        folder = Path(name)
        (folder / "patches").mkdir()
        (folder / "patches" / "sitecustomize.py").write_text(WITHOUT)
        dataset = generate(items=400, users=200, events=15_000)
        bundle = fit_small(dataset, folder / "bundles")
        own = os.environ.get("PYTHONPATH", "")
        report = {}
        for variant, path in (("without", f"{folder / 'patches'}:{own}"), ("with", own)):
            os.environ["PYTHONPATH"] = path
            report[variant] = run(folder / variant, dataset, bundle)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
