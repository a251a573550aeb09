"""A process that passes records from one topic on to another: `python -m workers.bench.passthrough HOW JOB...`.

`raw` is the least that can be done: aiokafka's getmany, one record batch per partition, a commit every half second.
`batch` is the batch transport that the workers run on. Both stop after `count` records and print what it took.
"""

import asyncio
import gc
import sys
import time
from dataclasses import dataclass
from typing import Any

import orjson
import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from workers import logs
from workers.bench.system import own_cpu_s
from workers.ending import stopping_on_signals
from workers.engine import run_until, serve
from workers.inflight import Batch, BatchPolicy
from workers.publisher import Outgoing, Publisher
from workers.settings import Settings, load_settings
from workers.transport import batch_topic, create_app

COMMIT_EVERY_S = 0.5


@dataclass
class Job:
    """What to pass on; `work_ms` is how long every batch takes; `count` 0 = never stop."""

    group: str
    source: str
    target: str
    max_batch: int
    in_flight: int
    work_ms: float
    count: int


class Meter:
    """Counts records from the first batch on, and the CPU time since then."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._records = 0
        self._sizes: dict[int, int] = {}
        self._begin: tuple[float, float] | None = None

    def take(self, records: int) -> None:
        """A batch begins."""
        if self._begin is None:
            self._begin = own_cpu_s(), time.perf_counter()
        self._records += records
        bound = 1 << (records - 1).bit_length()
        self._sizes[bound] = self._sizes.get(bound, 0) + 1

    @property
    def full(self) -> bool:
        """Whether it was enough."""
        return 0 < self._count <= self._records

    def report(self) -> dict[str, Any]:
        """CPU seconds, seconds, records, and batches by the next power of two of their size."""
        cpu, wall = self._begin or (own_cpu_s(), time.perf_counter())
        return {
            "cpu_s": own_cpu_s() - cpu,
            "wall_s": time.perf_counter() - wall,
            "records": self._records,
            "batch_sizes": {str(bound): self._sizes[bound] for bound in sorted(self._sizes)},
        }


async def batch(settings: Settings, job: Job) -> dict[str, Any]:
    """Through the batch transport."""
    app = create_app(job.group, settings, BatchPolicy(max_batch=job.max_batch, in_flight=job.in_flight))
    publisher, meter, stopping = Publisher(app, 30_000), Meter(job.count), stopping_on_signals()
    report: dict[str, Any] = {}

    async def handle(taken: Batch) -> None:
        meter.take(len(taken.records))
        if job.work_ms:
            await asyncio.sleep(job.work_ms / 1000)
        records: Any = taken.records
        await publisher.send(job.target, [Outgoing(r.key, r.value, (), r.partition) for r in records])
        taken.done()
        if meter.full and not report:
            report.update(meter.report())
            stopping.set()

    @app.agent(batch_topic(app, job.source))  # type: ignore[untyped-decorator]
    async def agent(stream: Any) -> None:
        await serve(stream, handle)

    await run_until(app, stopping)
    return report


async def raw(settings: Settings, job: Job) -> dict[str, Any]:
    """Through aiokafka alone."""
    consumer = AIOKafkaConsumer(
        job.source,
        bootstrap_servers=settings.kafka_bootstrap,
        group_id=job.group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.kafka_bootstrap, acks="all", enable_idempotence=True, max_batch_size=262_144
    )
    await consumer.start()
    await producer.start()
    meter, committed_s = Meter(job.count), time.monotonic()
    while not meter.full:
        fetched = await consumer.getmany(timeout_ms=1000, max_records=job.max_batch)
        if not fetched:
            continue
        meter.take(sum(len(records) for records in fetched.values()))
        deliveries = []
        for partition, records in fetched.items():
            builder = producer.create_batch()
            for record in records:
                if builder.append(key=record.key, value=record.value, timestamp=None, headers=[]) is None:
                    deliveries.append(await producer.send_batch(builder, job.target, partition=partition.partition))
                    builder = producer.create_batch()
                    builder.append(key=record.key, value=record.value, timestamp=None, headers=[])
            deliveries.append(await producer.send_batch(builder, job.target, partition=partition.partition))
        await asyncio.gather(*deliveries)
        if time.monotonic() - committed_s > COMMIT_EVERY_S:
            await consumer.commit()
            committed_s = time.monotonic()
    report = meter.report()
    await consumer.commit()
    await consumer.stop()
    await producer.stop()
    return report


def main(how: str, job: str) -> None:
    """Do one job, given as JSON; its report goes to standard output."""
    logs.configure()
    work = {"batch": batch, "raw": raw}[how]
    gc.collect()
    gc.freeze()  # as workers do
    report = uvloop.run(work(load_settings(), Job(**orjson.loads(job))))
    print(orjson.dumps(report).decode(), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
