"""What is wrong with single items: the topic's winner, the item's record and its row, read afresh and held together.

What an item should be is asked of the items pipeline itself: it runs the winning event over the stored record, on a
table and an index in memory. So an event that it refuses is as if it had not come, here as there.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas import codec
from schemas.records import ItemRecord, hash64, hash64_each
from workers.errors import RowRefused
from workers.index.memory import MemoryItemIndex
from workers.index.schema import Collection, Metric
from workers.pipelines.item_order import ItemEvent, decide, standing
from workers.pipelines.items import Inputs, ItemsPipeline, ItemsView
from workers.ports import Float32, IndexRows, ItemIndex, ItemTable, Tower, UInt64
from workers.reconcile.columns import Columns, partition_and_offset, place
from workers.reconcile.topic import ItemTopic, Offsets, Span
from workers.stores.item_memory import MemoryItemTable

MISSING, ORPHANED, STALE, WRONG_MODEL = KINDS = ("missing", "orphaned", "stale", "wrong_model")
TABLE, COLLECTION = "table", "collection"
AT_ONCE = 500
NO_PLACES: Mapping[int, int] = {}
NO_KEYS: Set[int] = frozenset()
SAME = 1e-3  # how far a vector may be from the tower's, of its length: batches and machines round differently


@dataclass(frozen=True, slots=True)
class Parts:
    """One view's backends, its item tower, and what makes the tower's inputs."""

    view: ItemsView
    collection: str
    metric: Metric
    table: ItemTable
    index: ItemIndex
    tower: Tower
    inputs: Inputs

    def pipeline(self, table: ItemTable | None = None, index: ItemIndex | None = None) -> ItemsPipeline:
        """The pipeline of an items worker; on other backends when they are given."""
        return ItemsPipeline(self.view, table or self.table, index or self.index, self.tower, self.inputs)


@dataclass(frozen=True, slots=True)
class Finding:
    """One item that is not as it should be: what is wrong, as pairs of kind and where; and what mends it.

    That is an event for the pipeline, or, for a row that nothing else knows, the id to delete.
    """

    item_hash: int
    item_id: str
    wrong: tuple[tuple[str, str], ...]
    topic: int | None  # the winner's place
    table: int | None  # the record's
    mend: ItemEvent | None

    @property
    def kinds(self) -> set[str]:
        """What is wrong."""
        return {kind for kind, _ in self.wrong}

    def example(self) -> dict[str, Any]:
        """For people and JSON."""
        return {
            "item_id": self.item_id,
            "where": sorted({where for _, where in self.wrong}),
            "topic": _named(self.topic),
            "table": _named(self.table),
        }


@dataclass(slots=True)
class Look:
    """What was found, and how many items have an event that the pipeline refuses, which is no finding."""

    findings: list[Finding] = field(default_factory=list)
    refused: int = 0


@dataclass(frozen=True, slots=True)
class _Seen:
    """One item as it stands. `row` is its position in `rows`."""

    event: ItemEvent | None
    refused: bool
    record: ItemRecord | None
    rows: IndexRows
    row: int | None


class RowExaminer:
    """Holds items' records and rows against the events that they should be made of."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def records(self, hashes: UInt64) -> tuple[dict[int, ItemRecord], set[int]]:
        """Records by hash, and hashes of those that this version cannot read."""
        unreadable: set[int] = set()
        try:
            found = await self._parts.table.read(hashes)
        except RowRefused as error:
            unreadable = set(hashes[error.rows or []].tolist())
            hashes = np.array([each for each in hashes.tolist() if each not in unreadable], dtype=np.uint64)
            found = await self._parts.table.read(hashes)
        return {h: r for h, r in zip(hashes.tolist(), found, strict=True) if r is not None}, unreadable

    async def look(
        self,
        due: Mapping[int, ItemEvent | None],
        records: Mapping[int, ItemRecord],
        winners: Mapping[int, int] = NO_PLACES,
        unreadable: Set[int] = NO_KEYS,
    ) -> Look:
        """What is wrong with items. `due`: hash -> the event that each should be made of, None where nothing is known.

        `unreadable`: those whose update cannot be read, so that what stands in the table counts.
        """
        rows = await self._parts.index.rows(np.array(list(due), dtype=np.uint64))
        positions = {hash64(item_id): n for n, item_id in enumerate(rows.item_ids)}
        rehearsal = await self._rehearse([event for event in due.values() if event is not None], records)
        look = Look()
        for item_hash, event in due.items():
            record, refused = records.get(item_hash), event is not None and event.item_id in rehearsal.refused
            if event is None and item_hash in unreadable:
                refused = True
            look.refused += refused
            seen = _Seen(event, refused, record, rows, positions.get(item_hash))
            wrong, mend = _judge(seen, rehearsal, self._parts.metric)
            if wrong:
                item_id = event.item_id if event else record.item_id if record else rows.item_ids[seen.row or 0]
                at = None if record is None else place(record.partition, record.offset)
                look.findings.append(Finding(item_hash, item_id, tuple(wrong), winners.get(item_hash), at, mend))
        return look

    async def standing(self, hashes: UInt64, wanted: Callable[[ItemRecord], bool]) -> Look:
        """What is wrong with the rows of these items when their records are right. `wanted`: which records to look at.

        Raises DependencyError.
        """
        look = Look()
        for start in range(0, len(hashes), AT_ONCE):
            records, _ = await self.records(hashes[start : start + AT_ONCE])
            events = {item_hash: _standing(record) for item_hash, record in records.items() if wanted(record)}
            due: dict[int, ItemEvent | None] = {h: event for h, event in events.items() if event is not None}
            look.findings += (await self.look(due, records)).findings
        return look

    async def _rehearse(self, events: Sequence[ItemEvent], records: Mapping[int, ItemRecord]) -> "_Rehearsal":
        """What the pipeline would make of these events on top of the records."""
        parts = self._parts
        table = MemoryItemTable(parts.view.dim)
        index = MemoryItemIndex(Collection(parts.collection, parts.view.dim, parts.metric, parts.view.model_version))
        hashes = hash64_each([event.item_id for event in events])
        stored = [records[item_hash] for item_hash in hashes.tolist() if item_hash in records]
        await table.write(stored, [None] * len(stored))
        result = await parts.pipeline(table, index).run(events)
        rows, after = await index.rows(hashes), await table.read(hashes)
        return _Rehearsal(
            {event.item_id for event, error in zip(events, result.errors, strict=True) if error is not None},
            rows,
            {item_id: n for n, item_id in enumerate(rows.item_ids)},
            {record.item_id: record.history_vector for record in after if record is not None},
        )


