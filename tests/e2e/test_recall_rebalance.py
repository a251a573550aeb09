"""Recall workers that come and go under load, some requests waiting for events that never come: all are answered."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from schemas import codec
from tests.e2e.conftest import Live
from tests.e2e.test_live import new, request
from tests.e2e.test_metrics import samples
from tests.e2e.test_overload import Reader
from workers.local.process import free_ports
from workers.local.workers import environment

TIMES = 3
PER_TICK = 10
TICK_S = 0.02
AT_WORK_WITHIN_S = 60.0


@pytest.fixture
async def reader(live: Live) -> AsyncIterator[Reader]:
    reader = Reader(live)
    await reader.start()
    yield reader
    await reader.stop()


def spawn(live: Live, web_port: int, log: Path) -> "subprocess.Popen[bytes]":
    argv = [sys.executable, "-m", "workers.cli.main", "worker", "recall"]
    env = os.environ | environment(live.settings) | {"RECALL_WEB_PORT": str(web_port)}
    with log.open("ab") as output:
        return subprocess.Popen(argv, stdout=output, stderr=output, env=env)


async def until_at_work(worker: "subprocess.Popen[bytes]", web_port: int, log: Path) -> None:
    """Wait until it has answered some, and is seen with others in hand."""
    end_s = time.monotonic() + AT_WORK_WITHIN_S
    while True:
        found = await asyncio.to_thread(samples, web_port)
        if found.get("recall_answers_total") and found.get("recall_in_flight_batches"):
            return
        assert worker.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < end_s, (found, log.read_text()[-2000:])
        await asyncio.sleep(0.01)


@pytest.mark.timeout(300)
async def test_workers_that_join_and_leave_lose_no_request(live: Live, reader: Reader, tmp_path: Path) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=live.settings.kafka_bootstrap, acks="all")
    await producer.start()
    topic, name = live.settings.topic("recall-requests"), new("r")
    ids: set[str] = set()
    over = asyncio.Event()

    async def ask_on() -> None:
        while not over.is_set():
            for n in range(PER_TICK):
                waits = "never-sent" if n == 0 else None
                one = request(new("u"), request_id=f"{name}-{len(ids)}", after_event_id=waits, timeout_ms=20_000)
                sent = await producer.send(topic, codec.encode_event(one), one.user_id.encode())
                ids.add(one.request_id)
            await sent
            await asyncio.sleep(TICK_S)

    asking = asyncio.create_task(ask_on())
    log = tmp_path / "other.log"
    codes = []
    for _ in range(TIMES):
        (web_port,) = free_ports(1)
        other = spawn(live, web_port, log)
        await until_at_work(other, web_port, log)
        other.send_signal(signal.SIGTERM)
        codes.append(await asyncio.to_thread(other.wait, 30))
    over.set()
    await asking
    await producer.stop()
    answers = await reader.until(ids)
    assert codes == [0] * TIMES
    assert len(answers) == len(ids), "none is answered twice"
