"""What a request gets while Redis, the user tower, Milvus or all are down: the table of docs/scenes.md, live."""

import asyncio
import os
import shutil
import signal
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.bundle import Bundle, write_bundle
from models.datasets import Dataset
from models.datasets.generated import generate
from models.fit import FitOptions, fit
from models.spec import builtin_spec, parse_spec
from schemas.activity import UserActivity
from schemas.items import ItemUpdate
from schemas.recall import CandidateList, FilterClause, RecallRequest
from schemas.records import UserRecord, hash64
from tests.e2e.conftest import load, prepare
from workers.client import RecallClient
from workers.live.sender import Sender
from workers.local.discover import with_local_stack
from workers.local.ready import wait_ready
from workers.local.stack import LocalStack
from workers.local.workers import WorkerProcesses
from workers.settings import Settings, load_settings
from workers.stores.connect import connect
from workers.stores.user_redis import RedisUserTable

TIMEOUT_MS = 20_000
STEPS = {"store_timeout_ms": 3000, "tower_timeout_ms": 3000, "index_timeout_ms": 3000}
WITHIN_S = 90.0
K = 20
LOVED = "film-7"  # what everybody likes
GENRE = [FilterClause(field="genres", op="contains", value="Drama")]
NOT_FINITE, RAISES = 1, 2


@dataclass(frozen=True)
class Case:
    """What is down, and the answers expected: reasons, and the source of a list for each kind of user."""

    down: tuple[str, ...]
    fault: int
    reasons: list[str]
    regular: str
    newcomer: str
    hangs: bool = False  # it takes connections and never answers


CASES = {
    "nothing": Case((), 0, [], "tower", "tower"),
    "tower-gives-nan": Case((), NOT_FINITE, ["model_unavailable"], "popular", "popular"),
    "tower-raises": Case((), RAISES, ["model_unavailable"], "popular", "popular"),
    "milvus": Case(("milvus",), 0, ["index_unavailable"], "cached", "popular"),
    "milvus-and-tower": Case(("milvus",), NOT_FINITE, ["model_unavailable"], "popular", "popular"),
    "redis": Case(("redis",), 0, ["features_unavailable"], "popular", "popular"),
    "milvus-hangs": Case(("milvus",), 0, ["index_unavailable"], "cached", "popular", hangs=True),
    "redis-hangs": Case(("redis",), 0, ["features_unavailable"], "popular", "popular", hangs=True),
    "all": Case(("redis", "milvus"), RAISES, ["features_unavailable"], "popular", "popular"),
}


def faulty_bundle(dataset: Dataset, folder: Path) -> Bundle:
    """A bundle whose user tower obeys `context.fault`: 1 = a vector that is not finite, 2 = the whole run fails."""
    text = builtin_spec(dataset.spec).read_text() + '\n[context]\nfault = { kind = "number" }\n'
    log, catalogue = dataset.log.before(dataset.test_ms), dataset.catalogue(dataset.test_ms)
    healthy = fit(log, catalogue, parse_spec(text), text, folder, FitOptions(dim=32), lambda *_: None)
    model = onnx.load(healthy.user_tower)
    for node in model.graph.node:
        node.output[:] = ["healthy" if name == "user_embedding" else name for name in node.output]
    penalties = numpy_helper.from_array(np.array([0, np.inf], dtype=np.float32), "penalties")
    axes = numpy_helper.from_array(np.array([1], dtype=np.int64), "penalty_axes")
    model.graph.initializer.extend([penalties, axes])
    model.graph.node.extend(
        [
            helper.make_node("Cast", ["context_fault"], ["fault_code"], to=TensorProto.INT64),
            helper.make_node("Gather", ["penalties", "fault_code"], ["penalty"]),  # 2 is out of bounds
            helper.make_node("Unsqueeze", ["penalty", "penalty_axes"], ["penalty_column"]),
            helper.make_node("Add", ["healthy", "penalty_column"], ["user_embedding"]),
        ]
    )
    return write_bundle(
        folder,
        towers=(model.SerializeToString(), healthy.item_tower.read_bytes()),
        features=text,
        encoding=healthy.encoding,
        dim=healthy.dim,
        metric=healthy.metric,
        figures={},
    )


