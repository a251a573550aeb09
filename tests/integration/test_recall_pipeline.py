"""The six steps when something is missing: every request is answered, in time, and says what was wrong."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import numpy as np
import pytest

from models import signature
from models.bundle import Bundle
from models.datasets.generated import generate
from models.tensors import item_inputs
from schemas.activity import UserActivity
from schemas.recall import RecallRequest
from schemas.records import ItemRecord, UserRecord
from tests.conftest import Stack
from tests.e2e.conftest import fit_small
from workers.clock import SystemClock
from workers.dependencies import Dependencies
from workers.errors import DependencyUnavailable
from workers.index.memory import MemoryItemIndex
from workers.index.milvus_collection import open_index
from workers.index.schema import Collection
from workers.local.process import free_ports
from workers.merge import merge
from workers.metrics import Metrics
from workers.pipelines.opening import OpeningRecall
from workers.pipelines.recall import Incoming, RecallPipeline, StepTimeouts, View
from workers.ports import IndexRows, ItemIndex, Tower, UserChange, UserTable
from workers.settings import Settings
from workers.stores.connect import connect
from workers.stores.item_memory import MemoryItemTable
from workers.stores.user_memory import MemoryUserTable
from workers.stores.user_redis import RedisUserTable
from workers.stores.vector_cache import VectorCache
from workers.towers.onnx import OnnxTower

ITEMS = 60
TIMEOUTS = StepTimeouts(store_ms=400, tower_ms=400, index_ms=400)


@dataclass
class Parts:
    bundle: Bundle
    users: UserTable
    vectors: VectorCache
    tower: Tower
    index: ItemIndex

    def pipeline(self, **others: object) -> RecallPipeline:
        parts = {"users": self.users, "tower": self.tower, "index": self.index} | others
        view = View(self.bundle.encoding, self.bundle.dim, self.bundle.version, "c")
        towers_and_tables = (parts["users"], self.vectors, parts["tower"], parts["index"])
        return RecallPipeline(view, *towers_and_tables, SystemClock(), TIMEOUTS, Dependencies("recall", Metrics()))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return fit_small(generate(items=ITEMS, users=60, events=2500), tmp_path_factory.mktemp("bundles"))


@pytest.fixture
async def parts(bundle: Bundle) -> AsyncIterator[Parts]:
    """Everything in memory but the tower, which is the real one; one user has a history."""
    dataset = generate(items=ITEMS, users=60, events=2500)
    dim = bundle.dim
    tower = OnnxTower(bundle.user_tower, signature.user_inputs(bundle.encoding, dim), signature.user_outputs(dim), 1000)
    items = OnnxTower(bundle.item_tower, signature.item_inputs(bundle.encoding), signature.item_outputs(dim), 1000)
    outputs = items.run(item_inputs(dataset.item_ids, dataset.attributes, bundle.encoding))
    index = MemoryItemIndex(Collection("c", dim, bundle.metric, bundle.version))
    await index.upsert(IndexRows(dataset.item_ids, outputs["item_embedding"], dataset.attributes))
    table = MemoryItemTable(dim)
    rows = list(zip(dataset.item_ids, outputs["history_embedding"], strict=True))
    records = [ItemRecord(i, 0, n, history_vector=v.tobytes()) for n, (i, v) in enumerate(rows)]
    await table.write(records, [None] * len(records))
    users = MemoryUserTable()
    event = UserActivity(
        event_id="e", user_id="known", action="rate", value=5.0, item_id="film-3", timestamp_ms=1_700_000_000_000
    )
    merged = merge(UserRecord(), [event], frozenset())
    record = merged.record.with_token(b"12345678").encode()
    await users.write([UserChange("known", b"", record, merged.seen)])
    yield Parts(bundle, users, VectorCache(table, dim), tower, index)
    await tower.close()
    await items.close()


def ask(user_id: str = "known", *, taken_ms: int | None = None, **fields: object) -> Incoming:
    values = {"request_id": f"r-{user_id}", "user_id": user_id, "k": 10, "timeout_ms": 10_000} | fields
    return Incoming(RecallRequest(**values), SystemClock().now_ms() if taken_ms is None else taken_ms)


class Broken:
    """A dependency that fails as adapters fail, or never answers: each port's one method that recall calls."""

    def __init__(self, *, hangs: bool = False) -> None:
        self._hangs = hangs

    async def _fail(self, *_: object) -> None:
        if self._hangs:
            await asyncio.Event().wait()
        raise DependencyUnavailable("test", "it is broken")

    read = embed = search = _fail


async def test_all_is_well(parts: Parts) -> None:
    known, unknown = await parts.pipeline().run([ask(), ask("nobody")])
    assert (known.status, known.reasons) == ("ok", [])
    assert (unknown.status, unknown.reasons) == ("ok", ["cold_start"])
    assert "film-3" not in known.item_ids
    assert known.removed.seen <= 1
    assert len(known.item_ids) == len(unknown.item_ids) == 10


async def test_a_batch_is_the_same_as_its_requests_one_by_one(parts: Parts) -> None:
    pipeline, now_ms = parts.pipeline(), SystemClock().now_ms()
    batch = [ask("known" if n % 3 else f"u{n}", taken_ms=now_ms, k=5 + n) for n in range(20)]
    together = await pipeline.run(batch)
    for incoming, answer in zip(batch, together, strict=True):
        (alone,) = await pipeline.run([incoming])
        assert alone.item_ids == answer.item_ids
        np.testing.assert_allclose(alone.scores, answer.scores, atol=1e-5)


