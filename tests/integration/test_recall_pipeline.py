"""The six steps when something is missing: every request is answered, in time, and says what was wrong."""

import time

import numpy as np
import pytest

from tests.conftest import Stack
from tests.integration.recall_system import PATIENT, Broken, System, ask, short
from workers.clock import SystemClock
from workers.dependencies import Dependencies
from workers.errors import DependencyUnavailable, RowRefused
from workers.index.milvus_collection import open_index
from workers.index.schema import Collection
from workers.local.process import free_ports
from workers.metrics import Metrics
from workers.pipelines.opening import OpeningRecall
from workers.pipelines.recall import RecallPipeline
from workers.ports import Hits, UserChange
from workers.settings import Settings
from workers.stores.connect import connect
from workers.stores.user_redis import RedisUserTable


async def test_all_is_well(system: System) -> None:
    known, unknown = await system.pipeline().run([ask(), ask("nobody")])
    assert (known.status, known.reasons) == ("ok", [])
    assert (unknown.status, unknown.reasons) == ("ok", ["cold_start"])
    assert "film-3" not in known.item_ids
    assert known.removed.seen <= 1
    assert len(known.item_ids) == len(unknown.item_ids) == 10


async def test_a_batch_is_the_same_as_its_requests_one_by_one(system: System) -> None:
    pipeline, now_ms = system.pipeline(), SystemClock().now_ms()
    batch = [ask("known" if n % 3 else f"u{n}", taken_ms=now_ms, k=5 + n) for n in range(20)]
    together = await pipeline.run(batch)
    for incoming, answer in zip(batch, together, strict=True):
        (alone,) = await pipeline.run([incoming])
        assert alone.item_ids == answer.item_ids
        np.testing.assert_allclose(alone.scores, answer.scores, atol=1e-5)


@pytest.mark.parametrize("hangs", [False, True], ids=["fails", "hangs"])
@pytest.mark.parametrize(
    ("part", "reason"),
    [("users", "features_unavailable"), ("tower", "model_unavailable"), ("index", "index_unavailable")],
)
async def test_a_broken_part_gives_a_degraded_answer_in_time(
    system: System, part: str, reason: str, hangs: bool
) -> None:
    pipeline = system.pipeline(**{part: Broken(hangs=hangs)}, timeouts=short(part) if hangs else PATIENT)
    known, unknown = await pipeline.run([ask(), ask("nobody")])
    for answer in (known, unknown):  # late: `expired`
        assert (answer.status, answer.reasons) == ("degraded", [reason])
        assert answer.sources == ["popular"] * 10
    assert unknown.item_ids[:2] == ["film-5", "film-3"]
    assert ("film-3" in known.item_ids) is (part == "users")  # seen, as far as that can be read


async def test_everything_broken_is_still_an_answer(system: System) -> None:
    broken = {"users": Broken(), "tower": Broken(), "index": Broken()}
    (answer,) = await system.pipeline(**broken).run([ask()])
    assert (answer.status, answer.reasons) == ("degraded", ["features_unavailable"])
    assert answer.item_ids[:2] == ["film-5", "film-3"]
    bare = System(system.bundle)  # nothing was ever read: an empty list is an answer too
    (answer,) = await bare.pipeline(**broken).run([ask()])
    assert (answer.status, answer.reasons, answer.item_ids) == ("degraded", ["features_unavailable"], [])