@dataclass
class System:
    """Servers and workers of these tests' own."""

    stack: LocalStack
    settings: Settings
    workers: WorkerProcesses

    def take_down(self, case: Case) -> None:
        for service in self._of(case):
            if case.hangs:
                os.kill(service.process.pid, signal.SIGSTOP)
            else:
                service.stop()

    def bring_back(self, case: Case) -> None:
        before = self._restarts()
        for service in self._of(case):
            if case.hangs:  # and start it anew: Milvus ends by itself when it finds that it was away for long
                service.process.kill()
                service.stop()
            self.stack.restart(service.name)
        if "redis" in case.down:  # who has written to it ends: the new one may have lost writes
            end = time.monotonic() + WITHIN_S
            while any(self._restarts()[kind] == before[kind] for kind in ("activity", "items")):
                self.workers.supervise()
                assert time.monotonic() < end, "a worker goes on with another Redis"
                time.sleep(0.1)
        wait_ready(self.workers)

    def _restarts(self) -> dict[str, int]:
        return {state.kind: state.restarts for state in self.workers.states}

    def _of(self, case: Case) -> list[Any]:
        return [service for service in self.stack.services if service.name in case.down]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("ladder")
    stack = LocalStack(folder, print)
    workers = None
    try:
        stack.start()
        own = {"namespace": f"l{uuid.uuid4().hex[:8]}", "data_dir": folder, "popular_refresh_ms": 200, "reuse_ms": 0}
        settings = with_local_stack(load_settings(**own, **STEPS))
        dataset = generate(items=300, users=100, events=6000)
        asyncio.run(prepare(settings, faulty_bundle(dataset, folder / "bundles")))
        workers = WorkerProcesses(settings)
        workers.start()
        wait_ready(workers)
        asyncio.run(load(settings, dataset))
        yield System(stack, settings, workers)
        wait_ready(workers)  # those that write end with the Redis that they wrote to, and are started again
    finally:
        if workers is not None:
            workers.stop()
            print(workers.log("recall").read_text()[-6000:])
        stack.stop()
        shutil.rmtree(folder, ignore_errors=True)


def click(user_id: str, item_id: str) -> UserActivity:
    event_id, now_ms = uuid.uuid4().hex, time.time_ns() // 1_000_000
    return UserActivity(
        event_id=event_id, user_id=user_id, item_id=item_id, action="rate", value=5.0, timestamp_ms=now_ms
    )


def ask(user_id: str, fault: int = 0, **fields: Any) -> RecallRequest:
    values = {"request_id": uuid.uuid4().hex, "user_id": user_id, "k": K, "timeout_ms": TIMEOUT_MS}
    return RecallRequest(**(values | {"context": {"fault": fault}} | fields))


async def until_popular(client: RecallClient, item_id: str) -> None:
    """Until the most popular item is this one."""
    async with asyncio.timeout(WITHIN_S):
        while (await client.ask(ask(uuid.uuid4().hex, NOT_FINITE))).item_ids[:1] != [item_id]:
            await asyncio.sleep(0.05)


async def until_known(client: RecallClient, user_id: str, event_id: str) -> CandidateList:
    async with asyncio.timeout(WITHIN_S):
        while (answer := await client.ask(ask(user_id, after_event_id=event_id))).status != "ok":
            await asyncio.sleep(0.05)
    return answer


async def in_time(client: RecallClient, request: RecallRequest) -> CandidateList:
    """The client itself waits no more than a second longer."""
    answer = await client.ask(request)
    assert answer.timings_ms.total <= request.timeout_ms
    return answer


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", CASES)
async def test_every_request_is_answered_in_time_with_the_next_best_thing(system: System, name: str) -> None:
    supervising = asyncio.create_task(supervise(system.workers))
    try:
        await everybody_is_answered(system, name)
    finally:
        supervising.cancel()


async def supervise(workers: WorkerProcesses) -> None:
    """As `recall up` does."""
    while True:
        workers.supervise()
        await asyncio.sleep(0.2)


