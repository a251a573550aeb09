"""What `recall model dataset` reads from Kafka is, byte for byte, what a recall worker gave its tower just then."""

import asyncio
import json
import os
import sys
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from models import signature
from models.tensors import Inputs, item_inputs
from schemas.activity import UserActivity
from tests.e2e.conftest import Live
from tests.e2e.test_live import known, new, now_ms, request
from tests.unit.test_model_dataset import columns
from workers import views
from workers.client import RecallClient
from workers.clock import SystemClock
from workers.dependencies import Dependencies
from workers.live.sender import Sender
from workers.local.workers import environment
from workers.metrics import Metrics
from workers.pipelines.admission import Incoming
from workers.pipelines.recall import RecallPipeline, StepTimeouts
from workers.ports import Float32, Tower
from workers.recall_parts import Tools, open_recall_parts
from workers.stores.connect import connect
from workers.towers.onnx import open_tower

STEPS = 70  # more than a record holds
PATIENT = StepTimeouts(10_000, 10_000, 10_000)


class Listening:
    """The user tower, and what it was given last."""

    def __init__(self, tower: Tower) -> None:
        self._tower = tower
        self.given: Inputs = {}

    async def embed(self, inputs: Inputs) -> dict[str, Float32]:
        self.given = inputs
        return await self._tower.embed(inputs)


def steps(user: str, n: int) -> list[list[UserActivity]]:
    """Seconds of a user's: one film or two, or a change of profile; films nobody knows, events that come late."""
    rng = np.random.default_rng(n)
    begin_ms = now_ms() - 7_200_000 + 137 * n
    found = []
    for step in range(STEPS if n == 0 else 8):
        at_ms = begin_ms + 1000 * int(step * 20 + rng.integers(0, 15)) - (50_000 if step == 6 else 0)
        ids = [f"film-{film}" for film in rng.integers(0, 410, int(rng.integers(1, 3)))]
        values = rng.choice([1.0, 3.0, 4.0, 5.0], len(ids)).tolist()
        facts = {"attributes": {"age": str(int(rng.integers(1, 7))), "gender": "F"}} if step % 3 == n % 3 else {}
        found.append(
            [
                UserActivity(
                    event_id=new("e"),
                    user_id=user,
                    action="rate",
                    item_id=item_id,
                    value=value,
                    timestamp_ms=at_ms,
                    **facts,
                )
                for item_id, value in zip(ids, values, strict=True)
            ]
        )
    return found


async def test_rows_are_what_a_worker_gives_its_tower(
    live: Live, client: RecallClient, sender: Sender, tmp_path: Path
) -> None:
    given: dict[str, Inputs] = {}
    users = [new(f"d{n}") for n in range(4)]
    async with AsyncExitStack() as opened:
        redis = connect(live.settings)
        opened.push_async_callback(redis.aclose)
        tools = Tools(SystemClock(), Dependencies("recall", Metrics()), Metrics())
        view = await views.read_active(live.settings)
        assert view is not None
        ready = await open_recall_parts(live.settings, (live.bundle, view), redis, tools, opened)
        tower = Listening(ready.tower)
        parts = replace(ready.parts, tower=tower)
        pipeline = RecallPipeline(ready.view, parts, tools.clock, PATIENT, tools.dependencies)
        for n, user in enumerate(users):
            for step in steps(user, n):
                asked = request(user, timestamp_ms=step[0].timestamp_ms, timeout_ms=30_000)
                await pipeline.trace(Incoming(asked, tools.clock.now_ms()))
                given |= dict.fromkeys((event.event_id for event in step), tower.given)
                await sender.activities(step)
                await known(client, user, step[-1].event_id)

    to = tmp_path / "samples"
    command = (
        "-m",
        "workers.cli.main",
        "model",
        "dataset",
        "--bundle",
        str(live.bundle.path),
        "--to",
        str(to),
        "--json",
    )
    env = os.environ | environment(live.settings)
    process = await asyncio.create_subprocess_exec(sys.executable, *command, env=env, stdout=asyncio.subprocess.PIPE)
    told = json.loads((await process.communicate())[0])
    assert told["bundle"] == live.bundle.version
    found = columns(to / "samples.parquet")
    vectors = history_vectors(live, to)
    mine = [row for row, user in enumerate(found["user_id"].tolist()) if user in users]
    assert len(mine) > 50
    for row in mine:
        served = given[found["event_id"][row]]
        for name in told["inputs"]:
            assert served[name].dtype == found[name].dtype, name
            assert served[name].tobytes() == found[name][row].tobytes(), (name, row)
        np.testing.assert_allclose(served["history_vectors"][0], vectors[found["history_items"][row]], atol=1e-6)


def history_vectors(live: Live, to: Path) -> Float32:
    """float32[M + 1, D]: of the data set's items, and zeros behind them for those that it does not have."""
    items = columns(to / "items.parquet")
    attributes = [json.loads(each) for each in items["attributes"]]
    tower = open_tower(live.bundle, "item", 10_000)
    rows = tower.run(item_inputs(items["item_id"].tolist(), attributes, live.bundle.encoding))
    vectors = rows[signature.HISTORY_EMBEDDING]
    return np.vstack([vectors, np.zeros_like(vectors[:1])])