async def test_a_search_for_which_there_was_no_time_is_done_when_it_is_asked_again(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late:
        def __init__(self) -> None:
            self.searches = 0
            self.moved_s = 0.0

        def perf_counter(self):
            return time.perf_counter() + self.moved_s

        async def search(self, vectors, k, where=()):
            self.searches += 1
            if self.searches == 1:
                self.moved_s = 60.0  # it still ends within its own time
            ids = [f"item {n}" for n in range(k)]
            return Hits([ids] * len(vectors), [np.linspace(2, 1, k, dtype=np.float32)] * len(vectors))

    late = Late()
    monkeypatch.setattr("workers.pipelines.attempts.time", late)  # which tells what is left of the ten seconds
    await system.like("reader", [f"item {n}" for n in range(400)])
    pipeline = system.pipeline(index=late, reuse_ms=60_000)
    (first,) = await pipeline.run([ask("reader", k=100)])
    assert (first.status, first.reasons, set(first.sources)) == ("degraded", ["index_unavailable"], {"popular"})
    for _ in range(2):
        (again,) = await pipeline.run([ask("reader", k=100)])
        assert (again.status, again.reasons, again.item_ids[0]) == ("ok", [], "item 400")
        assert len(again.item_ids) == 100
    assert again.timings_ms is not None
    assert again.timings_ms.reused is not None


async def test_a_request_that_came_too_late_is_expired_without_work(system: System) -> None:
    late = ask(taken_ms=SystemClock().now_ms() - 13_000)
    (answer,) = await system.pipeline(users=Broken(hangs=True)).run([late])
    assert (answer.status, answer.reasons) == ("expired", ["deadline_exceeded"])


async def test_a_user_vector_that_is_not_finite_degrades_its_own_request_alone(system: System) -> None:
    class Half:
        async def embed(self, inputs):
            outputs = await system.tower.embed(inputs)
            outputs["user_embedding"][0] = np.nan
            return outputs

    first, second = await system.pipeline(tower=Half()).run([ask("a"), ask("b")])
    assert (first.status, first.reasons[-1]) == ("degraded", "model_unavailable")
    assert (second.status, len(second.item_ids)) == ("ok", 10)


async def test_a_row_that_the_tower_refuses_degrades_its_own_request_alone(system: System) -> None:
    class Picky:
        async def embed(self, inputs):
            if inputs["event_count"].any():
                raise RowRefused("tower", "somebody is known")
            return await system.tower.embed(inputs)

    batch = [ask("known" if n in {3, 7} else f"u{n}") for n in range(11)]
    answers = await system.pipeline(tower=Picky()).run(batch)
    for n, answer in enumerate(answers):
        expected = ("degraded", "model_unavailable") if n in {3, 7} else ("ok", "cold_start")
        assert (answer.status, answer.reasons[-1], len(answer.item_ids)) == (*expected, 10)


@pytest.mark.parametrize("shape", [(1, 32), (2, 31), (3, 32), (2,), None])
async def test_vectors_of_a_wrong_shape_degrade_and_harm_nobody(system: System, shape: tuple[int, ...] | None) -> None:
    class Wrong:
        async def embed(self, _):
            return {} if shape is None else {"user_embedding": np.ones(shape, dtype=np.float32)}

    for answer in await system.pipeline(tower=Wrong()).run([ask("a"), ask("b")]):
        assert (answer.status, answer.reasons[-1]) == ("degraded", "model_unavailable")
        assert answer.sources == ["popular"] * 10


async def test_a_record_of_another_format_degrades_its_own_request_alone(system: System) -> None:
    await system.users.write([UserChange("future", b"", b"\xff" + bytes(60))])
    future, waiting, known = await system.pipeline().run([ask("future"), ask("future", after_event_id="e"), ask()])
    assert (future.status, future.reasons) == ("degraded", ["features_unavailable"])
    assert (waiting.status, waiting.reasons) == ("degraded", ["features_unavailable", "features_stale"])
    assert known.status == "ok"


async def test_a_record_of_another_format_hides_nothing_else_that_is_missing(system: System) -> None:
    await system.users.write([UserChange("future", b"", b"\xff" + bytes(60))])
    (answer,) = await system.pipeline(tower=Broken()).run([ask("future")])
    assert (answer.status, sorted(answer.reasons)) == ("degraded", ["features_unavailable", "model_unavailable"])


async def test_a_redis_that_is_down(stack: Stack, system: System) -> None:
    nowhere = stack.settings(redis_url=f"redis://127.0.0.1:{free_ports(1)[0]}/0")
    users = RedisUserTable(connect(nowhere), nowhere)
    (answer,) = await system.pipeline(users=users).run([ask()])
    await users.close()
    assert (answer.status, answer.reasons) == ("degraded", ["features_unavailable"])
    assert len(answer.item_ids) == 10


async def test_until_the_pipeline_is_open_answers_are_degraded_and_name_what_is_missing(
    settings: Settings, system: System
) -> None:
    metrics = Metrics()
    collection = Collection(settings.collection("none"), system.bundle.dim, "IP", "none")

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


async def test_requests_reach_the_pipeline_once_it_is_open(system: System) -> None:
    failures = [DependencyUnavailable("redis", "not yet"), DependencyUnavailable("milvus", "nor now")]

    async def opened() -> RecallPipeline:
        if failures:
            raise failures.pop(0)
        return system.pipeline()

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


async def test_the_age_of_features_is_that_of_the_newest_event_with_an_item(system: System) -> None:
    await system.like("visitor", [None])
    (without,) = await system.pipeline().run([ask("visitor")])
    assert (without.status, without.reasons, without.feature_age_ms) == ("ok", [], None)
    await system.like("visitor", ["film-3"], ago_ms=500_000)
    (answer,) = await system.pipeline().run([ask("visitor")])
    assert answer.feature_age_ms is not None
    assert answer.feature_age_ms >= 500_000
