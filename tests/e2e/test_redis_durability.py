"""Redis' writes of the last moments may be lost: their offsets are not committed yet.

That nothing is lost then is proven by `redis_tail_lost` and `redis_failover` of `tests/chaos`.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.datasets.generated import generate
from schemas import codec
from schemas.activity import UserActivity
from tests.conftest import PATIENT, Stack
from tests.e2e.conftest import fit_small, prepare
from workers.kafka_client import group_lag, produce
from workers.local.process import end
from workers.local.workers import environment
from workers.settings import Settings
from workers.stores.connect import connect
from workers.stores.user_redis import RedisUserTable

WITHIN_S = 240.0


@pytest.fixture
def settings(stack: Stack, namespace: str, tmp_path: Path) -> Settings:
    settings = stack.settings(**PATIENT, namespace=namespace, data_dir=tmp_path)
    bundle = fit_small(generate(items=100, users=60, events=2500), tmp_path / "bundles")
    asyncio.run(prepare(settings, bundle))
    return settings


@pytest.fixture
def worker(settings: Settings) -> Iterator["subprocess.Popen[bytes]"]:
    argv = [sys.executable, "-m", "workers.cli.main", "worker", "activity"]
    child = subprocess.Popen(argv, env=os.environ | environment(settings))
    yield child
    end(child, 12.0)


async def write_one(settings: Settings, user: str) -> None:
    """Send one activity and wait until its user has a record."""
    now_ms = time.time_ns() // 1_000_000
    event = UserActivity(event_id=uuid.uuid4().hex, user_id=user, action="rate", timestamp_ms=now_ms)
    await produce(settings, settings.topic("user-activity"), [(user.encode(), codec.encode_event(event), ())])
    users = RedisUserTable(connect(settings), settings)
    try:
        async with asyncio.timeout(WITHIN_S):
            while await users.records([user]) == [None]:
                await asyncio.sleep(0.02)
    finally:
        await users.close()


async def lag(settings: Settings) -> int:
    return await group_lag(settings, settings.group("recall-activity"), settings.topic("user-activity"))


@pytest.mark.timeout(600)
def test_an_offset_is_committed_when_its_write_is_old_enough_also_at_the_end(
    worker: "subprocess.Popen[bytes]", settings: Settings
) -> None:
    durable_s = settings.redis_durability_ms / 1000
    assert durable_s == 2.0

    async def until_committed() -> None:
        async with asyncio.timeout(WITHIN_S):
            while await lag(settings):
                await asyncio.sleep(0.02)

    sent_s = time.monotonic()
    asyncio.run(write_one(settings, "one"))
    asyncio.run(until_committed())
    assert time.monotonic() - sent_s >= durable_s

    sent_s = time.monotonic()
    asyncio.run(write_one(settings, "another"))
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60.0) == 0
    assert time.monotonic() - sent_s >= durable_s
    assert asyncio.run(lag(settings)) == 0, "a drain waits until all is committed"
