"""Fills an emptied store again from what Kafka retains: where a consumer group begins to read, and when it is through.

A marker in Redis says of a partition that everything retained of it is in there. While there is none the partition is
read from its beginning, whatever is committed; effects once makes that harmless to what is there after all. Who is
killed meanwhile leaves no marker, so it is read again.

An index that lives in the process is such a store too, which is empty at every start: see workers/index/in_process.py.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass

import structlog

from workers.dependencies import Dependencies
from workers.errors import DependencyError, StoreLost
from workers.index.in_process import HeldIndex
from workers.missed import MEND, MENDED, MISSED, noticed
from workers.ports import PopularTable
from workers.stores.markers_redis import RedisMarkers

LOOK_EVERY_S = 1.0
ONE_BATCH = 2048
"""In offsets, also of records that a producer's transaction has aborted: batches are cut accordingly."""
DAY_MS = 86_400_000
EMPTIED = "redis was emptied, or is another one"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Extent:
    """A partition in Kafka: what its group has committed (None = nothing), its first offset, the end of what can be
    read, and that of the log, which holds the records of open transactions too (None = there is none)."""

    committed: int | None
    first: int
    end: int
    log_end: int | None = None

    def __contains__(self, offset: int) -> bool:
        """Whether a group may have come that far."""
        return self.first <= offset <= (self.end if self.log_end is None else self.log_end)


@dataclass(frozen=True, slots=True)
class Start:
    """Where to read from; the partition is complete once all before `complete_at` is done, None = it is already."""

    offset: int
    complete_at: int | None = None


