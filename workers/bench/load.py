"""A process that asks for candidates at a fixed rate: `python -m workers.bench.load JOB`, JSON in and out.

Open loop: a request is due at its time whether or not earlier ones were answered, and its latency runs from then on, so
that a worker that falls behind cannot hide it.
"""

import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import numpy as np
import orjson
import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from schemas import codec
from schemas.recall import RecallRequest
from workers.partitioner import partition_of
from workers.settings import Settings, load_settings

TICK_S = 0.002
SILENCE_S = 20.0  # without an answer for so long, the rest is given up as unanswered
LATENCIES = {"p50_ms": 50.0, "p99_ms": 99.0, "p999_ms": 99.9}


@dataclass
class Job:
    """What to ask. `per_second` 0 = all at once, a backlog. Latencies and rates leave out the first `warm_up` part."""

    name: str
    users: list[str]
    requests: int
    per_second: float
    timeout_ms: int
    k: int = 100
    warm_up: float = 0.2


class Answers:
    """Reads `recall-candidates` and notes when each request was first answered, and its status."""

    def __init__(self, settings: Settings, job: Job) -> None:
        self._consumer = AIOKafkaConsumer(
            settings.topic("recall-candidates"), bootstrap_servers=settings.kafka_bootstrap, max_poll_records=2000
        )
        self._prefix = f"{job.name}-".encode()
        self.at_s = np.full(job.requests, np.nan)
        self.ok = np.zeros(job.requests, dtype=np.bool_)
        self.statuses: Counter[str] = Counter()
        self.answered = 0
        self.repeated = 0
        self.last_s = 0.0

    async def start(self) -> None:
        """Stand at the end of the topic."""
        await self._consumer.start()
        await self._consumer.seek_to_end()

    async def read(self) -> None:
        """Until cancelled."""
        while True:
            fetched = await self._consumer.getmany(timeout_ms=200)
            now_s = time.perf_counter()
            for record in (record for records in fetched.values() for record in records):
                request_id = next((value for name, value in record.headers if name == "request_id"), b"")
                if not request_id.startswith(self._prefix):
                    continue
                number = int(request_id[len(self._prefix) :])
                if not np.isnan(self.at_s[number]):
                    self.repeated += 1
                    continue
                self.at_s[number] = self.last_s = now_s
                self.answered += 1
                status = _status(record.value)
                self.ok[number] = status == "ok"
                self.statuses[status] += 1

    async def stop(self) -> None:
        """Close the connection."""
        await self._consumer.stop()


def _status(value: bytes) -> str:
    """The answer's status, without decoding its list: it stands before it."""
    start = value.index(b'"status":"') + len(b'"status":"')
    return value[start : value.index(b'"', start)].decode()


async def ask(settings: Settings, job: Job) -> dict[str, Any]:
    """Ask all, wait for the answers, and report."""
    chosen = in_turn(job.users, job.requests, job.name)
    messages = [(user.encode(), _request(job, n, user)) for n, user in enumerate(chosen)]
    answers = Answers(settings, job)
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka_bootstrap, acks="all", enable_idempotence=True)
    await producer.start()
    await answers.start()
    reading = asyncio.create_task(answers.read())
    topic = settings.topic("recall-requests")
    partitions = sorted(await producer.partitions_for(topic))
    begin_s = time.perf_counter() + 0.05
    period_s = 1 / job.per_second if job.per_second else 0.0
    sent = 0
    while sent < len(messages):
        now_s = time.perf_counter()
        due = len(messages) if not period_s else min(len(messages), int(max(0.0, now_s - begin_s) / period_s))
        for key, value in messages[sent:due]:
            partition = partitions[partition_of(key, len(partitions))]
            await producer.send(topic, key=key, value=value, partition=partition)
        sent = max(sent, due)
        await asyncio.sleep(TICK_S)
    end_s = answers.last_s = time.perf_counter()
    while answers.answered < job.requests and time.perf_counter() - answers.last_s < SILENCE_S:
        await asyncio.sleep(0.02)
    reading.cancel()
    await producer.stop()
    await answers.stop()
    due_s = begin_s + np.arange(job.requests) * period_s
    return _report(job, answers, due_s, end_s - begin_s)


def in_turn(users: Sequence[str], requests: int, seed: str) -> list[str]:
    """Users in random order, everybody once before anybody again: an answer that is kept for a second serves nobody."""
    order = random.Random(seed).sample(users, len(users))  # noqa: S311  # repeatable, no secret
    return list(islice(cycle(order), requests))


def _request(job: Job, number: int, user: str) -> bytes:
    request = RecallRequest(request_id=f"{job.name}-{number}", user_id=user, k=job.k, timeout_ms=job.timeout_ms)
    return codec.encode_event(request)


def _report(job: Job, answers: Answers, due_s: Any, sending_s: float) -> dict[str, Any]:
    first = int(job.requests * job.warm_up)
    latencies_ms = (answers.at_s - due_s)[first:] * 1000
    in_time = answers.ok[first:] & (latencies_ms <= job.timeout_ms)
    latencies_ms = latencies_ms[~np.isnan(latencies_ms)]
    arrived_s = np.sort(answers.at_s[~np.isnan(answers.at_s)])[first:]
    span_s = float(arrived_s[-1] - arrived_s[0]) if len(arrived_s) > 1 else float("nan")
    return {
        "requests": job.requests,
        "answered": answers.answered,
        "repeated": answers.repeated,
        "statuses": dict(answers.statuses),
        "sending_s": round(sending_s, 2),
        "answers_per_s": round(len(arrived_s) / span_s, 1),
        "in_time_part": round(float(in_time.mean()), 4),
        **{
            name: round(float(value), 1)
            for name, value in zip(LATENCIES, np.percentile(latencies_ms, list(LATENCIES.values())), strict=True)
        },
    }


def main(job: str) -> None:
    """Do one job, given as the name of a JSON file; its report goes to standard output."""
    with open(job, "rb") as file:  # noqa: PTH123  # thousands of user ids are too long for a command line
        report = uvloop.run(ask(load_settings(), Job(**orjson.loads(file.read()))))
    print(orjson.dumps(report).decode(), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1])