async def everybody_is_answered(system: System, name: str) -> None:
    case, regular, newcomer = CASES[name], f"regular-{uuid.uuid4().hex}", f"newcomer-{uuid.uuid4().hex}"
    async with RecallClient(system.settings) as client, Sender(system.settings) as sender:
        fans = [click(f"fan-{n}-{uuid.uuid4().hex}", LOVED) for n in range(30)]
        others = [click(f"fan-{n}-{uuid.uuid4().hex}", f"film-{n}") for n in range(10, 70)]
        await sender.activities(fans + others)
        await until_popular(client, LOVED)
        seen = [click(regular, item_id) for item_id in (LOVED, "film-3")]
        await sender.activities(seen)
        before = await until_known(client, regular, seen[-1].event_id)
        gone = before.item_ids[2]
        await sender.item(ItemUpdate(item_id=gone, op="delete", timestamp_ms=seen[-1].timestamp_ms))
        await until_gone(client, gone)

        system.take_down(case)
        try:
            for _ in range(3):
                requests = [
                    ask(user, case.fault, **fields)
                    for user in (regular, newcomer)
                    for fields in ({}, {"filter": GENRE})
                ]
                answers = await asyncio.gather(*(in_time(client, request) for request in requests))
                check(case, answers, before, gone)
            for down in case.down[:1]:  # without Redis there is no vector, and nobody asks Milvus
                await until_breaker(client, system, down, 1)
            if "redis" in case.down:
                await nobody_waits(client, system)
            else:
                await activity_goes_on(system.settings, sender, regular)
        finally:
            system.bring_back(case)
        async with asyncio.timeout(WITHIN_S):
            while (await client.ask(ask(regular))).status != "ok":
                await asyncio.sleep(0.1)
        for down in case.down:
            await until_breaker(client, system, down, 0)


async def until_breaker(client: RecallClient, system: System, name: str, is_open: int) -> None:
    """Ask until the worker says this of its breaker."""
    sample = f'recall_breaker_open{{dependency="{name}",kind="recall"}} {is_open}.0'
    async with asyncio.timeout(WITHIN_S):
        while sample not in page(system):
            await client.ask(ask(uuid.uuid4().hex))


async def nobody_waits(client: RecallClient, system: System) -> None:
    """For an event that cannot be seen: with its breaker open, Redis is not asked for it."""

    def waits(result: str) -> float:
        sample = f'recall_event_waits_total{{result="{result}"}} '
        return sum(float(line.removeprefix(sample)) for line in page(system).splitlines() if line.startswith(sample))

    before = {result: waits(result) for result in ("unavailable", "timed_out")}
    answer = await in_time(client, ask("regular", after_event_id="never"))
    assert answer.reasons[0] == "features_unavailable"
    assert {result: waits(result) - count for result, count in before.items()} == {"unavailable": 1, "timed_out": 0}


def page(system: System) -> str:
    """The metrics of the recall worker."""
    port = next(state.web_port for state in system.workers.states if state.kind == "recall")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as found:
        text: str = found.read().decode()
        return text


async def until_gone(client: RecallClient, item_id: str) -> None:
    async with asyncio.timeout(WITHIN_S):
        while item_id in (await client.ask(ask(uuid.uuid4().hex, k=1000))).item_ids:
            await asyncio.sleep(0.05)


def check(case: Case, answers: list[CandidateList], before: CandidateList, gone: str) -> None:
    """The answers to regular and newcomer, each without and with a filter."""
    status = "degraded" if case.reasons else "ok"
    for answer in answers:
        assert answer.status == status, answer
        assert gone not in answer.item_ids
        if case.reasons:
            assert answer.reasons == case.reasons
    plain, filtered = answers[0], answers[1]
    for answer, source in zip(answers, (case.regular, "popular", case.newcomer, "popular"), strict=True):
        if case.reasons:
            assert set(answer.sources) == {source}
    assert len(answers[2].item_ids) > 0
    if case.reasons and "redis" not in case.down:
        assert LOVED not in plain.item_ids  # seen
        assert LOVED not in filtered.item_ids
    if case.regular == "cached":
        assert plain.item_ids == [item_id for item_id in before.item_ids if item_id != gone]
    if case.newcomer == "popular":
        assert answers[2].item_ids[0] == LOVED


async def activity_goes_on(settings: Settings, sender: Sender, user: str) -> None:
    """A click reaches the user's record meanwhile."""
    event = click(user, "film-9")
    await sender.activities([event])
    table = RedisUserTable(connect(settings), settings)
    async with asyncio.timeout(WITHIN_S):
        while True:
            (data,) = await table.records([user])
            if data is not None and hash64(event.event_id) in UserRecord.decode(data).rows()["event"]:
                break
            await asyncio.sleep(0.05)
    await table.close()
