"""Values that no tower takes, in requests and profiles: they are answered, and no other request of a batch suffers."""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from models.columns import RequestColumns, UserFeatures
from schemas import codec
from schemas.activity import UserActivity
from schemas.records import UserRecord
from tests.integration.recall_system import DATASET, System, ask
from tests.moods import fit_moody
from workers.features.cached import CachedFeatures
from workers.features.memory import MemoryFeatureSource
from workers.merge import merge
from workers.pipelines.admission import Incoming
from workers.pipelines.recall import RecallPipeline
from workers.pipelines.sourcing import Asking, Sourcing
from workers.ports import UserChange

FIELDS = """
[context]
mood = { kind = "category" }
size = { kind = "number" }
hour = { kind = "bucket", edges = [6, 12] }
tags = { kind = "multi", source = "shop" }
[profile.income]
kind = "number"
"""
STRANGE: list[dict[str, Any]] = [
    {"size": 1e39},
    {"size": -1e300, "hour": 1e39},
    {"size": "310"},
    {"size": None},
    {"size": True},
    {"size": [1, {"a": 2}]},
    {"hour": {"a": 1}},
    {"tags": ["a", ""]},
    {"tags": {"a": [1]}},
    {"size": 2**63 - 1, "tags": 1e39},
]


def as_sent(incoming: Incoming) -> Incoming:
    """The request as its bytes in Kafka give it."""
    return Incoming(codec.decode_request(msgspec.json.encode(incoming.request)), incoming.taken_ms)


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[System]:
    system = System(fit_moody(DATASET, tmp_path, FIELDS))
    await system.fill()
    yield system
    await system.tower.close()


def pipeline_of(system: System) -> RecallPipeline:
    """With a source that knows nobody."""
    fields = system.bundle.spec.sourced["shop"]
    features = CachedFeatures(MemoryFeatureSource({}), list(fields), ttl_ms=0, size=10)
    return system.pipeline(sourcing=Sourcing({"shop": Asking("features.shop", features, fields, 100)}))


@pytest.mark.filterwarnings("error::RuntimeWarning")
async def test_requests_are_answered_as_if_they_had_no_such_value(system: System) -> None:
    contexts = [{"mood": "even"} | strange for strange in ({}, *STRANGE)]
    pipeline = pipeline_of(system)
    (expected,) = await pipeline.run([ask(context={"mood": "even"})])
    answers = await pipeline.run([as_sent(ask(context=context)) for context in contexts])
    for context, answer in zip(contexts, answers, strict=True):
        assert (answer.status, answer.reasons) == ("ok", ["feature_defaulted"]), context
        assert answer.item_ids == expected.item_ids, context


@pytest.mark.filterwarnings("error::RuntimeWarning")
async def test_a_user_with_such_a_value_is_answered_by_the_towers(system: System) -> None:
    event = UserActivity(event_id="p", user_id="rich", action="profile", timestamp_ms=1, attributes={"income": 1e39})
    event = codec.decode_activity(msgspec.json.encode(event), record_timestamp_ms=2)
    merged = merge(UserRecord(), [event], frozenset())
    await system.users.write([UserChange("rich", b"", merged.record.with_token(bytes(8)).encode(), merged.seen)])
    pipeline = pipeline_of(system)
    rich, known, nobody = await pipeline.run([ask(user, context={"mood": "odd"}) for user in ("rich", "known", "new")])
    assert [answer.status for answer in (rich, known, nobody)] == ["ok"] * 3
    assert rich.item_ids == nobody.item_ids
    assert set(rich.sources) == set(nobody.sources)


@pytest.mark.filterwarnings("ignore:overflow")
async def test_an_extractor_that_overflows_on_one_degrades_that_request_alone(tmp_path: Path) -> None:
    def sizes(_: UserFeatures, requests: RequestColumns) -> Mapping[str, Any]:
        found = [float(context.get("size") or 0) for context in requests.contexts]
        return {"of": np.array(found).astype(np.float32)[:, None]}

    declared = f'{FIELDS}[extractors.sizes]\nversion = "1"\noutputs.of = 1\n'
    system = System(fit_moody(DATASET, tmp_path, declared, {"sizes": sizes}))
    await system.fill()
    try:
        contexts = [{}, *STRANGE[:3], {"size": 7}]
        answers = await pipeline_of(system).run([as_sent(ask(context=context)) for context in contexts])
    finally:
        await system.tower.close()
    assert [answer.status for answer in answers] == ["ok", "degraded", "degraded", "ok", "ok"]
    assert [answer.sources for answer in answers[1:3]] == [["popular"] * 10] * 2
