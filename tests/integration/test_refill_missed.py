"""What a worker says and marks when nobody has fed its view for longer than deletions are kept: on a real Redis."""

import asyncio
from collections.abc import AsyncIterator, Mapping

import pytest
import structlog

from workers import refill as refilling
from workers.dependencies import Dependencies
from workers.metrics import Metrics
from workers.missed import MENDED, MISSED
from workers.refill import DAY_MS, Extent, Refill
from workers.settings import Settings
from workers.stores import keys
from workers.stores.connect import connect
from workers.stores.markers_redis import RedisMarkers

GROUP = "filler"
WITHIN_S = 40
KEPT_MS = 7 * DAY_MS


class Fed:
    """A view that a group of workers feeds, each with markers of its own; its topic keeps deletions for seven days."""

    def __init__(self, settings: Settings) -> None:
        self.client = connect(settings)
        self.settings = settings
        self.key = keys.filled(settings, GROUP)

    def markers(self) -> RedisMarkers:
        return RedisMarkers(self.client, self.settings, GROUP)

    def worker(self) -> Refill:
        return Refill(self.markers(), Dependencies("items", Metrics()), deletions_ms=KEPT_MS)

    async def begin(self, refill: Refill) -> list[tuple[str, str]]:
        """What a worker says of missed deletions when it is given its partition: level, and what to do."""

        async def extents() -> Mapping[int, Extent]:
            return {0: Extent(7, 0, 7)}

        with structlog.testing.capture_logs() as lines:
            await refill.begin([0], 1, extents)
        assert all(line["kept_days"] == 7 for line in lines if line["event"] == MISSED)
        return [(line["log_level"], line["todo"]) for line in lines if line["event"] == MISSED]

    async def away(self, days: int) -> None:
        """Nobody was there for so long."""
        await self.client.hincrby(self.key, "fed_ms", -days * DAY_MS)

    async def mark(self) -> int | None:
        """When it was noticed, as Redis has it."""
        return await self.markers().look()


@pytest.fixture
async def fed(settings: Settings) -> AsyncIterator[Fed]:
    """A worker was there a moment ago."""
    fed = Fed(settings)
    markers = fed.markers()
    await markers.open(1)
    assert await markers.stand(KEPT_MS)
    yield fed
    await fed.client.aclose()


SAID = [("error", "recall items reconcile --repair")]


async def test_who_was_away_for_longer_than_deletions_are_kept_is_told_at_each_start(fed: Fed) -> None:
    assert (await fed.begin(fed.worker()), await fed.mark()) == ([], None)
    await fed.away(6)
    assert (await fed.begin(fed.worker()), await fed.mark()) == ([], None)
    assert await (markers := fed.markers()).open(1) == {}
    assert await markers.stand(KEPT_MS)
    await fed.away(8)
    first = fed.worker()
    assert await fed.begin(first) == SAID
    noticed_ms = await fed.mark()
    assert noticed_ms is not None
    assert first.missed_deletions()
    assert await fed.begin(first) == [], "a rebalance is no start"
    assert await markers.stand(KEPT_MS), "somebody is there again"
    assert await fed.begin(fed.worker()) == SAID, "and the next one says it all the same"
    assert await fed.mark() == noticed_ms


async def test_the_first_of_two_workers_to_look_has_marked(fed: Fed) -> None:
    """Nobody can be there again before it is marked, also when the one that saw it dies at once."""
    await fed.away(8)
    assert await fed.markers().look(KEPT_MS) is not None
    other = fed.worker()
    assert await fed.begin(other) == SAID
    assert await fed.begin(fed.worker()) == SAID


async def test_one_that_was_there_all_the_time_and_could_not_reach_redis_marks_too(
    fed: Fed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So does one that was frozen, with its machine: it looked before that, and does not begin anew."""
    monkeypatch.setattr(refilling, "LOOK_EVERY_S", 0.01)
    worker = fed.worker()
    assert await fed.begin(worker) == []
    await fed.away(8)
    with structlog.testing.capture_logs() as lines:
        watching = asyncio.create_task(worker.watch())
        async with asyncio.timeout(WITHIN_S):
            while not worker.missed_deletions():
                await asyncio.sleep(0.01)
            noticed_ms = await fed.mark()
            assert noticed_ms is not None
            assert await fed.markers().mended(noticed_ms)
            while worker.missed_deletions():
                await asyncio.sleep(0.01)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    assert [line["event"] for line in lines] == [MISSED, MENDED]
    assert await fed.begin(fed.worker()) == []


async def test_a_mark_that_was_set_anew_is_not_taken_away_by_who_knows_the_old_one(fed: Fed) -> None:
    await fed.away(8)
    assert await fed.begin(fed.worker()) == SAID
    old_ms = await fed.mark()
    assert old_ms is not None
    await fed.client.hincrby(fed.key, "missed_ms", -1000)
    assert not await fed.markers().mended(old_ms)
    assert await fed.mark() == old_ms - 1000
    assert await fed.begin(fed.worker()) == SAID
    assert await fed.markers().mended(old_ms - 1000)
    assert (await fed.mark(), await fed.begin(fed.worker())) == (None, [])


async def test_a_mark_that_was_mended_does_not_come_back_where_nobody_has_begun_to_feed(fed: Fed) -> None:
    """The worker that marked it ended before it was there for a second."""
    await fed.away(8)
    noticed_ms = await fed.markers().look(KEPT_MS)
    assert noticed_ms is not None
    assert await fed.markers().mended(noticed_ms)
    assert await fed.begin(fed.worker()) == []


async def test_of_an_emptied_redis_it_is_not_known_for_how_long_nobody_was_there(fed: Fed) -> None:
    await fed.away(8)
    assert await fed.begin(fed.worker()) == SAID
    await fed.client.delete(fed.key)
    assert (await fed.begin(fed.worker()), await fed.mark()) == ([], None)


async def test_who_keeps_no_deletions_neither_marks_nor_says_anything(fed: Fed) -> None:
    """Another topic, or an index of this process, which is made of the topic at every start."""
    await fed.away(8)
    markers = fed.markers()
    assert await fed.begin(Refill(markers, Dependencies("items", Metrics()))) == []
    assert await markers.stand()
    assert await fed.mark() is None
