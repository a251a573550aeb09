"""What the batch transport costs beside a raw loop, and how long a paced message takes through it."""

import asyncio
import time
import uuid
from dataclasses import asdict
from statistics import median
from typing import Any

import numpy as np
import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from workers.bench.home import Home, make_topics
from workers.bench.passthrough import Job
from workers.kafka_client import produce

VALUE = b"x" * 300
MESSAGES = 300_000
ROUNDS = 5
PACED_PER_S = 500
PACED_S = 12.0
WORK_MS = 2.0


def passing_on(home: Home) -> dict[str, Any]:
    """`transport_ratio`: messages per second of CPU through the batch transport over those of the raw loop."""
    name = uuid.uuid4().hex[:8]
    source = f"bench-in-{name}"
    targets = {how: f"bench-out-{how}-{name}" for how in ("raw", "batch")}
    asyncio.run(make_topics(home.settings, source, *targets.values()))
    messages = ((b"%d" % (n % 977), VALUE, ()) for n in range(MESSAGES))
    asyncio.run(produce(home.settings, source, messages))
    reports: dict[str, list[dict[str, Any]]] = {how: [] for how in targets}
    for n in range(ROUNDS):
        for how, target in targets.items():
            job = Job(f"bench-{how}-{name}-{n}", source, target, 1024, 1, 0.0, MESSAGES)
            child = home.start("workers.bench.passthrough", how, orjson.dumps(asdict(job)).decode())
            reports[how].append(child.report(120))
    costs = {how: [report["cpu_s"] / report["records"] for report in of_how] for how, of_how in reports.items()}
    found = {
        how: {
            "messages_per_s_per_core": round(1 / median(costs[how])),
            "cpu_us_per_message": round(median(costs[how]) * 1e6, 2),
            "messages_per_s": round(median(report["records"] / report["wall_s"] for report in of_how)),
            "batch_sizes": of_how[0]["batch_sizes"],
        }
        for how, of_how in reports.items()
    }
    ratio = median(raw / batch for raw, batch in zip(costs["raw"], costs["batch"], strict=True))
    return {"transport_ratio": round(ratio, 3), "transport": found}


def paced(home: Home) -> dict[str, Any]:
    """`paced_p99_ms`: 500 messages a second, 2 ms of work per batch, from the intended sending to the result."""
    name = uuid.uuid4().hex[:8]
    source, target = f"bench-in-{name}", f"bench-out-{name}"
    asyncio.run(make_topics(home.settings, source, target))
    job = Job(f"bench-{name}", source, target, 64, 2, WORK_MS, 0)
    child = home.start("workers.bench.passthrough", "batch", orjson.dumps(asdict(job)).decode())
    latencies_ms = asyncio.run(_pace(home, source, target))
    child.stop()
    p50, p99 = np.percentile(latencies_ms, [50, 99])
    return {
        "paced_p50_ms": round(float(p50), 1),
        "paced_p99_ms": round(float(p99), 1),
        "paced_messages": len(latencies_ms),
    }


async def _pace(home: Home, source: str, target: str) -> list[float]:
    """Latencies in milliseconds, without those of the first two seconds."""
    bootstrap = home.settings.kafka_bootstrap
    consumer = AIOKafkaConsumer(target, bootstrap_servers=bootstrap, group_id=None, auto_offset_reset="earliest")
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all")
    await consumer.start()
    await producer.start()
    arrived: dict[int, float] = {}
    total = int(PACED_PER_S * PACED_S)

    async def read() -> None:
        async for record in consumer:
            arrived[int(record.value)] = time.perf_counter()

    reading = asyncio.create_task(read())
    await producer.send_and_wait(source, b"-1", partition=0)
    async with asyncio.timeout(60):
        while -1 not in arrived:  # the worker runs
            await asyncio.sleep(0.05)
    begin = time.perf_counter() + 0.1
    for n in range(total):
        wait_s = begin + n / PACED_PER_S - time.perf_counter()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        await producer.send(source, b"%d" % n, partition=n % 4)
    async with asyncio.timeout(30):
        while len(arrived) <= total:
            await asyncio.sleep(0.05)
    reading.cancel()
    await consumer.stop()
    await producer.stop()
    return [(arrived[n] - begin - n / PACED_PER_S) * 1000 for n in range(2 * PACED_PER_S, total)]
