"""A backend that stays away costs nobody its timeout: it is not asked any more, until it works again."""

import asyncio
from typing import Any

import pytest
import structlog

from tests.integration.recall_system import System, ask, short
from workers.breaker import LONGEST_PAUSE_S, STRIKES
from workers.dependencies import Dependencies
from workers.errors import DependencyError, DependencyUnavailable, RowRefused
from workers.metrics import Metrics
from workers.pipelines.recall import RecallPipeline

WITHIN_S = 20.0
DEADLINE_MS = 250  # it ends a step before the step's own limit does
PARTS = [("users", "redis"), ("tower", "tower"), ("index", "milvus")]
CAPPED: dict[str, dict[str, object]] = {"default": {"at_most": {"genres": 4}}}
REASONS = {"redis": "features_unavailable", "tower": "model_unavailable", "milvus": "index_unavailable"}


class Faulty:
    """One of recall's parts with a fault that can be switched on and off; counts how often it is asked."""

    def __init__(self, part: Any, dependency: str) -> None:
        self._part = part
        self._dependency = dependency
        self.fault: DependencyError | str | None = None
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any) -> Any:
            self.asked += 1
            if isinstance(self.fault, DependencyError):
                raise self.fault
            if self.fault == "hangs":
                await asyncio.Event().wait()
            return await getattr(self._part, name)(*arguments)

        return call


class Case:
    """A pipeline with one faulty part, and what it knows of its dependencies."""

    def __init__(self, system: System, part: str, dependency: str) -> None:
        self.dependency = dependency
        self.metrics = Metrics()
        self.dependencies = Dependencies("recall", self.metrics)
        self.part = Faulty(getattr(system, part), dependency)
        parts, timeouts = {part: self.part}, short(part)
        self.pipeline: RecallPipeline = system.pipeline(**parts, dependencies=self.dependencies, timeouts=timeouts)

    def is_open(self) -> bool:
        labels = {"kind": "recall", "dependency": self.dependency}
        return self.metrics.registry.get_sample_value("recall_breaker_open", labels) == 1.0

    async def until_open(self) -> None:
        for _ in range(STRIKES):
            assert not self.is_open()
            await self.pipeline.run([ask()])
        assert self.is_open()

    async def until_ok(self) -> None:
        async with asyncio.timeout(WITHIN_S + LONGEST_PAUSE_S):
            while (await self.pipeline.run([ask()]))[0].status != "ok":
                await asyncio.sleep(0.05)


@pytest.fixture(params=PARTS, ids=[part for part, _ in PARTS])
def case(system: System, request: pytest.FixtureRequest) -> Case:
    return Case(system, *request.param)


@pytest.mark.parametrize("fault", ["hangs", "fails"])
async def test_it_is_not_asked_any_more_until_it_works_again(case: Case, fault: str) -> None:
    case.part.fault = "hangs" if fault == "hangs" else DependencyUnavailable(case.dependency, "connection refused")
    with structlog.testing.capture_logs() as lines:
        await case.until_open()
        case.dependencies.breaker(case.dependency).probed(answered=False)  # as the worker's own probe finds out
        asked = case.part.asked
        for _ in range(20):
            (answer,) = await case.pipeline.run([ask()])
            assert (answer.status, answer.reasons) == ("degraded", [REASONS[case.dependency]])
            assert answer.sources == ["popular"] * 10
        assert case.part.asked == asked
        assert "its breaker is open" in (case.dependencies.missing() or "")
        case.part.fault = None
        case.dependencies.breaker(case.dependency).probed(answered=True)
        await case.until_ok()
    assert not case.is_open()
    assert case.dependencies.missing() is None
    events = [line["event"] for line in lines]
    assert events == ["dependency failed", "dependency is back"]


