"""Values from a feature source on their way through the recall pipeline: what they do to a list, and what it costs."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from models.bundle import Bundle
from models.columns import RequestColumns, UserFeatures
from tests.integration.recall_system import DATASET, Broken, System, ask
from tests.moods import REQUIRED, fit_moody, share_of
from workers.breaker import STRIKES
from workers.dependencies import Dependencies
from workers.errors import DependencyUnavailable
from workers.features.cached import CachedFeatures
from workers.features.memory import MemoryFeatureSource
from workers.metrics import Metrics
from workers.pipelines.recall import RecallPipeline
from workers.pipelines.sourcing import Asking, Sourcing

NAME = "features.shop"
LIMIT_MS = 5000  # a busy machine is no finding
REUSE_MS = 60_000
SHORT_MS = 100  # where it never answers


class Moody(MemoryFeatureSource):
    """Users and their moods, which a test changes; with a fault that can be switched on."""

    def __init__(self) -> None:
        super().__init__({"e": {"mood": "even"}, "o": {"mood": "odd"}, "known": {"mood": "even"}, "bad": {"mood": [7]}})
        self.asked: list[list[str]] = []
        self.fault: str | None = None

    async def values(self, user_ids: Sequence[str], names: Sequence[str]) -> list[Mapping[str, Any]]:
        self.asked.append(list(user_ids))
        if self.fault == "fails":
            raise DependencyUnavailable(NAME, "it is broken")
        if self.fault == "hangs":
            await asyncio.Event().wait()
        return await super().values(user_ids, names)


class Case:
    """A system with one source."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.source = Moody()
        self.metrics = Metrics()
        self.dependencies = Dependencies("recall", self.metrics)

    def pipeline(self, *, ttl_ms: int = 0, limit_ms: int = LIMIT_MS, **others: Any) -> RecallPipeline:
        (fields,) = self.system.bundle.spec.sourced.values()
        features = CachedFeatures(self.source, list(fields), ttl_ms=ttl_ms, size=100)

        def told(source: str, feature: str, origin: str, count: int) -> None:
            self.metrics.features.labels(source, feature, origin).inc(count)

        sourcing = Sourcing({"shop": Asking(NAME, features, fields, limit_ms)}, told)
        return self.system.pipeline(sourcing=sourcing, dependencies=self.dependencies, **others)

    def counted(self, origin: str) -> float:
        labels = {"source": "shop", "feature": "mood", "origin": origin}
        return self.metrics.registry.get_sample_value("recall_features_total", labels) or 0.0


async def filled(bundle: Bundle) -> Case:
    system = System(bundle)
    await system.fill()
    return Case(system)


