"""Recall workers that come and go under load, some requests waiting for events that never come: all are answered."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from schemas import codec
from tests.e2e.conftest import Live
from tests.e2e.test_live import new, request
from tests.e2e.test_overload import Reader
from workers.local.workers import environment

TIMES = 3
PER_TICK = 10
TICK_S = 0.02


@pytest.fixture
async def reader(live: Live) -> AsyncIterator[Reader]:
    reader = Reader(live)
    await reader.start()
    yield reader
    await reader.stop()


def spawn(live: Live, log: Path) -> "subprocess.Popen[bytes]":
    argv = [sys.executable, "-m", "workers.cli.main", "worker", "recall"]
    with log.open("ab") as output:
        return subprocess.Popen(argv, stdout=output, stderr=output, env=os.environ | environment(live.settings))


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
        began = log.stat().st_size if log.exists() else 0
        other = spawn(live, log)
        while b"partitions assigned" not in log.read_bytes()[began:]:
            assert other.poll() is None, log.read_text()[-2000:]
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        other.send_signal(signal.SIGTERM)
        codes.append(await asyncio.to_thread(other.wait, 30))
    over.set()
    await asking
    await producer.stop()
    answers = await reader.until(ids)
    assert codes == [0] * TIMES
    assert len(answers) == len(ids), "none is answered twice"
