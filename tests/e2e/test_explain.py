"""`recall explain`: the steps of one answer as they were, and what keeps an item out of a list."""

import asyncio
import gc
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import numpy as np
import pytest

from models import signature
from models.tensors import item_inputs
from schemas.recall import FilterClause
from tests.e2e.conftest import Live
from tests.e2e.test_live import click, film, known, listed, new, request
from workers.client import RecallClient
from workers.explain import Explainer, open_explainer
from workers.live.sender import Sender
from workers.local.workers import environment
from workers.pipelines.rows import Findings
from workers.towers.onnx import OnnxTower

SCENES = {"home": {"sources": {"tower": {}, "session": {}, "popular": {}}}}


@pytest.fixture
async def explainer(live: Live) -> AsyncIterator[Explainer]:
    async with AsyncExitStack() as opened:
        yield await open_explainer(live.settings, opened)


@pytest.fixture
async def reader(client: RecallClient, sender: Sender) -> str:
    """A user who has liked three films, a second apart."""
    user = new("reader")
    now_ms = click(user, "film-3").timestamp_ms
    clicks = [
        click(user, item_id, timestamp_ms=now_ms - ago_ms)
        for item_id, ago_ms in (("film-3", 2_000), ("film-7", 1_000), ("film-11", 0))
    ]
    await sender.activities(clicks)
    await known(client, user, clicks[-1].event_id)
    return user


async def test_it_shows_the_record_the_inputs_and_the_list_that_a_worker_gives(
    live: Live, client: RecallClient, explainer: Explainer, reader: str
) -> None:
    as_of_ms = click(reader, "film-1").timestamp_ms + 60_000
    answer = await client.ask(request(reader, timestamp_ms=as_of_ms))
    told = await explainer.explain(request(reader, timestamp_ms=as_of_ms))
    assert told["answer"]["item_ids"] == answer.item_ids
    assert [event["item_id"] for event in told["user"]["events"]] == ["film-11", "film-7", "film-3"]
    assert told["user"]["events"][0]["action"] == "rate"
    assert told["user"]["event_count"] == told["user"]["seen_items"] == 3
    inputs = told["inputs"]
    assert set(inputs) == set(signature.user_inputs(live.bundle.encoding, live.bundle.dim))
    assert inputs["event_count"]["values"] == 3
    assert inputs["history_vectors"]["shape"] == [live.bundle.spec.history.length, live.bundle.dim]
    assert [value > 0 for value in inputs["history_vectors"]["values"][-4:]] == [False, True, True, True]
    kept = [each["item_id"] for each in told["sources"]["tower"] if each["removed"] is None]
    assert kept[: len(answer.item_ids)] == answer.item_ids
    json.dumps(told)


async def test_an_item_has_the_exact_rank_of_all_scores(live: Live, explainer: Explainer, reader: str) -> None:
    at_ms = click(reader, "film-1").timestamp_ms + 60_000  # both look at the same moment: gaps are features
    told = await explainer.explain(request(reader, timestamp_ms=at_ms), "film-42")
    row, _ = await explainer.trace(request(reader, timestamp_ms=at_ms))
    tower = OnnxTower(
        live.bundle.item_tower, signature.item_inputs(live.bundle.encoding), signature.item_outputs(32), 1000
    )
    ids = [update.item_id for update in live.dataset.items(live.dataset.test_ms)]
    attributes = [update.attributes or {} for update in live.dataset.items(live.dataset.test_ms)]
    vectors = tower.run(item_inputs(ids, attributes, live.bundle.encoding))["item_embedding"]
    await tower.close()
    assert row is not None
    scores = vectors @ row.query.embedding
    better = [i for i, score in zip(ids, scores.tolist(), strict=True) if score > scores[ids.index("film-42")]]
    others = told["item"]["exact_rank"] - 1 - len(better)
    assert 0 <= others <= 40, "items of other tests may stand between"
    assert told["item"]["score"] == pytest.approx(float(scores[ids.index("film-42")]), abs=1e-3)
    assert told["item"]["ann_rank"] == told["item"]["exact_rank"]  # few items: every search is exact
    assert np.isfinite(told["item"]["score"])


async def test_what_keeps_an_item_out_is_named(
    client: RecallClient, sender: Sender, explainer: Explainer, reader: str
) -> None:
    told = await explainer.explain(request(reader))
    first = told["answer"]["item_ids"][0]
    gone = film(new("gone"))
    await sender.item(gone)
    await listed(client, reader, gone.item_id)
    await sender.item(film(gone.item_id, op="delete", attributes=None))
    await listed(client, reader, gone.item_id, present=False)

    async def verdict(item_id: str, **fields: object) -> str:
        return (await explainer.explain(request(reader, **fields), item_id))["item"]["verdict"]

    assert await verdict(first) == "in the list, place 1"
    assert await verdict("film-3") == "taken out as seen"
    assert await verdict(first, exclude_items=[first]) == "taken out as excluded"
    where = [FilterClause(field="year", op="lt", value=1900)]
    assert await verdict(first, filter=where) == "the filter leaves it out: year lt 1900.0"
    assert await verdict("no-such-film") == "the item table does not know it"
    assert await verdict(gone.item_id) == "the item table does not know it"
    last = (await explainer.explain(request(reader, k=1000)))["answer"]["item_ids"][-1]
    few = await explainer.explain(request(reader, k=1), last)
    assert few["item"]["found_by"] == {}, "the search goes not as deep"
    assert few["item"]["verdict"] == f"no source finds it: exact rank {few['item']['exact_rank']}"
    assert few["item"]["exact_rank"] >= 300


async def test_each_source_has_its_list(live: Live, reader: str) -> None:
    settings = live.settings.model_copy(update={"scenes": live.settings.__class__(scenes=SCENES).scenes})
    async with AsyncExitStack() as opened:
        explainer = await open_explainer(settings, opened)
        told = await explainer.explain(request(reader, scene="home"), "film-11")
    assert set(told["sources"]) == {"tower", "session", "popular"}
    assert told["sources"]["popular"]
    assert told["item"]["found_by"].keys() <= told["sources"].keys()


async def test_what_was_found_is_let_go_of_though_nobody_asks_again(explainer: Explainer, reader: str) -> None:
    def kept() -> list[Findings]:
        gc.collect()  # of explainers that are closed
        return [each for each in gc.get_objects() if isinstance(each, Findings)]

    await explainer.explain(request(reader))
    assert kept()
    async with asyncio.timeout(30):
        while kept():
            await asyncio.sleep(0.1)


async def test_it_prints_for_a_person_and_as_json(live: Live, reader: str) -> None:
    async def explain(*arguments: str) -> str:
        command = ("-m", "workers.cli.main", "explain", reader, "--item", "film-3", *arguments)
        env = os.environ | environment(live.settings)
        process = await asyncio.create_subprocess_exec(sys.executable, *command, env=env, stdout=subprocess.PIPE)
        out, _ = await process.communicate()
        assert process.returncode == 0
        return out.decode()

    shown = await explain()
    for line in ("3 events with an item", "inputs of the user tower", "history_vectors", "taken out as seen"):
        assert line in shown, shown
    told = json.loads(await explain("--json"))
    assert told["item"]["removed"] == "seen"
    assert told["answer"]["status"] == "ok"