@pytest.fixture(scope="module")
def moody(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return fit_moody(DATASET, tmp_path_factory.mktemp("bundles"))


@pytest.fixture
async def case(moody: Bundle) -> AsyncIterator[Case]:
    case = await filled(moody)
    yield case
    await case.system.tower.close()


async def test_a_list_goes_by_the_value_of_the_source_alone(case: Case) -> None:
    pipeline = case.pipeline()
    (before,) = await pipeline.run([ask()])
    case.source.stored = {"known": {"mood": "odd"}}
    (after,) = await pipeline.run([ask()])
    assert (before.status, before.reasons, after.status, after.reasons) == ("ok", [], "ok", [])
    assert share_of("even", before.item_ids) == share_of("odd", after.item_ids) == 1.0


async def test_a_request_that_carries_the_value_is_answered_alike_and_nobody_is_asked(case: Case) -> None:
    pipeline = case.pipeline()
    (sourced,) = await pipeline.run([ask()])
    assert case.source.asked == [["known"]]
    (carried,) = await pipeline.run([ask(context={"mood": "even", "hour": 3})])
    assert carried.item_ids == sourced.item_ids
    (other,) = await pipeline.run([ask(context={"mood": "odd"})])
    assert share_of("odd", other.item_ids) == 1.0, "the request's own value counts"
    assert case.source.asked == [["known"]]
    assert (case.counted("source"), case.counted("request")) == (1, 2)


async def test_a_batch_is_its_requests_one_by_one_and_asks_once(case: Case) -> None:
    batch = [ask(user) for user in ("e", "o", "nobody", "known", "e", "bad")]
    pipeline = case.pipeline()
    together = await pipeline.run(batch)
    assert case.source.asked == [["e", "o", "nobody", "known", "bad"]]
    for incoming, answer in zip(batch, together, strict=True):
        (alone,) = await pipeline.run([incoming])
        assert (alone.item_ids, alone.reasons) == (answer.item_ids, answer.reasons)


async def test_a_value_that_is_absent_or_unusable_is_the_default_and_the_answer_says_so(case: Case) -> None:
    answers = await case.pipeline().run([ask("nobody"), ask("bad"), ask("o")])
    absent, unusable, told = answers
    assert [answer.status for answer in answers] == ["ok"] * 3
    assert absent.reasons == unusable.reasons == ["cold_start", "feature_defaulted"]
    assert told.reasons == ["cold_start"]
    assert absent.item_ids == unusable.item_ids == told.item_ids, "the default is odd"
    assert (case.counted("absent"), case.counted("unusable"), case.counted("source")) == (1, 1, 1)


async def test_two_unknown_users_do_not_get_each_others_results(case: Case) -> None:
    pipeline = case.pipeline(reuse_ms=REUSE_MS)
    (even,) = await pipeline.run([ask("e")])
    (odd,) = await pipeline.run([ask("o")])
    assert min(share_of("even", even.item_ids), share_of("odd", odd.item_ids)) >= 0.7
    (again,) = await pipeline.run([ask("e")])
    assert again.timings_ms.reused is not None
    assert again.item_ids == even.item_ids


@pytest.mark.parametrize("user", ["e", "nobody", "bad"])
@pytest.mark.parametrize("context", [None, {"mood": "odd", "hour": 3}, {"mood": [7], "hour": 3}])
async def test_an_equal_question_takes_the_values_over(case: Case, user: str, context: dict[str, Any] | None) -> None:
    pipeline = case.pipeline(reuse_ms=1000)
    first, again = [(await pipeline.trace(ask(user, context=context)))[0] for _ in range(2)]
    assert first is not None
    assert again is not None
    assert (first.reused_ms is None, again.reused_ms is None) == (True, False)
    assert again.context == first.context
    assert again.origins == first.origins


@pytest.mark.parametrize("fault", ["fails", "hangs"])
async def test_a_source_that_is_away_costs_its_deadline_and_then_nothing(case: Case, fault: str) -> None:
    pipeline = case.pipeline(limit_ms=SHORT_MS)
    breaker = case.dependencies.breaker(NAME)
    case.source.fault = fault
    for n in range(2 * STRIKES):
        (answer,) = await pipeline.run([ask()])
        assert (answer.status, answer.reasons) == ("ok", ["feature_defaulted"]), n
        assert share_of("odd", answer.item_ids) == 1.0
        if n + 1 >= STRIKES:
            breaker.probed(answered=False)  # as the worker's own probe finds out: until it does, none is tried
    assert len(case.source.asked) == STRIKES, "then its breaker is open"
    assert case.counted("unavailable") == 2 * STRIKES
    case.source.fault = None
    breaker.probed(answered=True)
    async with asyncio.timeout(20):
        while (await pipeline.run([ask()]))[0].reasons:
            await asyncio.sleep(0.05)
    assert case.dependencies.missing() is None


async def test_an_outage_of_what_can_be_done_without_leaves_the_worker_ready(case: Case) -> None:
    pipeline = case.pipeline()
    case.source.fault = "fails"
    await pipeline.run([ask()])
    assert "features.shop" in (case.dependencies.missing() or "")
    case.dependencies.can_do_without(NAME)
    assert case.dependencies.missing() is None


async def test_a_hot_user_is_asked_for_once_and_costs_nothing_while_the_source_is_away(case: Case) -> None:
    pipeline = case.pipeline(ttl_ms=60_000)
    (first,) = await pipeline.run([ask("e")])
    case.source.fault = "fails"
    second, other = await pipeline.run([ask("e"), ask("o")])
    assert second.item_ids == first.item_ids
    assert second.reasons == ["cold_start"]
    assert other.reasons == ["cold_start", "feature_defaulted"]
    assert case.source.asked == [["e"], ["o"]]
    assert case.counted("cache") == 1


async def test_without_a_required_value_the_towers_are_not_asked(tmp_path: Any) -> None:
    case = await filled(fit_moody(DATASET, tmp_path, REQUIRED))
    try:
        answers = await case.pipeline().run([ask("nobody"), ask("known"), ask("nobody", context={"mood": "even"})])
        assert [(answer.status, answer.reasons) for answer in answers] == [
            ("degraded", ["features_unavailable"]),
            ("ok", []),
            ("ok", ["cold_start"]),
        ]
        assert answers[0].sources == ["popular"] * 10
        assert share_of("even", answers[2].item_ids) >= 0.7
    finally:
        await case.system.tower.close()


async def test_the_source_and_the_history_vectors_are_asked_at_the_same_time(case: Case) -> None:
    """The one waits for the other here: in sequence neither would ever answer."""
    asked = asyncio.Event()
    vectors = case.system.vectors.vectors

    async def values(user_ids: Sequence[str], names: Sequence[str]) -> list[Mapping[str, Any]]:
        asked.set()
        return [{"mood": "even"} for _ in user_ids]

    async def waiting(hashes: Any) -> Any:
        await asyncio.wait_for(asked.wait(), 10)
        return await vectors(hashes)

    case.source.values = values  # type: ignore[method-assign]
    case.system.vectors.vectors = waiting  # type: ignore[method-assign]
    (answer,) = await case.pipeline().run([ask()])
    assert answer.status == "ok"


async def test_everything_else_broken_is_still_an_answer(case: Case) -> None:
    case.source.fault = "fails"
    (answer,) = await case.pipeline(tower=Broken()).run([ask()])
    assert (answer.status, answer.reasons) == ("degraded", ["model_unavailable"])


async def test_a_request_that_an_extractor_fails_on_is_degraded_alone(tmp_path: Any) -> None:
    def feel(_: UserFeatures, requests: RequestColumns) -> Mapping[str, Any]:
        signs = [{"even": 1.0, "odd": -1.0}[context.get("mood", "odd")] for context in requests.contexts]
        return {"sign": np.array(signs, dtype=np.float32)[:, None]}

    bundle = fit_moody(DATASET, tmp_path, '[extractors.feel]\nversion = "1"\noutputs.sign = 1\n', {"feel": feel})
    system = System(bundle)
    await system.fill()
    try:
        batch = [ask(context={"mood": "even"}), ask(context={"mood": "strange"}), ask(context={"mood": "odd"}), ask()]
        even, strange, odd, plain = await system.pipeline().run(batch)
    finally:
        await system.tower.close()
    assert [even.status, odd.status, plain.status] == ["ok"] * 3
    assert share_of("even", even.item_ids) == share_of("odd", odd.item_ids) == 1.0
    assert plain.item_ids == odd.item_ids
    assert (strange.status, strange.reasons) == ("degraded", ["features_unavailable"])
    assert strange.sources == ["popular"] * 10
