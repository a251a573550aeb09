"""Sources are asked as far as there is time; one that waits for no backend needs none."""

import asyncio
import time

from schemas import codec
from schemas.items import ItemUpdate
from schemas.recall import RecallRequest
from schemas.records import ItemRecord, hash64
from workers.cancelling import cancel
from workers.clock import SystemClock
from workers.dependencies import Dependencies
from workers.metrics import Metrics
from workers.pipelines.admission import Asked, Incoming
from workers.pipelines.attempts import Attempts
from workers.pipelines.retrieval import Retrieval
from workers.pipelines.rows import Row
from workers.plans import Plan, SourceShare
from workers.popularity import EVERYBODY
from workers.ports import PopularChange
from workers.sources.popular import PopularLists, PopularSource
from workers.stores.item_facts import ItemFacts
from workers.stores.item_memory import MemoryItemTable
from workers.stores.popular_memory import MemoryPopularTable

LIMIT_MS = 1000


def row_for(*names: str) -> Row:
    incoming = Incoming(RecallRequest(request_id="r", user_id="u", timeout_ms=1000), SystemClock().now_ms())
    sources = tuple(SourceShare(name) for name in names)
    return Row(Asked(incoming, Plan(), k=10, exclude_seen=True, where=(), sources=sources))


def attempts_of(dependencies: Dependencies, *, left_ms: int) -> Attempts:
    clock = SystemClock()
    return Attempts(dependencies, clock, clock.now_ms() + left_ms)


async def popular_source() -> PopularSource:
    """One item is popular."""
    items, counts = MemoryItemTable(0), MemoryPopularTable()
    update = ItemUpdate(item_id="hit", op="upsert", timestamp_ms=1)
    await items.write([ItemRecord("hit", 0, 0, update=codec.encode_event(update))], [None])
    await counts.add([PopularChange(0, 0, 1, {(7, EVERYBODY): {hash64("hit"): 3}})])
    lists = PopularLists(counts, ItemFacts(items, ()), [])
    await lists.refresh()
    return PopularSource(lists)


async def test_what_is_in_memory_is_found_when_others_have_used_up_the_time() -> None:
    rows = [row_for("popular") for _ in range(64)]
    retrieval = Retrieval({"popular": await popular_source()}, LIMIT_MS)

    async def compete() -> None:
        while True:
            time.sleep(0.0005)  # noqa: ASYNC251  # the loop is busy with other work
            await asyncio.sleep(0)

    busy = asyncio.create_task(compete())
    try:
        await retrieval.run(rows, [10] * len(rows), attempts_of(Dependencies("recall", Metrics()), left_ms=-100))
    finally:
        await cancel(busy)
    assert [row.reasons for row in rows] == [[]] * len(rows)
    assert {item_id for row in rows for item_id in row.found["popular"].item_ids} == {"hit"}