class Refill:
    """Of one consumer group's topic. `counts` are its popular counts, if it has any, which follow the rule `rule`.

    A topic that is compacted forgets deletions after `deletions_ms`: who was away for longer may have missed some. That
    is marked until it is mended, and said at each start.

    `held`: an index of this process, which is to hold all of the topic before anybody searches.

    A marker's value is the rule whose counts have followed the partition last: those of another one have stood still.
    """

    def __init__(
        self,
        markers: RedisMarkers,
        dependencies: Dependencies,
        counts: PopularTable | None = None,
        rule: str = "",
        deletions_ms: int | None = None,
        held: HeldIndex | None = None,
    ) -> None:
        self.dependencies = dependencies
        self._markers = markers
        self._counts = counts
        self._rule = rule
        self._deletions_ms = deletions_ms
        self._held = held
        self._missed_ms: int | None = None  # the mark that was told of
        self._elsewhere: str | None = None
        self._begun = False
        self._filling: dict[int, Start] = {}
        self._since_s = 0.0

    async def begin(
        self,
        partitions: Sequence[int],
        of: int,
        extents: Callable[[], Awaitable[Mapping[int, Extent]]],
        begun: Collection[int] = (),
        later: int = 0,
    ) -> dict[int, Start]:
        """Where these partitions, of so many that the topic has, are read from. Raises DependencyError.

        `begun`: others of the same assignment, for which it was asked before; and so many it will be asked for later.
        Counts that do not fit are told what to expect: after a change of the rule, where records are gone that were
        never counted, and where they expect more than the topic holds, because it was made anew.
        """
        if self._deletions_ms is not None:
            self._tell_missed(await self._markers.look(self._deletions_ms), self._deletions_ms)
        markers = await self._markers.open(of)
        expected: dict[int, int] = {}
        if self._counts is not None:
            expected = dict(zip(partitions, await self._counts.expected(partitions), strict=True))
        places = await extents()  # asked for last, so that no count can be beyond an end
        starts = {n: self._start(places[n], markers.get(n), expected.get(n)) for n in partitions}
        if self._held is not None:
            starts = {n: _held_from(self._held, n, places[n], start) for n, start in starts.items()}
            others = of - len(partitions) - len(begun) - later
            self._elsewhere = f"{others} of {of} partitions, which another process has taken" if others else None
        moved = {n: starts[n].offset for n, at in expected.items() if at < starts[n].offset or at not in places[n]}
        if self._counts is not None and moved:
            await self._counts.expect(moved)
        for partition in partitions:
            if markers.get(partition, self._rule) != self._rule:
                await self._mark(partition)
        self._begun = not later
        filling = {n: start for n, start in starts.items() if start.complete_at is not None}
        self._filling = {n: start for n, start in self._filling.items() if n in begun} | filling
        self._say(places, filling, {n for n in partitions if n not in markers})
        return starts

    def nothing_assigned(self) -> None:
        """Others have every partition: an index of this process no longer follows the topic."""
        if self._held is not None:
            self._begun, self._filling = True, {}
            self._elsewhere = "every partition, which another process has taken"

    def _start(self, place: Extent, marker: str | None, expected: int | None) -> Start:
        if marker is None:
            return Start(place.first, place.end)
        committed = place.committed
        if committed is None or committed not in place:
            return Start(place.first)
        if marker == self._rule and expected is not None and expected < committed:  # Redis has lost its last writes
            # A batch is counted before its records are written: of the last one that is, these may be lost as well.
            return Start(max(expected - ONE_BATCH, place.first))
        return Start(committed)

    async def complete(self, partition: int) -> None:
        """All of a partition is done up to where it ended when reading began. Raises DependencyError, StoreLost."""
        await self._mark(partition)
        start = self._filling.pop(partition)
        if start.offset != start.complete_at:
            after_s = round(time.monotonic() - self._since_s, 1)
            where = "redis" if self._held is None else "the index"
            log.info(f"retained events are in {where}", partition=partition, after_s=after_s, left=len(self._filling))

    def missing(self) -> str | None:
        """What is still read again, in one line; None when nothing is."""
        if not self._begun:
            return "where its partitions begin"
        if not self._filling:
            return self._elsewhere
        whose = "redis" if self._held is None else "the index in this process"
        return f"the retained events of {len(self._filling)} partitions, which {whose} did not have"

    def missed_deletions(self) -> bool:
        """Whether items that are gone may still be listed, as of a second ago. The worker is ready all the same."""
        return self._missed_ms is not None

    async def watch(self) -> None:
        """Ask now and then, until cancelled. Raises StoreLost once Redis was emptied."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if not self._markers.id:
                continue
            try:
                stand = await self._markers.stand(self._deletions_ms)
            except DependencyError:
                continue  # the probe tells
            if not stand:
                raise StoreLost(EMPTIED)
            if self._deletions_ms is not None:  # it may be marked now: after an outage of Redis that lasted so long
                self._tell_missed(self._markers.missed_ms, self._deletions_ms)

    def _tell_missed(self, missed_ms: int | None, deletions_ms: int) -> None:
        if missed_ms == self._missed_ms:
            return
        self._missed_ms = missed_ms
        if missed_ms is None:
            log.info(MENDED)
        else:
            log.error(MISSED, noticed=noticed(missed_ms), kept_days=deletions_ms // DAY_MS, todo=MEND)

    async def _mark(self, partition: int) -> None:
        if not await self._markers.mark(partition, self._rule):
            raise StoreLost(EMPTIED)

    def _say(self, places: Mapping[int, Extent], filling: Mapping[int, Start], unmarked: Set[int]) -> None:
        self._since_s = time.monotonic()
        again = [n for n, start in filling.items() if start.offset != start.complete_at]
        if lost := [n for n in again if n in unmarked]:
            records = sum(places[n].end - places[n].first for n in lost)
            log.warning("redis does not have what kafka retains: reading it", partitions=lost, records=records)
        if self._held is not None and again:
            records = sum(places[n].end - filling[n].offset for n in again)
            log.info("the index in this process does not have what kafka retains: reading it", records=records)
        if self._elsewhere is not None:
            log.error("an index in the process needs every partition", missing=self._elsewhere)


def _held_from(held: HeldIndex, partition: int, place: Extent, start: Start) -> Start:
    """From where a partition is read when this process holds an index too, which needs all up to the end as it is."""
    offset = min(start.offset, held.begins(partition, place.first, place.end))
    return start if offset == place.end else Start(offset, place.end)
