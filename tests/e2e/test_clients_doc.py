"""The Python client of docs/clients.md, taken from that page and run against a live worker."""

import asyncio
import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from tests.e2e.conftest import Live
from tests.e2e.test_live import new
from workers import topics
from workers.settings import Settings

DOCUMENT = Path(__file__).parents[2] / "docs" / "clients.md"
WITHIN_S = 60


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The block as a file."""
    (block,) = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.S | re.M)
    path = tmp_path_factory.mktemp("client") / "recall_client.py"
    path.write_text(block)
    return path


@pytest.fixture
def recall(script: Path) -> Any:
    """Its class."""
    spec = importlib.util.spec_from_file_location("recall_client", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Recall


async def answers_to(settings: Settings, request_id: str) -> list[Any]:
    """Every record of recall-candidates with this header."""
    consumer = AIOKafkaConsumer(
        settings.topic("recall-candidates"), bootstrap_servers=settings.kafka_bootstrap, auto_offset_reset="earliest"
    )
    await consumer.start()
    found = []
    try:
        ends = await consumer.end_offsets(consumer.assignment())
        while any([await consumer.position(partition) < end for partition, end in ends.items()]):
            for records in (await consumer.getmany(timeout_ms=500)).values():
                found += [each for each in records if ("request_id", request_id.encode()) in each.headers]
    finally:
        await consumer.stop()
    return found


def run(script: Path, users: list[str], addresses: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(script), *users]
    return subprocess.run(command, env=os.environ | addresses, capture_output=True, text=True, timeout=WITHIN_S)


def test_it_runs_as_it_stands_there(live: Live, script: Path) -> None:
    users = [new("u"), new("ü 🎬")]
    addresses = {"RECALL_KAFKA_BOOTSTRAP": live.settings.kafka_bootstrap, "RECALL_NAMESPACE": live.settings.namespace}
    end_s = time.monotonic() + WITHIN_S
    while (done := run(script, users, addresses)).returncode or any(f"{user} ok " not in done.stdout for user in users):
        assert time.monotonic() < end_s, done  # a busy machine may take longer than the two seconds it has
    for user, line in zip(users, done.stdout.splitlines(), strict=True):
        assert line.startswith(f"{user} ok ")
        assert len(line.removeprefix(f"{user} ok ").split()) == 10


async def test_each_of_many_at_once_gets_its_own_answer_in_the_clients_own_partition(live: Live, recall: Any) -> None:
    users = [new("u") for _ in range(50)]
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with recall(live.settings.kafka_bootstrap, live.settings.namespace) as client:
        asked = (client.ask(user, k=1 + n, timeout_ms=20_000, traceparent=traceparent) for n, user in enumerate(users))
        answers = await asyncio.gather(*asked)
        assert [(answer["user_id"], len(answer["item_ids"])) for answer in answers] == [
            (user, 1 + n) for n, user in enumerate(users)
        ]
        assert client.waiting == {}
        (record,) = await answers_to(live.settings, answers[0]["request_id"])
        assert record.partition == client.partition
        assert ("traceparent", traceparent.encode()) in record.headers


async def test_what_it_did_not_ask_for_and_second_answers_are_left_alone(live: Live, recall: Any) -> None:
    async with recall(live.settings.kafka_bootstrap, live.settings.namespace) as client:
        before = await client.ask(new("u"), timeout_ms=20_000)
        strange: list[list[tuple[str, bytes | None]]] = [
            [],
            [("request_id", None)],
            [("request_id", b"another client's")],
            [("request_id", before["request_id"].encode())],
        ]
        producer = AIOKafkaProducer(bootstrap_servers=live.settings.kafka_bootstrap)
        await producer.start()
        for headers in strange:
            await producer.send_and_wait(client.answers, b"{}", partition=client.partition, headers=headers)
        await producer.stop()
        user = new("u")
        assert (await client.ask(user, timeout_ms=20_000))["user_id"] == user
        assert client.waiting == {}


async def test_without_a_worker_it_gives_up_after_the_timeout(settings: Settings, recall: Any) -> None:
    await topics.apply(settings)
    async with recall(settings.kafka_bootstrap, settings.namespace) as client:
        with pytest.raises(TimeoutError):
            await client.ask("u", timeout_ms=100)
        assert client.waiting == {}