@pytest.mark.parametrize("hangs", [False, True], ids=["fails", "hangs"])
@pytest.mark.parametrize(
    ("part", "reason", "length"),
    [("users", "features_unavailable", 10), ("tower", "model_unavailable", 0), ("index", "index_unavailable", 0)],
)
async def test_a_broken_part_gives_a_degraded_answer_in_time(
    parts: Parts, part: str, reason: str, length: int, hangs: bool
) -> None:
    answers = await parts.pipeline(**{part: Broken(hangs=hangs)}).run([ask(), ask("nobody")])  # late: `expired`
    assert [(answer.status, answer.reasons, len(answer.item_ids)) for answer in answers] == [
        ("degraded", [reason], length)
    ] * 2


async def test_everything_broken_is_still_an_answer(parts: Parts) -> None:
    broken = {"users": Broken(), "tower": Broken(), "index": Broken()}
    (answer,) = await parts.pipeline(**broken).run([ask()])
    assert (answer.status, answer.item_ids) == ("degraded", [])
    assert set(answer.reasons) == {"features_unavailable", "model_unavailable"}


async def test_one_in_a_hurry_does_not_cut_short_the_others(parts: Parts) -> None:
    hurried, patient = await parts.pipeline(users=Broken(hangs=True)).run(
        [ask("a", timeout_ms=150), ask("b", timeout_ms=20_000)]
    )
    assert hurried.status in {"degraded", "expired"}
    assert (patient.status, len(patient.item_ids)) == ("degraded", 10)


async def test_a_request_that_came_too_late_is_expired_without_work(parts: Parts) -> None:
    late = ask(taken_ms=SystemClock().now_ms() - 13_000)
    (answer,) = await parts.pipeline(users=Broken(hangs=True)).run([late])
    assert (answer.status, answer.reasons) == ("expired", ["deadline_exceeded"])


async def test_a_user_vector_that_is_not_finite_degrades_its_own_request_alone(parts: Parts) -> None:
    class Half:
        async def embed(self, inputs):
            outputs = await parts.tower.embed(inputs)
            outputs["user_embedding"][0] = np.nan
            return outputs

    first, second = await parts.pipeline(tower=Half()).run([ask("a"), ask("b")])
    assert (first.status, first.reasons[-1]) == ("degraded", "model_unavailable")
    assert (second.status, len(second.item_ids)) == ("ok", 10)


async def test_a_record_of_another_format_degrades_its_own_request_alone(parts: Parts) -> None:
    await parts.users.write([UserChange("future", b"", b"\xff" + bytes(60))])
    future, known = await parts.pipeline().run([ask("future", after_event_id="e"), ask()])
    assert (future.status, future.reasons) == ("degraded", ["features_unavailable"])
    assert known.status == "ok"


async def test_a_redis_that_is_down(stack: Stack, parts: Parts) -> None:
    nowhere = stack.settings(redis_url=f"redis://127.0.0.1:{free_ports(1)[0]}/0")
    users = RedisUserTable(connect(nowhere), nowhere)
    (answer,) = await parts.pipeline(users=users).run([ask()])
    await users.close()
    assert (answer.status, answer.reasons) == ("degraded", ["features_unavailable"])
    assert len(answer.item_ids) == 10


async def test_until_the_pipeline_is_open_answers_are_degraded_and_name_what_is_missing(
    settings: Settings, parts: Parts
) -> None:
    metrics = Metrics()
    collection = Collection(settings.collection("none"), parts.bundle.dim, "IP", "none")

    async def opened() -> RecallPipeline:
        await open_index(settings, collection)  # the items worker has not made it yet
        raise AssertionError("it does not exist")

    opening = OpeningRecall(opened, SystemClock(), Dependencies("recall", metrics))
    await opening.try_open()
    late, asked = await opening.run([ask("late", taken_ms=0), ask()])
    assert (asked.status, asked.reasons, asked.item_ids) == ("degraded", ["index_unavailable"], [])
    assert (late.status, late.reasons) == ("expired", ["deadline_exceeded"])
    assert metrics.registry.get_sample_value(
        "recall_dependency_failures_total", {"kind": "recall", "dependency": "milvus"}
    )


async def test_requests_reach_the_pipeline_once_it_is_open(parts: Parts) -> None:
    failures = [DependencyUnavailable("redis", "not yet"), DependencyUnavailable("milvus", "nor now")]

    async def opened() -> RecallPipeline:
        if failures:
            raise failures.pop(0)
        return parts.pipeline()

    dependencies = Dependencies("recall", Metrics())
    opening = OpeningRecall(opened, SystemClock(), dependencies)
    await opening.try_open()
    assert not opening.is_open
    assert "not yet" in (dependencies.missing() or "")
    (answer,) = await opening.run([ask()])
    assert answer.reasons == ["features_unavailable"]
    await opening.keep_opening()
    (answer,) = await opening.run([ask()])
    assert (answer.status, len(answer.item_ids)) == ("ok", 10)
    assert dependencies.missing() is None