class Examiner:
    """Looks at items by hash.

    `winners` are the topic's, read up to the ends of `span`; those that were not committed then are only late, and
    `unreadable` items are not judged, nor are those whose record stands `nowhere`, for it cannot be read.
    """

    def __init__(
        self, parts: Parts, topic: ItemTopic, winners: Columns, span: Span, unreadable: set[int], nowhere: UInt64
    ) -> None:
        self._rows = RowExaminer(parts)
        self._topic = topic
        self._winners = winners
        self._span = span
        self._unreadable = unreadable
        self._nowhere = nowhere
        self._partitions = parts.view.partitions

    async def looks(self, hashes: UInt64) -> AsyncIterator[Look]:
        """All of them, some hundred at a time, in the order of the topic. Raises DependencyError."""
        at = self._winners.find(hashes)
        if len(self._winners.hashes):
            hashes = hashes[np.argsort(self._winners.places[at])]
        starts, ends = self._rows_of(hashes)
        events = np.maximum(1, ends - starts).cumsum()  # as many as a look may have to read
        for some in np.split(hashes, np.flatnonzero(np.diff((events - 1) // AT_ONCE)) + 1):
            if len(some):
                yield await self._look(some)

    async def _look(self, hashes: UInt64) -> Look:
        records, unreadable = await self._rows.records(hashes)
        unreadable |= set(np.intersect1d(hashes, self._nowhere).tolist())
        winners = await self._winners_of(hashes, records)
        due = await self._due(hashes, records, winners)
        judged = {item_hash: event for item_hash, event in due.items() if item_hash not in unreadable}
        look = await self._rows.look(judged, records, winners, self._unreadable)
        look.refused += len(unreadable)
        return look

    def _rows_of(self, hashes: UInt64) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Where the winners of each item begin and end: one of each partition."""
        return self._winners.hashes.searchsorted(hashes), self._winners.hashes.searchsorted(hashes, side="right")

    async def _winners_of(self, hashes: UInt64, records: Mapping[int, ItemRecord]) -> dict[int, int]:
        """Places of the topic's winners, by hash: that in the partition of the record, else that of them which counts.

        Which one does is asked of `item_order`, unless one is still to be taken in: then it is that.
        """
        found: dict[int, int] = {}
        several: list[int] = []
        for item_hash, start, end in zip(
            hashes.tolist(), *(each.tolist() for each in self._rows_of(hashes)), strict=True
        ):
            places = self._winners.places[start:end].tolist()
            home = records[item_hash].partition if item_hash in records else None
            chosen = [at for at in places if partition_and_offset(at)[0] == home]
            chosen += [at for at in places if self._is_late(at)]
            if places:
                found[item_hash] = next(iter(chosen), places[0])
            if len(places) > 1 and not chosen:
                several += places
        if several:
            events = [event for _, event in sorted((await self._topic.events(several)).items())]
            for winner in decide(events, records, {}, self._partitions).winners:
                event = events[winner]
                found[hash64(event.item_id)] = place(event.partition, event.offset)
        return found

    def _is_late(self, at: int) -> bool:
        partition, offset = partition_and_offset(at)
        return offset >= self._span.committed[partition]

    async def _due(
        self, hashes: UInt64, records: Mapping[int, ItemRecord], winners: Mapping[int, int]
    ) -> dict[int, ItemEvent | None]:
        """The event that each item should be made of, None where nothing is known.

        Left out are items of which an event is still to be taken in, and those whose event has just gone.
        """
        due: dict[int, ItemEvent | None] = {}
        fetch: dict[int, int] = {}
        newer = await self._newer({h: record for h, record in records.items() if h not in winners})
        for item_hash in hashes.tolist():
            at, record = winners.get(item_hash), records.get(item_hash)
            if at is None:
                event = _standing(newer[item_hash]) if item_hash in newer else None
                if event is not None or item_hash not in newer:
                    due[item_hash] = event
                continue
            partition, offset = partition_and_offset(at)
            if self._is_late(at):
                continue
            if record is not None and record.partition == partition and record.offset >= offset:
                event = _standing(record)
                if event is not None:
                    due[item_hash] = event
            else:
                fetch[at] = item_hash
        for at, event in (await self._topic.events(list(fetch))).items():
            due[fetch[at]] = event
        return due

    async def _newer(self, unsupported: Mapping[int, ItemRecord]) -> dict[int, ItemRecord]:
        """Of records that no event supports those of an event that came after the topic was read: they stand.

        One from behind the end of the topic is none of them: it was made of another topic.
        """
        ends: Offsets = self._span.ends
        newer = {h: record for h, record in unsupported.items() if record.offset >= ends.get(record.partition, 0)}
        if newer:
            ends = (await self._topic.span()).ends
        return {h: record for h, record in newer.items() if record.offset < ends.get(record.partition, 0)}


@dataclass(frozen=True, slots=True)
class _Rehearsal:
    """What the pipeline makes of events: which it refuses, and the rows and history vectors of the others."""

    refused: set[str]
    rows: IndexRows
    positions: dict[str, int]
    history: dict[str, bytes]

    def differs(self, event: ItemEvent, record: ItemRecord, rows: IndexRows, row: int, metric: Metric) -> list[str]:
        """Where a live item's vectors or filterable attributes are not what the pipeline makes of its event."""
        ours = self.positions[event.item_id]
        vector, wanted = rows.vectors[row], self.rows.vectors[ours]
        if metric == "COSINE":  # a server may keep directions alone
            vector, wanted = _direction(vector), _direction(wanted)
        same = _close(vector, wanted) and rows.attributes[row] == self.rows.attributes[ours]
        history = np.frombuffer(record.history_vector, dtype="<f4")
        same_history = _close(history, np.frombuffer(self.history[event.item_id], dtype="<f4"))
        return ([] if same else [COLLECTION]) + ([] if same_history else [TABLE])


def _judge(seen: _Seen, rehearsal: _Rehearsal, metric: Metric) -> tuple[list[tuple[str, str]], ItemEvent | None]:
    """What is wrong with an item, and the event that mends it."""
    event, record, row = seen.event, seen.record, seen.row
    there = record is not None and not record.deleted
    if seen.refused and record is None:  # an update before the refused one may count: a row is not to be judged
        return [], None
    wrong: list[tuple[str, str]] = []
    mend: ItemEvent | None
    if event is not None and not seen.refused:
        mend, live = event, not event.deletes
        if live and record is None:
            wrong.append((MISSING, TABLE))
        elif live and record is not None and (record.offset < event.offset or record.deleted):
            wrong.append((STALE, TABLE))
    else:  # nothing is known, or what is known does not count: then what stands in the table does
        live = seen.refused and there
        mend = None if record is None else _stand_in(record, live=live)
    if there and not live:
        wrong.append((ORPHANED, TABLE))
    if live and row is None:
        wrong.append((MISSING, COLLECTION))
    elif row is not None and not live:
        wrong.append((ORPHANED, COLLECTION))
    elif live and row is not None and not wrong and event is not None and record is not None and not seen.refused:
        wrong += [(WRONG_MODEL, where) for where in rehearsal.differs(event, record, seen.rows, row, metric)]
    return wrong, mend


def _stand_in(record: ItemRecord, *, live: bool) -> ItemEvent | None:
    """What makes rows agree with a record that no event of the topic supports: its own event, or its deletion."""
    if live or record.deleted:
        return _standing(record)
    return ItemEvent(record.item_id, None, b"", record.partition, record.offset)


def _standing(record: ItemRecord) -> ItemEvent | None:
    try:
        return standing(record)
    except codec.DecodeError:
        return None


def _close(vector: Float32, wanted: Float32) -> bool:
    if vector.shape != wanted.shape:
        return False
    return bool(np.linalg.norm(vector - wanted) <= SAME * max(float(np.linalg.norm(wanted)), 1e-6))


def _direction(vector: Float32) -> Float32:
    length = np.linalg.norm(vector)
    return vector / length if length else vector


def _named(at: int | None) -> str | None:
    if at is None:
        return None
    partition, offset = partition_and_offset(at)
    return f"{partition}:{offset}"
