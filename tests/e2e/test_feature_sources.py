"""A feature source over HTTP behind real workers, beside an extractor: only a value changes, and so does the list."""

import asyncio
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

from models.bundle import Bundle
from models.datasets.generated import generate
from schemas.recall import CandidateList, RecallRequest
from tests.conftest import PATIENT, PATIENT_MS, Stack
from tests.contract.feature_backends import started
from tests.e2e.conftest import load, prepare
from tests.moods import MOOD, fit_moody, share_of
from workers.client import RecallClient
from workers.doctor import features
from workers.doctor.findings import Level
from workers.explain import open_explainer
from workers.local.process import end, free_ports
from workers.local.ready import wait_ready
from workers.local.workers import WorkerProcesses, environment
from workers.settings import Settings

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs/examples/own_extractor"
CLOCK = '[extractors.clock]\nversion = "1"\noutputs.phase = 4\noutputs.recency = 3\n'
SERVER = ROOT / "deploy/examples/feature_server.py"
DATASET = generate(items=60, users=60, events=2500)
ENDS_WITHIN_S = 60.0
CHANGES_WITHIN_S = 30.0


@dataclass
class Shop:
    """The running system, the source's file, and its server."""

    settings: Settings
    bundle: Bundle
    file: Path
    port: int
    server: "subprocess.Popen[bytes]"

    def put(self, values: dict[str, dict[str, object]]) -> None:
        changing = self.file.with_suffix(".changing")
        changing.write_text(json.dumps(values))
        changing.rename(self.file)

    def serve(self) -> None:
        argv = [sys.executable, str(SERVER), str(self.file), "--port", str(self.port)]
        self.server = started(argv, self.file.with_suffix(".log"), self.port)


@pytest.fixture(scope="module")
def shop(stack: Stack, module_namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder, (port,) = tmp_path_factory.mktemp("shop"), free_ports(1)
    source = {"kind": "http", "url": f"http://127.0.0.1:{port}", "timeout_ms": PATIENT_MS, "cache_ttl_ms": 50}
    settings = stack.settings(
        **PATIENT,
        namespace=module_namespace,
        data_dir=folder / "data",
        reuse_ms=0,
        sources={"shop": source},
        extractors={"clock": "recall_clock:clock"},
    )
    paths = pytest.MonkeyPatch()
    paths.syspath_prepend(str(EXAMPLE))
    paths.setenv("PYTHONPATH", str(EXAMPLE), prepend=os.pathsep)
    code = import_module("recall_clock").clock
    bundle = fit_moody(DATASET, folder / "bundles", MOOD + CLOCK, {"clock": code})
    shop = Shop(settings, bundle, folder / "values.json", port, None)  # type: ignore[arg-type]  # started at once
    shop.put({})
    shop.serve()
    asyncio.run(prepare(settings, bundle))
    workers = WorkerProcesses(settings)
    workers.start()
    try:
        wait_ready(workers)
        asyncio.run(load(settings, DATASET))
        yield shop
        assert workers.dead() is None
    finally:
        workers.stop()
        end(shop.server, 5.0)
        paths.undo()
        print(workers.log("recall").read_text()[-4000:])


async def answers(client: RecallClient, user_id: str, until: str) -> CandidateList:
    """Ask until the list is of that mood."""
    stop_s = time.monotonic() + CHANGES_WITHIN_S
    while True:
        request = RecallRequest(request_id=uuid.uuid4().hex, user_id=user_id, k=10, timeout_ms=10_000)
        answer = await client.ask(request)
        if answer.item_ids and share_of(until, answer.item_ids) >= 0.7:
            return answer
        assert time.monotonic() < stop_s, answer
        await asyncio.sleep(0.05)


async def test_only_the_value_changes_and_so_does_the_list(shop: Shop) -> None:
    async with RecallClient(shop.settings) as client:
        unknown = await answers(client, "ann", "odd")
        assert (unknown.status, unknown.reasons) == ("ok", ["cold_start", "feature_defaulted"])
        shop.put({"ann": {"mood": "even"}})
        even = await answers(client, "ann", "even")
        assert (even.status, even.reasons) == ("ok", ["cold_start"])
        shop.put({"ann": {"mood": "odd"}})
        odd = await answers(client, "ann", "odd")
        assert (odd.status, odd.reasons) == ("ok", ["cold_start"])


async def test_explain_says_where_a_value_came_from(shop: Shop) -> None:
    shop.put({"eve": {"mood": "even"}})
    async with AsyncExitStack() as opened:
        explainer = await open_explainer(shop.settings, opened)
        asked = {"request_id": "r", "k": 5, "timeout_ms": 10_000}
        sourced = await explainer.explain(RecallRequest(user_id="eve", **asked))
        carried = await explainer.explain(RecallRequest(user_id="eve", context={"mood": "odd"}, **asked))
        nobody = await explainer.explain(RecallRequest(user_id="nobody", **asked))
        cached = await explainer.explain(RecallRequest(user_id="eve", **asked))
    assert sourced["features"] == {"mood": {"value": "even", "from": "shop"}}
    assert carried["features"] == {"mood": {"value": "odd", "from": "request"}}
    assert nobody["features"] == {"mood": {"value": "odd", "from": "default (shop: absent)"}}
    assert cached["features"]["mood"]["from"] in {"shop", "shop (cache)"}
    words = shop.bundle.encoding.vocabularies.values["context.mood"]
    assert sourced["inputs"]["context_mood"]["values"] == words.index("even") + 1
    printed = recall(shop.settings, "explain", "eve")
    assert printed.returncode == 0, printed.stderr
    assert "features that have a source" in printed.stdout


async def test_while_the_server_is_away_lists_come_with_the_default(shop: Shop) -> None:
    shop.put({"bob": {"mood": "even"}})
    async with RecallClient(shop.settings) as client:
        await answers(client, "bob", "even")
        end(shop.server, 5.0)
        away = await answers(client, "bob", "odd")
        assert (away.status, away.reasons) == ("ok", ["cold_start", "feature_defaulted"])
        (finding,) = await features.check(shop.settings, shop.bundle.spec)
        assert finding.level is Level.WARNING
        assert "its values count as their defaults meanwhile" in finding.line
        shop.serve()
        await answers(client, "bob", "even")
    (finding,) = await features.check(shop.settings, shop.bundle.spec)
    assert (finding.level, finding.line) == (Level.OK, "source 'shop' (http) answers: mood")


def test_a_worker_whose_source_is_not_configured_refuses_to_start(shop: Shop) -> None:
    settings = shop.settings.model_copy(update={"sources": {}})
    ended = recall(settings, "worker", "recall")
    assert ended.returncode == 2
    line = "context.mood of spec movielens comes from source 'shop', which the setting `sources` does not have"
    assert line in ended.stderr
    (finding,) = asyncio.run(features.check(settings, shop.bundle.spec))
    assert finding.level is Level.WRONG


def test_so_does_one_that_has_no_code_for_an_extractor(shop: Shop) -> None:
    ended = recall(shop.settings.model_copy(update={"extractors": {}}), "worker", "recall")
    assert ended.returncode == 2
    assert "the spec has an extractor 'clock', and there is no code for it" in ended.stderr


def recall(settings: Settings, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "workers.cli.main", *arguments],
        capture_output=True,
        text=True,
        cwd=settings.data_dir,
        env=os.environ | environment(settings),
        timeout=ENDS_WITHIN_S,
    )
