"""Finds and mends what a worker wrote into the index late, when it had lost its partition, and died before its fence.

The vector is written before the record. A worker that is frozen in between, for longer than its session, writes an old
vector over a newer one when it thaws. It finds out at the record, and mends it; but it may die first. So whoever is
about to write leaves word in the item table (an intent), and takes it back when the records are written. What is not
taken back is looked at by the owner of the partition where the item lives, for as long as the writer may come back, and
once more when it is gone: rows that are not what their records say are written again, through the pipeline.
"""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Collection

import numpy as np
import structlog

from schemas.records import ItemRecord, hash64_each
from workers.pipelines.items import ItemsPipeline
from workers.ports import Intent, UInt64
from workers.reconcile.examine import Parts, RowExaminer

LOOK_EVERY_S = 20.0
BATCH_TAKES_MS = 60_000  # at most, while its worker is well: an intent that has stood for longer is left over
INTENT_LIVES_MS = 3_600_000  # a worker that is frozen for longer is beyond us: `recall items reconcile`
OUTCOME = "repaired"
NONE = np.zeros(0, dtype=np.uint64)

log = structlog.get_logger()


class LateWrites:
    """Of one items worker. `pipeline` is the one that its batches go through, which does one thing at a time.

    `assigned`: the partitions that it owns now. Memory and work are bounded by what intents hold: a batch each.
    """

    def __init__(
        self,
        parts: Parts,
        pipeline: ItemsPipeline,
        assigned: Callable[[], Collection[int]],
        count: Callable[[dict[str, int]], None],
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._table = parts.table
        self._rows = RowExaminer(parts)
        self._pipeline = pipeline
        self._assigned = assigned
        self._count = count
        self._now_ms = now_ms
        self._before: UInt64 = NONE  # what stood at the last look

    async def watch(self, sure: Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]) -> None:
        """Look now and then, without end; `sure` does it again until it works."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await sure(self.look)

    async def look(self) -> None:
        """Look once, and mend. Raises DependencyError; what was mended by then is mended."""
        intents, now_ms = await self._table.intents(), self._now_ms()
        intents.pop(self._pipeline.intent, None)
        old = [name for name, each in intents.items() if each.since_ms < now_ms - INTENT_LIVES_MS]
        mine = self._assigned()
        ours = [_of(each, mine) for each in intents.values()]
        theirs = [each.hashes for each in intents.values() if each.since_ms < now_ms - BATCH_TAKES_MS]
        hashes = _all(self._before, *ours)
        await self._mend(hashes)
        await self._mend(np.setdiff1d(_all(*theirs), hashes), elsewhere=True)
        self._before = _all(*ours)
        await self._table.drop_intents(old)

    async def _mend(self, hashes: UInt64, *, elsewhere: bool = False) -> None:
        """`elsewhere`: they were about to be written for other partitions than ours, where they may live by now.

        Then whoever wrote them may be at it still, and move the item: word is left for the owner of that partition.
        """

        def wanted(record: ItemRecord) -> bool:
            return record.partition in self._assigned()

        findings = (await self._rows.standing(hashes, wanted)).findings
        events = [finding.mend for finding in findings if finding.mend is not None]
        events = [event for event in events if event.partition in self._assigned()]
        if not events:
            return
        if elsewhere:
            named = hash64_each([event.item_id for event in events])
            await self._table.read_to_write(named, [event.partition for event in events], uuid.uuid4().hex)
        await self._pipeline.run(events)
        log.warning("late writes were repaired", items=len(events), example=events[0].item_id)
        self._count({OUTCOME: len(events)})


def _of(intent: Intent, partitions: Collection[int]) -> UInt64:
    return intent.hashes[np.isin(intent.partitions, list(partitions))]


def _all(*hashes: UInt64) -> UInt64:
    return np.unique(np.concatenate([NONE, *hashes]))
