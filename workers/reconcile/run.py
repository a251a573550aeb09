"""A reconciliation: reads topic, table and collection, examines what does not agree, and mends it when asked to.

It is safe beside running workers. What they have still to take in, and what changes meanwhile, is no finding: offsets
are noted before anything is read, and the events after them are looked through before anything is said. Mending runs
the pipeline, whose writes are fenced by offsets. One thing a fence cannot see is a worker that has read the same record
and writes a newer event at the same time: its vector may come before ours, its record after ours. Such an event was not
committed before our write and stood in the topic after it; items that have one are looked at again when the group has
committed it, and mended again, until none of them was raced.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from schemas.records import among, hash64_each
from workers.errors import RecallError
from workers.ports import UInt64
from workers.reconcile.columns import NOWHERE, Columns, Int64, one_each, table_columns
from workers.reconcile.examine import AT_ONCE, KINDS, Examiner, Finding, Parts
from workers.reconcile.topic import ItemTopic, Offsets, Span
from workers.stores.markers_redis import RedisMarkers

PAGE = 10_000  # ids of the collection at once
LOOKS = 2  # of what seems wrong: a search may be behind a write
LOOK_AGAIN_S = 1.0
ROUNDS = 5  # of mending
PATIENCE_S = 30.0  # without progress of the group
ASK_EVERY_S = 0.2
NONE = np.zeros(0, dtype=np.uint64)

Say = Callable[[str, float | None], None]
"""What goes on, and how much of it is done (0 to 1)."""


@dataclass(frozen=True, slots=True)
class Options:
    """`passes`: read everything so often, a part of the items each time; `sample`: rows whose vectors are compared."""

    repair: bool = False
    examples: int = 3
    passes: int = 1
    sample: int = 1000


@dataclass(slots=True)
class Kind:
    """Findings of one kind."""

    count: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    """What was read and found. `left` are items that are still wrong at the end, or may be.

    `missed_deletions`: a mark stands at the end, of a view that nobody fed for longer than its topic keeps deletions.
    """

    view: str
    items: int = 0
    table: int = 0
    collection: int = 0
    lag: int = 0
    compared: int = 0
    refused: int = 0
    kinds: dict[str, Kind] = field(default_factory=lambda: {kind: Kind() for kind in KINDS})
    repaired: int = 0
    left: int = 0
    missed_deletions: bool = False
    seconds: float = 0.0

    @property
    def findings(self) -> int:
        """Of all kinds; an item may count in two."""
        return sum(kind.count for kind in self.kinds.values())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = {name: {"count": kind.count, "examples": kind.examples} for name, kind in self.kinds.items()}
        read = {name: getattr(self, name) for name in ("view", "items", "table", "collection", "lag", "compared")}
        done = ("refused", "repaired", "left", "missed_deletions", "seconds")
        return read | found | {name: getattr(self, name) for name in done}


@dataclass(slots=True)
class _Confirmed:
    """What is wrong for sure: item hashes, and of each kind how many and a few examples."""

    hashes: UInt64 = field(default_factory=lambda: NONE)
    kinds: dict[str, Kind] = field(default_factory=lambda: {kind: Kind() for kind in KINDS})
    refused: int = 0


class _Found:
    """Collects findings in 9 bytes each, and a few of them whole."""

    def __init__(self, examples: int) -> None:
        self._wanted = examples
        self._examples: dict[str, list[Finding]] = {kind: [] for kind in KINDS}
        self._hashes: list[UInt64] = [NONE]
        self._kinds = [np.zeros((0, len(KINDS)), dtype=np.bool_)]

    def add(self, findings: Sequence[Finding]) -> None:
        """Take findings in."""
        self._hashes.append(np.array([finding.item_hash for finding in findings], dtype=np.uint64))
        kinds = [[kind in finding.kinds for kind in KINDS] for finding in findings]
        self._kinds.append(np.array(kinds, dtype=np.bool_).reshape(len(findings), len(KINDS)))
        for finding in findings:
            for kind in finding.kinds:
                if len(self._examples[kind]) < self._wanted:
                    self._examples[kind].append(finding)

    def without(self, moving: UInt64) -> _Confirmed:
        """All of them but those of some items."""
        hashes, kinds = np.concatenate(self._hashes), np.concatenate(self._kinds)
        kept = ~among(hashes, moving)
        counts = dict(zip(KINDS, np.count_nonzero(kinds[kept], axis=0).tolist(), strict=True))
        gone = set(moving.tolist())
        return _Confirmed(
            np.sort(hashes[kept]),
            {
                name: Kind(counts[name], [each.example() for each in found if each.item_hash not in gone])
                for name, found in self._examples.items()
            },
        )


class Reconciliation:
    """Of one view, which the group with these markers feeds. `say` is told what goes on."""

    def __init__(
        self, parts: Parts, topic: ItemTopic, markers: RedisMarkers, options: Options, say: Say = lambda *_: None
    ) -> None:
        self._parts = parts
        self._topic = topic
        self._markers = markers
        self._options = options
        self._say = say
        self._rng = np.random.default_rng()
        self.report = Report(parts.view.model_version)

    async def run(self) -> Report:
        """All passes. Raises DependencyError, and RecallError when there is nothing to mend from.

        Deletions that were missed before it began are mended once nothing is left; a mark that was set meanwhile stays.
        """
        started = time.perf_counter()
        missed_ms = await self._markers.look()
        for number in range(self._options.passes):
            await self._pass(number)
        if self._options.repair and not self.report.left and missed_ms is not None:
            await self._markers.mended(missed_ms)
        self.report.missed_deletions = await self._markers.look() is not None
        self.report.seconds = round(time.perf_counter() - started, 2)
        return self.report

    async def _pass(self, number: int) -> None:
        passes, report = self._options.passes, self.report
        low, high = _bounds(number, passes)

        # 1. where everybody stands, and which events count up to there
        span = await self._topic.span()
        report.lag = span.lag
        read = await self._topic.winners(
            span,
            lambda item_hash: low <= item_hash ^ SIGN < high,
            lambda records, of: self._say(f"reading item-updates, {records:,} records", records / max(1, of)),
        )
        all_winners = read.winners.rows()

        # 2. the table, and what of the two does not agree
        table = await self._table(low, high)
        winners = one_each(all_winners, table)
        report.items += int(np.count_nonzero(~winners.deleted))
        report.table += int(np.count_nonzero(~table.deleted))
        settled = winners.offsets < _by_partition(span.committed, winners.partitions)
        suspects = [*_disagreeing(winners, settled, table)]

        # 3. the collection
        suspects += await self._collection(number, winners, settled)

        # 4. a closer look at these, and at a sample of the rest
        suspected = np.unique(np.concatenate(suspects))
        sample = self._sample(winners, settled, suspected)
        report.compared += len(sample)
        nowhere = table.hashes[table.places == NOWHERE]
        examiner = Examiner(self._parts, self._topic, all_winners, span, read.unreadable, nowhere)
        confirmed = await self._confirmed(examiner, np.union1d(suspected, sample), span.ends)
        report.refused += confirmed.refused
        for name, kind in confirmed.kinds.items():
            report.kinds[name].count += kind.count
            room = self._options.examples - len(report.kinds[name].examples)
            report.kinds[name].examples += kind.examples[:room]
        report.left += len(confirmed.hashes)

        # 5. mending
        if self._options.repair and len(confirmed.hashes):
            if not len(all_winners.hashes) and (passes == 1 or span.begins == span.ends):
                raise RecallError("item-updates holds no item: there is nothing to mend from, and nothing was changed")
            left = await self._mend(examiner, confirmed.hashes)
            report.repaired += len(confirmed.hashes) - len(left)
            report.left -= len(confirmed.hashes) - len(left)

    async def _table(self, low: int, high: int) -> Columns:
        pages, count = [], 0
        async for heads in self._parts.table.heads():
            keys = heads.hashes ^ np.uint64(SIGN)
            inside = (keys >= np.uint64(low)) & (keys <= np.uint64(high - 1))
            pages.append(heads.take(inside))
            count += len(heads.hashes)
            self._say(f"reading the item table, {count:,} records", None)
        return table_columns(pages)

    async def _collection(self, number: int, winners: Columns, settled: Any) -> list[UInt64]:
        """Hashes of rows that should not be there, and of items without a row."""
        passes = self._options.passes
        count = await self._parts.index.count()
        pages = max(1, -(-count // (passes * PAGE)))
        present = np.zeros(len(winners.hashes), dtype=np.bool_)
        extra: list[UInt64] = []
        for page in range(pages):
            hashes = hash64_each(await self._parts.index.ids(number * pages + page, passes * pages))
            self.report.collection += len(hashes)
            at = winners.find(hashes)
            present[at[at >= 0]] = True
            wanted = (at >= 0) & ~winners.deleted[at] if len(winners.hashes) else at >= 0
            extra.append(hashes[~wanted])
            self._say(f"reading the collection, {self.report.collection:,} rows", (page + 1) / pages)
        return [*extra, winners.hashes[~winners.deleted & settled & ~present]]

    def _sample(self, winners: Columns, settled: Any, suspected: UInt64) -> UInt64:
        """Items whose vectors are compared, among those that seem well."""
        well = winners.hashes[~winners.deleted & settled]
        well = well[~among(well, suspected)]
        wanted = min(len(well), -(-self._options.sample // self._options.passes))
        return np.sort(self._rng.choice(well, wanted, replace=False)) if wanted else NONE

    async def _confirmed(self, examiner: Examiner, hashes: UInt64, since: Offsets) -> _Confirmed:
        """What is wrong in two looks, and of which no event has come since then."""
        refused = 0
        confirmed = _Confirmed()
        for turn in range(LOOKS):
            if turn:
                await asyncio.sleep(LOOK_AGAIN_S)
            found = _Found(self._options.examples)
            looked_at = 0
            async for look in examiner.looks(hashes):
                found.add(look.findings)
                looked_at = min(looked_at + AT_ONCE, len(hashes))
                self._say(f"looking at {len(hashes):,} items more closely", looked_at / len(hashes))
                refused += look.refused if not turn else 0
            now = await self._topic.span()
            confirmed = found.without(await self._topic.named(since, now.ends))
            hashes = confirmed.hashes
            if not len(hashes):
                break
        confirmed.refused = refused
        return confirmed

    async def _mend(self, examiner: Examiner, hashes: UInt64) -> UInt64:
        """Mend items; those that are still wrong, or may be because the group did not get past what raced them."""
        pipeline = self._parts.pipeline()
        for _ in range(ROUNDS):
            before = await self._topic.span()
            done = 0
            async for look in examiner.looks(hashes):
                await pipeline.run([finding.mend for finding in look.findings if finding.mend is not None])
                await self._parts.index.delete([each.item_id for each in look.findings if each.mend is None])
                done += len(look.findings)
                self._say(f"mending, {done:,} of {len(hashes):,} items", done / len(hashes))
            after = await self._topic.span()
            raced = np.intersect1d(hashes, await self._topic.named(before.committed, after.ends))
            if len(raced) and not await self._settled(after):
                return np.union1d(raced, (await self._confirmed(examiner, hashes, after.ends)).hashes)
            hashes = (await self._confirmed(examiner, hashes, after.ends)).hashes
            if not len(hashes):
                break
        return hashes

    async def _settled(self, span: Span) -> bool:
        """Whether the group gets up to the ends of a span, before it makes no progress for a while."""
        self._say("waiting for the items worker", None)
        last, since_s = None, time.monotonic()
        while True:
            committed = (await self._topic.span()).committed
            if all(committed[n] >= end for n, end in span.ends.items()):
                return True
            if committed != last:
                last, since_s = committed, time.monotonic()
            if time.monotonic() - since_s > PATIENCE_S:
                return False
            await asyncio.sleep(ASK_EVERY_S)


SIGN = 1 << 63  # turns a hash into its place among signed ones, as the index orders them


def _bounds(number: int, passes: int) -> tuple[int, int]:
    """[low, high) of one pass, in the order of signed hashes."""
    low, high = (-(-(n << 64) // passes) for n in (number, number + 1))
    return low, high


def _by_partition(offsets: Offsets, partitions: Int64) -> Int64:
    """The offset of each row's partition."""
    by_number = np.zeros(max(offsets, default=0) + 1, dtype=np.int64)
    for partition, offset in offsets.items():
        by_number[partition] = offset
    return by_number[partitions]


def _disagreeing(winners: Columns, settled: Any, table: Columns) -> list[UInt64]:
    """Hashes of items whose record is not of the event that counts, and of records that no event supports."""
    at = table.find(winners.hashes)
    known, there = at >= 0, np.maximum(at, 0)
    if len(table.hashes):
        same = known & (table.places[there] == winners.places) & (table.deleted[there] == winners.deleted)
        gone = winners.deleted & (~known | table.deleted[there])
    else:
        same, gone = known, winners.deleted
    return [winners.hashes[settled & ~same & ~gone], table.hashes[(winners.find(table.hashes) < 0) & ~table.deleted]]
