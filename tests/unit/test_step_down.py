"""The next best thing after a search that took all the time: what needs no work, and new filters as long as it goes."""

from collections.abc import Sequence

import numpy as np
import pytest

from models.spec import builtin_spec, load_spec
from models.tensors import Encoding, Vocabularies
from schemas.recall import FilterClause, RecallRequest
from workers.dependencies import Dependencies
from workers.errors import DependencyUnavailable
from workers.filters import Filter
from workers.metrics import Metrics
from workers.pipelines import attempts
from workers.pipelines.admission import ANSWER_MARGIN_MS, Incoming, View
from workers.pipelines.ladder import Ladder
from workers.pipelines.recall import STEP_DOWN_MS, Parts, RecallPipeline, StepTimeouts
from workers.plans import Plan, SourceShare
from workers.ports import Float32, Hits, Query
from workers.remembered import LastLists, Results
from workers.stores.item_facts import ItemFacts
from workers.stores.item_memory import MemoryItemTable
from workers.stores.user_memory import MemoryUserTable
from workers.stores.vector_cache import VectorCache

DIM = 32
NOW_MS = 1_700_000_000_000
TIMEOUT_MS = 1000
ALL_MS = TIMEOUT_MS - ANSWER_MARGIN_MS  # what a search may take
BEST = ["a", "b"]


class Clock:
    """A clock by which no answer is too late, and a stopwatch that the test moves on."""

    passed_s = 0.0

    def now_ms(self) -> int:
        return NOW_MS

    def perf_counter(self) -> float:
        return self.passed_s


class Down:
    """A source whose backend fails after some time, for all searches at once."""

    dependency = "milvus"

    def __init__(self, clock: Clock, takes_ms: float) -> None:
        self._clock, self._until_s = clock, clock.passed_s + takes_ms / 1000

    def answers(self, query: Query) -> bool:
        return True

    async def candidates(self, queries: Sequence[Query], depth: int, where: Filter) -> Hits:
        self._clock.passed_s = self._until_s
        raise DependencyUnavailable("milvus", "down")


class Popular:
    """What is popular: the same for every filter, but a new one takes time."""

    def __init__(self, clock: Clock, new_takes_ms: float) -> None:
        self.looked_through: list[object] = []
        self._clock, self._new_takes_ms = clock, new_takes_ms

    def best(self, segment: str | None, where: Filter) -> tuple[list[str], Float32]:
        if where and where not in self.looked_through:
            self.looked_through.append(where)
            self._clock.passed_s += self._new_takes_ms / 1000
        return BEST, np.array([1, 0.5], dtype=np.float32)

    def at_hand(self, segment: str | None, where: Filter) -> tuple[list[str], Float32] | None:
        return None if where and where not in self.looked_through else self.best(segment, where)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(attempts, "time", clock)
    return clock


async def lists(clock: Clock, popular: Popular, search_ms: float, years: Sequence[int | None]) -> list[list[str]]:
    """Those of one batch of requests, each with a filter of its own or with none."""
    items = MemoryItemTable(DIM)
    pipeline = RecallPipeline(
        View(
            Encoding(load_spec(builtin_spec("movielens")), Vocabularies({}, [])),
            DIM,
            "v",
            "c",
            {"default": Plan(k=2, sources=(SourceShare("down"),))},
        ),
        Parts(
            users=MemoryUserTable(),
            items=VectorCache(items, DIM),
            facts=ItemFacts(items, ()),
            tower=object(),  # no source of the scene needs it
            sources={"down": Down(clock, search_ms)},
            ladder=Ladder(popular, LastLists(0, 0)),
            results=Results(0),
        ),
        clock,
        StepTimeouts(60_000, 60_000, 60_000),
        Dependencies("recall", Metrics()),
    )
    filters = [[] if year is None else [FilterClause(field="year", op="ge", value=year)] for year in years]
    requests = [
        RecallRequest(request_id=f"r{n}", user_id=f"u{n}", timeout_ms=TIMEOUT_MS, filter=where)
        for n, where in enumerate(filters)
    ]
    answers = await pipeline.run([Incoming(request, NOW_MS) for request in requests])
    assert {(answer.status, *answer.reasons) for answer in answers} == {("degraded", "index_unavailable")}
    return [answer.item_ids for answer in answers]


async def test_a_search_that_took_too_long_leaves_time_for_what_needs_no_work_alone(clock: Clock) -> None:
    popular = Popular(clock, new_takes_ms=1)
    assert await lists(clock, popular, 0, [1990]) == [BEST]
    late_ms = ALL_MS + STEP_DOWN_MS + 1
    assert await lists(clock, popular, late_ms, [1991, None, 1990, 1992]) == [[], BEST, BEST, []]
    assert len(popular.looked_through) == 1


async def test_new_filters_are_looked_through_until_the_time_is_over(clock: Clock) -> None:
    popular = Popular(clock, new_takes_ms=10)
    years = [1991, 1992, 1993, 1991, None]
    assert await lists(clock, popular, ALL_MS, years) == [BEST, BEST, [], BEST, BEST]
    assert len(popular.looked_through) == 2


async def test_while_there_is_time_every_filter_is_looked_through(clock: Clock) -> None:
    popular = Popular(clock, new_takes_ms=10)
    assert await lists(clock, popular, 0, list(range(1950, 2000))) == [BEST] * 50
