"""A process that answers requests without Kafka: `python -m workers.bench.loop JOB`, JSON in and out.

The same steps on the same servers, from a request's bytes to its answer's bytes, in batches of given sizes, as many at
once as a recall worker has in flight. What a worker takes beyond it is the price of the transport.
"""

import asyncio
import random
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import orjson
import uvloop

from schemas import codec
from schemas.recall import RecallRequest
from workers import logs
from workers.app import open_recall
from workers.bench.system import own_cpu_s
from workers.clock import SystemClock
from workers.dependencies import Dependencies
from workers.index.opening import Indexes
from workers.intake import IntakePolicy
from workers.metrics import Metrics
from workers.pipelines.admission import Incoming
from workers.pipelines.recall import RecallPipeline
from workers.settings import Settings, load_settings
from workers.stopwatch import unobserved
from workers.worker import Worker


@dataclass
class Job:
    """`batch_sizes`: size -> how many batches of it, as a worker had them."""

    users: list[str]
    batch_sizes: dict[str, int]
    requests: int
    timeout_ms: int
    k: int = 100
    warm_up: float = 0.2


async def answer(settings: Settings, job: Job) -> dict[str, Any]:
    """Answer all and report. CPU time and rate leave out the first `warm_up` part."""
    async with AsyncExitStack() as opened:
        metrics = Metrics()
        indexes = Indexes(settings, opened)
        worker = Worker("recall", settings, metrics, Dependencies("recall", metrics), opened, indexes)
        pipeline = await open_recall(worker, SystemClock(), unobserved)
        await asyncio.sleep(1.0)  # the feed of item changes has been read once: history vectors are kept from now on
        batches = list(_batches(job))
        warm = int(len(batches) * job.warm_up)
        await _run(pipeline, batches[:warm])
        cpu_s, wall_s = own_cpu_s(), time.perf_counter()
        answered, size_bytes = await _run(pipeline, batches[warm:])
        cpu_s, wall_s = own_cpu_s() - cpu_s, time.perf_counter() - wall_s
    return {
        "requests": answered,
        "requests_per_s": round(answered / wall_s, 1),
        "cpu_us_per_request": round(cpu_s / answered * 1e6, 1),
        "answer_bytes": round(size_bytes / answered),
    }


def _batches(job: Job) -> Iterator[list[bytes]]:
    """Requests in batches, sizes drawn as the worker had them."""
    rng = random.Random("loop")  # noqa: S311  # repeatable, no secret
    sizes, weights = [int(size) for size in job.batch_sizes], list(job.batch_sizes.values())
    made = 0
    while made < job.requests:
        size = rng.choices(sizes, weights)[0]
        yield [_request(job, made + n, rng.choice(job.users)) for n in range(size)]
        made += size


def _request(job: Job, number: int, user: str) -> bytes:
    request = RecallRequest(request_id=f"loop-{number}", user_id=user, k=job.k, timeout_ms=job.timeout_ms)
    return codec.encode_event(request)


async def _run(pipeline: RecallPipeline, batches: list[list[bytes]]) -> tuple[int, int]:
    """Answers and their bytes. Raises RuntimeError for one that is not `ok`: its work would be less."""
    waiting = iter(batches)
    answered = size_bytes = 0

    async def take_turns() -> None:
        nonlocal answered, size_bytes
        for batch in waiting:
            now_ms = time.time_ns() // 1_000_000
            lists = await pipeline.run([Incoming(codec.decode_request(value), now_ms) for value in batch])
            failed = next((found for found in lists if found.status != "ok"), None)
            if failed is not None:
                raise RuntimeError(f"{failed.status}: {', '.join(failed.reasons)}")
            answered += len(lists)
            size_bytes += sum(len(codec.encode_candidates(found)) for found in lists)

    await asyncio.gather(*(take_turns() for _ in range(IntakePolicy().batches_at_once)))
    return answered, size_bytes


def main(job: str) -> None:
    """Do one job, given as the name of a JSON file; its report goes to standard output."""
    logs.configure()
    with open(job, "rb") as file:  # noqa: PTH123  # thousands of user ids are too long for a command line
        report = uvloop.run(answer(load_settings(), Job(**orjson.loads(file.read()))))
    print(orjson.dumps(report).decode(), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1])
