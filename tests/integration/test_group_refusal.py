"""A consumer group that refuses a worker: it says so, and works once it is let in."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.test_transport import Flow
from workers.local.kafka import CONFIGURATION, Kafka
from workers.local.process import free_ports
from workers.local.stack import cache_dir
from workers.settings import Settings

WITHIN_S = 60.0


class SmallGroups(Kafka):
    """A broker whose groups have one member."""

    def command(self) -> tuple[list[str], dict[str, str]]:
        command = super().command()
        with (self.data / CONFIGURATION).open("a") as file:
            file.write("group.max.size=1\n")
        return command


@pytest.fixture
async def flow(settings: Settings, tmp_path: Path) -> AsyncIterator[Flow]:
    kafka = SmallGroups(tmp_path / "kafka", tmp_path / "kafka.log", cache_dir())
    kafka.prepare(print)
    kafka.ports = free_ports(kafka.port_count)
    kafka.start()
    try:
        await asyncio.to_thread(kafka.wait_ready)
        flow = Flow(settings.model_copy(update={"kafka_bootstrap": kafka.address}), tmp_path)
        await flow.start()
        yield flow
        await flow.stop()
    finally:
        kafka.kill()


async def test_a_worker_that_is_not_let_in_says_so_and_works_once_it_is(flow: Flow, tmp_path: Path) -> None:
    first = flow.spawn()
    await flow.feed(10, 1000)
    await flow.all_through()
    second = flow.spawn()
    async with asyncio.timeout(WITHIN_S):
        while "the consumer group refuses this worker" not in (tmp_path / "worker-1.log").read_text():
            await asyncio.sleep(0.1)
    assert second.poll() is None
    first.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(first.wait, WITHIN_S) == 0
    await flow.feed(10, 1000)
    await flow.all_through()
    assert second.poll() is None