async def test_without_a_probe_a_call_now_and_then_finds_out(case: Case) -> None:
    case.part.fault = DependencyUnavailable(case.dependency, "connection refused")
    await case.until_open()
    asked = case.part.asked
    async with asyncio.timeout(WITHIN_S):
        while case.part.asked < asked + 2:
            await case.pipeline.run([ask()])
            await asyncio.sleep(0.01)
    assert case.is_open()
    case.part.fault = None
    await case.until_ok()


async def test_a_scene_with_caps_is_no_word_of_redis_where_it_looks_nothing_up(system: System) -> None:
    case = Case(system, "users", "redis")
    await system.pipeline(scenes=CAPPED).run([ask("nobody")])  # what is popular is in memory from now on
    parts = {"users": case.part, "dependencies": case.dependencies}
    case.pipeline = system.pipeline(**parts, scenes=CAPPED, timeouts=short("users"))
    case.part.fault = "hangs"
    await case.until_open()


async def test_one_slow_moment_is_no_reason(case: Case) -> None:
    case.part.fault = "hangs"
    batches = [[ask(timeout_ms=timeout_ms) for timeout_ms in (2000, 5000, 10_000, 20_000)] for _ in range(5)]
    await asyncio.gather(*(case.pipeline.run(batch) for batch in batches))
    assert case.part.asked >= len(batches)
    assert not case.is_open()


async def test_values_that_are_refused_are_no_reason(case: Case) -> None:
    case.part.fault = RowRefused(case.dependency, "the values are refused")
    for _ in range(STRIKES * 3):
        await case.pipeline.run([ask()])
    assert not case.is_open()


async def test_a_deadline_is_no_reason_unless_the_probe_gets_no_answer_either(case: Case) -> None:
    case.part.fault = "hangs"
    for _ in range(STRIKES + 1):
        await case.pipeline.run([ask(timeout_ms=DEADLINE_MS)])
    assert not case.is_open()
    async with asyncio.timeout(WITHIN_S):
        while not case.is_open():  # a busy machine may come to an end before it has asked
            case.dependencies.breaker(case.dependency).probed(answered=False)
            await case.pipeline.run([ask(timeout_ms=DEADLINE_MS)])


async def test_who_needs_no_search_does_not_learn_that_there_is_none(system: System) -> None:
    case = Case(system, "index", "milvus")
    case.part.fault = DependencyUnavailable("milvus", "connection refused")
    scenes = {"new": {"sources": {"session": {}, "popular": {}}}}
    pipeline = system.pipeline(index=case.part, dependencies=case.dependencies, scenes=scenes)
    for _ in range(STRIKES):
        together = await pipeline.run([ask("nobody", scene="new"), ask(scene="new")])
        alone = await pipeline.run([ask("nobody", scene="new")])
        assert [answer.reasons for answer in together + alone] == [
            ["cold_start"],
            ["index_unavailable"],
            ["cold_start"],
        ]
        assert [answer.status for answer in together + alone] == ["ok", "degraded", "ok"]
        assert {source for answer in together + alone for source in answer.sources} == {"popular"}
    assert case.is_open()


async def test_a_search_that_was_not_made_says_nothing_of_the_index(system: System) -> None:
    """With Redis away as well there is no vector to search with: the index is not back for that."""
    case = Case(system, "index", "milvus")
    users = Faulty(system.users, "redis")
    case.pipeline = system.pipeline(index=case.part, users=users, dependencies=case.dependencies)
    case.part.fault = DependencyUnavailable("milvus", "connection refused")
    await case.until_open()
    users.fault = DependencyUnavailable("redis", "connection refused")
    asked = case.part.asked
    async with asyncio.timeout(WITHIN_S):
        while not case.dependencies.breaker("milvus").lets_through():
            await asyncio.sleep(0.05)
    case.dependencies.breaker("milvus").unasked()
    await case.pipeline.run([ask()])
    assert (case.part.asked, case.is_open()) == (asked, True)
    case.part.fault = users.fault = None
    await case.until_ok()
