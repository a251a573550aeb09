"""The second search of a list with caps: what it says when there was no time for it."""

import time
from collections.abc import Sequence

import numpy as np

from models.spec import builtin_spec, load_spec
from models.tensors import Encoding, Vocabularies
from schemas.recall import CandidateList, RecallRequest
from schemas.records import hash64
from workers.dependencies import Dependencies
from workers.filters import Filter
from workers.metrics import Metrics
from workers.pipelines.admission import ANSWER_MARGIN_MS, Incoming, View
from workers.pipelines.ladder import Ladder
from workers.pipelines.recall import Parts, RecallPipeline, StepTimeouts
from workers.plans import Plan, SourceShare
from workers.ports import Hits, Query, UInt64
from workers.remembered import LastLists, Results
from workers.sources.popular import PopularLists
from workers.stores.item_facts import ItemFact, ItemFacts
from workers.stores.item_memory import MemoryItemTable
from workers.stores.popular_memory import MemoryPopularTable
from workers.stores.user_memory import MemoryUserTable
from workers.stores.vector_cache import VectorCache

DIM = 32
K = 10
FIRST, SECOND = 64, 512  # depths of the two searches
LEFT_MS = 50
NOW_MS = 1_700_000_000_000
PLAN = Plan(k=K, caps=(("shelf", 1),), sources=(SourceShare("endless"),))


class Endless:
    """A source that always finds as many items as it is asked for: item 0 is the best."""

    dependency = "milvus"

    def __init__(self) -> None:
        self.depths: list[int] = []

    def answers(self, query: Query) -> bool:
        return True

    async def candidates(self, queries: Sequence[Query], depth: int, where: Filter) -> Hits:
        self.depths.append(depth)
        scores = np.linspace(1, 0, depth, dtype=np.float32)
        return Hits([[f"item-{n}" for n in range(depth)]] * len(queries), [scores] * len(queries))


class Shelves:
    """The first items stand on one shelf, each of the others on its own. To look takes long where it is `slow`."""

    def __init__(self, on_one: int) -> None:
        self.slow = False
        self._facts = {
            hash64(f"item-{n}"): ItemFact(f"item-{n}", {"shelf": max(0, n - on_one + 1)}) for n in range(SECOND)
        }

    def at_hand(self, hashes: UInt64) -> list[ItemFact | None]:
        if self.slow:
            time.sleep(2 * LEFT_MS / 1000)
        return [self._facts[item] for item in hashes.tolist()]

    async def read(self, hashes: UInt64) -> list[ItemFact | None]:
        raise AssertionError("all are at hand")


class Standing:
    """A clock by which no answer is too late."""

    def now_ms(self) -> int:
        return NOW_MS


class System:
    """A pipeline with one source and nothing stored."""

    def __init__(self, on_one: int) -> None:
        self.source, self.shelves, items = Endless(), Shelves(on_one), MemoryItemTable(DIM)
        popular = PopularLists(MemoryPopularTable(), ItemFacts(items, ()), [])
        encoding = Encoding(load_spec(builtin_spec("movielens")), Vocabularies({}, []))
        self._pipeline = RecallPipeline(
            View(encoding, DIM, "v", "c", {"default": PLAN}),
            Parts(
                users=MemoryUserTable(),
                items=VectorCache(items, DIM),
                facts=self.shelves,
                tower=object(),  # no source of the scene needs it
                sources={"endless": self.source},
                ladder=Ladder(popular, LastLists(0, 0)),
                results=Results(60_000),
            ),
            Standing(),
            StepTimeouts(5000, 5000, 5000),
            Dependencies("recall", Metrics()),
        )

    async def ask(self, *, slow: bool) -> CandidateList:
        """An answer; `slow`: to look at the items of the first search takes all the time that there is."""
        self.shelves.slow = slow
        timeout_ms = ANSWER_MARGIN_MS + LEFT_MS if slow else 30_000
        request = RecallRequest(request_id="r", user_id="u", timeout_ms=timeout_ms)
        [answer] = await self._pipeline.run([Incoming(request, NOW_MS)])
        return answer


async def test_a_capped_list_that_there_was_no_time_to_fill_is_not_all_there_is_nor_remembered() -> None:
    system = System(on_one=FIRST)
    hurried = await system.ask(slow=True)
    assert system.source.depths == [FIRST]
    assert (hurried.status, hurried.reasons) == ("degraded", ["index_unavailable"])
    assert hurried.item_ids == ["item-0"], "what the first search has found is kept"
    patient = await system.ask(slow=False)
    assert patient.timings_ms.reused is None
    assert system.source.depths == [FIRST, FIRST, SECOND]
    assert (patient.status, patient.reasons, len(patient.item_ids)) == ("ok", ["cold_start"], K)


async def test_a_capped_list_that_was_searched_as_deep_as_it_goes_needs_no_more_time() -> None:
    system = System(on_one=SECOND)
    for slow in (False, True):
        answer = await system.ask(slow=slow)
        assert (answer.status, answer.reasons) == ("ok", ["cold_start", "short_list"])
        assert answer.item_ids == ["item-0"]
    assert answer.timings_ms.reused is not None
    assert system.source.depths == [FIRST, SECOND]
