"""`recall explain --item` of a scene with caps: whether a cap keeps the item out, or better ones do."""

from typing import Any

import pytest

from schemas.recall import RecallRequest
from tests.integration.recall_system import System
from workers.clock import SystemClock
from workers.explain import Explainer
from workers.recall_parts import RecallParts

VARIED = {"varied": {"at_most": {"genres": 2}}}


@pytest.fixture
def explainer(system: System) -> Explainer:
    pipeline = system.pipeline(scenes=VARIED)
    view, parts = pipeline._view, pipeline._parts
    ready = RecallParts(view, parts, system.index, system.popular, pipeline, system.tower, probes={})
    return Explainer(ready, SystemClock())


async def test_a_cap_that_keeps_an_item_out_is_named_and_only_where_it_does(
    system: System, explainer: Explainer
) -> None:
    genres = {i: each["genres"] for i, each in zip(system.dataset.item_ids, system.dataset.attributes, strict=True)}

    async def explain(item_id: str | None = None) -> dict[str, Any]:
        request = RecallRequest(request_id="r", user_id="known", scene="varied", k=3, timeout_ms=60_000)
        return await explainer.explain(request, item_id)

    listed = (await explain())["answer"]["item_ids"]
    shown = [genre for item_id in listed for genre in genres[item_id]]
    full = {genre for genre in shown if shown.count(genre) == 2}
    verdicts: dict[bool, set[str]] = {True: set(), False: set()}
    for item_id in set(genres) - {*listed, "film-3"}:
        item = (await explain(item_id))["item"]
        assert item["full_cap"] == ("genres" if full & set(genres[item_id]) else None)
        verdicts[bool(full & set(genres[item_id]))].add(item["verdict"])
    assert verdicts == {True: {"the cap on genres leaves it out"}, False: {"found, but not among the best"}}
    first = (await explain(listed[0]))["item"]
    assert (first["verdict"], first["full_cap"]) == ("in the list, place 1", None)
    assert len(listed) == 3
