"""The whole pipeline on an index in the process of the workers: filled from the topic or a snapshot, never half."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from models.bundle import Bundle
from models.datasets import Dataset
from models.datasets.generated import generate
from schemas.items import ItemUpdate
from schemas.recall import CandidateList, RecallRequest
from tests.conftest import PATIENT, Stack
from tests.e2e.conftest import fit_small, load, prepare
from workers.client import RecallClient
from workers.errors import DependencyTimeout
from workers.item_loading import wait_for_items
from workers.live.sender import Sender
from workers.local.process import end, free_ports
from workers.local.ready import health
from workers.local.state import WorkerState
from workers.local.workers import environment
from workers.settings import Settings

WITHIN_S = 30.0
START_WITHIN_S = 60.0


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return generate(items=150, users=60, events=3000)


@pytest.fixture(scope="module")
def packed(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return fit_small(dataset, tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def ours(stack: Stack, namespace: str, tmp_path: Path, packed: Bundle) -> Settings:
    """Settings of the run's Kafka and Redis, and of Faiss."""
    settings = stack.settings(
        **PATIENT, namespace=namespace, data_dir=tmp_path, index="faiss", milvus_uri="http://127.0.0.1:1"
    )
    asyncio.run(prepare(settings, packed))
    return settings


class Worker:
    """`recall worker all --one-process`, its log in a file."""

    def __init__(self, settings: Settings, **changed: str) -> None:
        self._log = settings.data_dir / "worker.log"
        [port] = free_ports(1)
        env = os.environ | environment(settings) | {"RECALL_WEB_PORT": str(port), "RECALL_INDEX_SNAPSHOT_MS": "1000"}
        argv = [sys.executable, "-m", "workers.cli.main", "worker", "all", "--one-process"]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(argv, env=env | changed, stdout=log, stderr=log)
        self._state = WorkerState(kind="all", pid=self.process.pid, web_port=port, restarts=0)

    def wait(self) -> "Worker":
        end_at = time.monotonic() + START_WITHIN_S
        while (found := health(self._state)) != "ready":
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end_at, found
            time.sleep(0.05)
        return self

    def said(self) -> str:
        return self._log.read_text()

    def stop(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        assert self.process.wait(WITHIN_S) == (0 if number == signal.SIGTERM else -number), self.said()


@pytest.fixture
def started(ours: Settings) -> Iterator[list[Worker]]:
    """The workers that a test has started."""
    workers: list[Worker] = []
    yield workers
    for worker in workers:
        end(worker.process, WITHIN_S)  # type: ignore[arg-type]
    print(workers[-1].said()[-6000:] if workers else "")


def asked() -> RecallRequest:
    return RecallRequest(request_id=uuid.uuid4().hex, user_id=uuid.uuid4().hex, k=1000, timeout_ms=20_000)


async def answered(settings: Settings) -> CandidateList:
    """A new user's list, of which all is to come from the index: nobody has done anything yet."""
    async with RecallClient(settings) as client:
        return await client.ask(asked())


async def listed(settings: Settings) -> set[str]:
    """What such a list holds, which must be whole."""
    answer = await answered(settings)
    assert answer.status == "ok", answer
    return set(answer.item_ids)


async def change(settings: Settings, upserts: list[str], deletes: list[str]) -> None:
    now_ms = time.time_ns() // 1_000_000
    async with Sender(settings) as sender:
        for item_id in upserts:
            attributes = {"genres": ["Drama"]}
            await sender.item(ItemUpdate(item_id=item_id, op="upsert", timestamp_ms=now_ms, attributes=attributes))
        for item_id in deletes:
            await sender.item(ItemUpdate(item_id=item_id, op="delete", timestamp_ms=now_ms))


async def until_listed(settings: Settings, wanted: set[str]) -> None:
    end_at = time.monotonic() + WITHIN_S
    while (answer := await answered(settings)).status != "ok" or set(answer.item_ids) != wanted:
        assert time.monotonic() < end_at, (answer.status, wanted.symmetric_difference(answer.item_ids))
        await asyncio.sleep(0.05)


def snapshot_of(settings: Settings) -> Path:
    [found] = (settings.data_dir / "index").glob("*.snapshot")
    return found


@pytest.mark.timeout(300)
def test_items_outlive_the_process(ours: Settings, dataset: Dataset, started: list[Worker]) -> None:
    started.append(Worker(ours).wait())
    assert asyncio.run(listed(ours)) == set()
    asyncio.run(load(ours, dataset))
    everything = {update.item_id for update in dataset.items(dataset.test_ms)}
    asyncio.run(until_listed(ours, everything))
    gone, new = sorted(everything)[0], f"film-{uuid.uuid4().hex[:8]}"
    asyncio.run(change(ours, [new], [gone]))
    everything = everything - {gone} | {new}
    asyncio.run(until_listed(ours, everything))

    second = subprocess.run(
        [sys.executable, "-m", "workers.cli.main", "worker", "all", "--one-process"],
        env=os.environ | environment(ours), capture_output=True, text=True, timeout=WITHIN_S,
    )  # fmt: skip
    assert second.returncode == 2
    line = f"index = 'faiss': another process holds the items of {ours.data_dir}/index, and there is one for all"
    assert second.stderr == f"recall: {line}\n"

    started[-1].stop()
    began_s = time.monotonic()
    started.append(Worker(ours).wait())
    print(f"ready {time.monotonic() - began_s:.1f} s after a clean stop")
    assert "the index begins with its snapshot" in started[-1].said()
    assert asyncio.run(listed(ours)) == everything, "at once: it is not ready before"

    started[-1].stop(signal.SIGKILL)
    asyncio.run(change(ours, [], [new]))  # nobody is there
    started.append(Worker(ours).wait())
    everything -= {new}
    assert asyncio.run(listed(ours)) == everything


async def _answers(settings: Settings, worker: Worker) -> list[tuple[str, list[str], int]]:
    """Statuses, reasons and lengths of lists while a worker starts, until it is ready."""
    found = []
    async with RecallClient(settings) as client:
        end_at = time.monotonic() + START_WITHIN_S
        while health(worker._state) != "ready":
            assert worker.process.poll() is None, worker.said()
            assert time.monotonic() < end_at
            with suppress(DependencyTimeout):  # a worker takes a while to start on a busy machine
                answer = await client.ask(asked())
                found.append((str(answer.status), list(answer.reasons), len(answer.item_ids)))
    return found


def _filled_anew(settings: Settings, started: list[Worker]) -> list[tuple[str, list[str], int]]:
    """The answers while a worker starts that cannot use the snapshot of the one before."""
    started[-1].stop()
    snapshot = snapshot_of(settings)
    content = bytearray(snapshot.read_bytes())
    content[len(content) // 2] ^= 1
    snapshot.write_bytes(content)
    started.append(Worker(settings))
    answers = asyncio.run(_answers(settings, started[-1]))
    assert '"why": "it is damaged"' in started[-1].said()
    return answers


@pytest.mark.timeout(300)
def test_no_answer_is_ok_before_the_index_is_filled(ours: Settings, dataset: Dataset, started: list[Worker]) -> None:
    """The one in memory, from a topic of which all is committed: its snapshot cannot be used."""
    ours = ours.model_copy(update={"index": "memory"})
    started.append(Worker(ours).wait())
    asyncio.run(load(ours, dataset))
    many = [f"film-{n}" for n in range(3000)]
    asyncio.run(change(ours, many, []))
    everything = {update.item_id for update in dataset.items(dataset.test_ms)} | set(many)
    asyncio.run(wait_for_items(ours))
    for _ in range(5):  # the index may be filled before the first request comes through
        answers = _filled_anew(ours, started)
        half = [each for each in answers if each[0] == "ok" and each[2] < 1000]
        assert not half, answers
        if any(status == "degraded" and "index_unavailable" in reasons for status, reasons, _ in answers):
            break
    else:
        pytest.fail(f"nobody was answered before the index was filled: {answers}")
    assert len(asyncio.run(listed(ours))) == min(1000, len(everything))


def run(settings: Settings, *arguments: str) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-m", "workers.cli.main", *arguments]
    env = os.environ | environment(settings)
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=WITHIN_S)


@pytest.mark.parametrize("kind", ["all", "items", "recall"])
def test_workers_apart_are_refused_in_one_line(ours: Settings, kind: str) -> None:
    done = run(ours, "worker", kind)
    assert done.returncode == 2
    line = "index = 'faiss' keeps the items in the process of the workers, and there is one for all"
    assert done.stderr == f"recall: {line}: recall worker all --one-process\n"


def test_commands_that_cannot_look_inside_say_so(ours: Settings) -> None:
    for command in (["items", "reconcile"], ["explain", "somebody"]):
        done = run(ours, *command)
        assert done.returncode == 2, done.stderr
        line = "index = 'faiss' keeps the items in the process of the workers: nothing outside it can look at them"
        assert done.stderr.splitlines()[-1] == f"recall: {line}"
    done = run(ours, "doctor", "--json")
    found = json.loads(done.stdout)
    text = json.dumps(found)
    assert "run all workers in one: recall worker all --one-process" in text
    assert "127.0.0.1:1" not in json.dumps([f for f in found["findings"] if f["check"] == "milvus"])


def test_an_index_that_nobody_has_is_named(ours: Settings) -> None:
    done = run(ours.model_copy(update={"index": "annoy"}), "worker", "items")
    assert done.returncode == 2
    assert done.stderr == "recall: index = 'annoy': there is no such adapter, only faiss, memory, milvus\n"
