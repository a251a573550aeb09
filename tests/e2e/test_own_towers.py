"""The towers of docs/examples/own_towers, trained, packed and served by a worker as docs/towers.md tells."""

import asyncio
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest

from models.bundle import Bundle, load_bundle
from models.datasets import Dataset
from models.datasets.generated import generate
from schemas.activity import UserActivity
from schemas.recall import CandidateList, RecallRequest
from tests.conftest import Stack
from tests.e2e.cli import Place
from tests.e2e.conftest import load
from workers import topics
from workers.client import RecallClient
from workers.live.sender import Sender
from workers.local.ready import wait_ready
from workers.local.workers import WorkerProcesses, environment
from workers.settings import Settings

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "own_towers"
WITHIN_S = 60.0
LIKED, SEEN = 5.0, 2.0
AS_OF_MS = 10_000
UNREAD = {"build.py": "history_age_s, event_count, gap_s", "pytorch_tower.py": "event_count, gap_s"}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return generate(items=150, users=80, events=4000)


@pytest.fixture(scope="module", params=["build.py", "pytorch_tower.py"] if find_spec("torch") else ["build.py"])
def script(request: pytest.FixtureRequest) -> str:
    """Without PyTorch; where the trainers' environment is, also with it."""
    return str(request.param)


@pytest.fixture(scope="module")
def towers(script: str, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the script writes."""
    folder = tmp_path_factory.mktemp("towers")
    for name, events in (("items", dataset.items()), ("activity", dataset.activities(range(len(dataset.user))))):
        (folder / f"{name}.jsonl").write_bytes(b"".join(msgspec.json.encode(event) + b"\n" for event in events))
    files = [str(folder / "items.jsonl"), str(folder / "activity.jsonl"), str(folder)]
    subprocess.run([sys.executable, str(EXAMPLE / script), *files], check=True, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def settings(towers: Path, stack: Stack, module_namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return stack.settings(namespace=module_namespace, data_dir=tmp_path_factory.mktemp("own") / "data")


@pytest.fixture(scope="module")
def bundle(settings: Settings, script: str, towers: Path) -> Bundle:
    """Packed and made active by the command."""
    asyncio.run(topics.apply(settings))
    place = Place(settings.data_dir.parent, environment(settings))
    files = ["--user-tower", str(towers / "user.onnx"), "--item-tower", str(towers / "item.onnx")]
    words = ["--spec", str(EXAMPLE / "features.toml"), "--vocabularies", str(towers / "vocabularies.json")]
    done = place.recall("model", "pack", *files, *words, "--json")
    assert done.code == 0, done
    said = msgspec.json.decode(done.out)
    assert said["ok"]
    assert {check["result"] for check in said["checks"]} == {"ok"}
    assert [note.partition(".onnx ")[2] for note in said["notes"]] == [
        f"does not read {UNREAD[script]}",
        "has no history_embedding: item_embedding stands for it",
    ]
    verified = place.recall("model", "verify", said["version"])
    assert verified.code == 0, verified
    return load_bundle(Path(said["path"]))


@pytest.fixture(scope="module")
def served(settings: Settings, bundle: Bundle, dataset: Dataset) -> Iterator[Settings]:
    """One process of all kinds, the catalogue in."""
    workers = WorkerProcesses(settings, one_process=True)
    workers.start()
    try:
        wait_ready(workers)
        asyncio.run(load(settings, dataset))
        asyncio.run(until_listed(settings, set(dataset.item_ids)))
        yield settings
        assert workers.dead() is None, "a worker ended during the test"
    finally:
        workers.stop()


def requested(k: int, **fields: Any) -> RecallRequest:
    request_id = uuid.uuid4().hex
    return RecallRequest(request_id=request_id, user_id="new", timestamp_ms=AS_OF_MS, k=k, timeout_ms=20_000, **fields)


async def until_listed(settings: Settings, item_ids: set[str]) -> None:
    """A search is a moment behind a write, and twenty are found before the best twenty are."""
    async with RecallClient(settings) as client, asyncio.timeout(WITHIN_S):
        while set((await client.ask(requested(1000))).item_ids) != item_ids:
            await asyncio.sleep(0.05)


async def ask(client: RecallClient, after: str | None = None) -> CandidateList:
    end_at = time.monotonic() + WITHIN_S
    while True:
        answer = await client.ask(requested(20, after_event_id=after))
        if answer.status == "ok" and len(answer.item_ids) == 20:
            return answer
        assert time.monotonic() < end_at, answer


async def clicks(served: Settings, dataset: Dataset) -> tuple[CandidateList, CandidateList]:
    """A new user's list, and the one after a film was liked and another rated."""
    async with RecallClient(served) as client, Sender(served) as sender:
        before = await ask(client)
        rated = zip(dataset.item_ids[3:5], (LIKED, SEEN), strict=True)
        events = [
            UserActivity(
                event_id=f"e{n}", user_id="new", action="rate", timestamp_ms=1000 * n, item_id=item_id, value=value
            )
            for n, (item_id, value) in enumerate(rated)
        ]
        await sender.activities(events)
        return before, await ask(client, after="e1")


def test_a_worker_serves_the_examples_towers(served: Settings, dataset: Dataset, towers: Path) -> None:
    before, after = asyncio.run(clicks(served, dataset))
    words = msgspec.json.decode((towers / "vocabularies.json").read_bytes())
    item_ids = words["item_ids"]
    item = onnxruntime.InferenceSession(towers / "item.onnx")
    genres = np.zeros((len(item_ids), len(words["values"]["item.genres"])), dtype=np.float32)
    (vectors,) = item.run(None, {"item_code": np.arange(len(item_ids)) + 1, "item_genres": genres})
    user = onnxruntime.InferenceSession(towers / "user.onnx")
    seen = [item_ids.index(item_id) for item_id in dataset.item_ids[3:5]]
    for answer, history, codes, ages_s in ((before, [], [], []), (after, seen, [1, 2], [10.0, 9.0])):
        inputs = {
            "history_vectors": np.zeros((1, 20, 32), dtype=np.float32),
            "history_codes": np.zeros((1, 20), dtype=np.int64),
            "history_age_s": np.zeros((1, 20), dtype=np.float32),
        }
        for column, values in zip(inputs.values(), (vectors[history], codes, ages_s), strict=True):
            column[0, 20 - len(history) :] = values
        (embedded,) = user.run(None, {node.name: inputs[node.name] for node in user.get_inputs()})
        scores = dict(zip(item_ids, (vectors @ embedded[0]).tolist(), strict=True))
        allowed = sorted((scores[item_id] for n, item_id in enumerate(item_ids) if n not in history), reverse=True)
        np.testing.assert_allclose([scores[item_id] for item_id in answer.item_ids], allowed[:20], atol=1e-5)
        np.testing.assert_allclose(answer.scores, allowed[:20], atol=1e-5)
    assert before.item_ids != after.item_ids
