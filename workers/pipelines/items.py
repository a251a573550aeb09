"""From item updates to one view's index and item table, in five steps on whole batches.

The vector is written before the record, and the record before its announcement, so that whoever learns of an item finds
all of it. Winners that must be produced again (see `item_order`) are produced before the record, which makes what they
answer a thing of the past. A worker that dies in between has committed nothing: everything comes again and has the same
effect.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.verify import MAX_LENGTH
from schemas.codec import ErrorCode
from schemas.records import ItemRecord, hash64, hash64_each
from workers.errors import ConfigurationError, InvalidInput, RowRefused
from workers.pipelines.embedding import embed_in_parts
from workers.pipelines.item_order import ItemEvent, Order, decide, standing
from workers.ports import Float32, IndexRows, ItemIndex, ItemTable, Tower
from workers.stopwatch import Observe, Stopwatch, unobserved

__all__ = ["Inputs", "ItemEvent", "ItemsPipeline", "ItemsResult", "ItemsView", "Standing"]

Inputs = Callable[[Sequence[str], Sequence[Mapping[str, Any]]], Mapping[str, NDArray[Any]]]
"""(item ids, their attributes) -> the item tower's named inputs."""

LogEnds = Callable[[], Awaitable[Mapping[int, int]]]
"""Partition of item-updates -> the offset that its next record will have. Raises DependencyError."""

VECTORS = ("item_embedding", "history_embedding")


@dataclass(frozen=True, slots=True)
class ItemsView:
    """What one bundle fixes for its items. `fields` are the attributes that can be filtered on.

    `partitions`: how many the topic has (see item_order).
    """

    dim: int
    model_version: str
    fields: tuple[str, ...]
    partitions: int | None = None


NOT_REFUSED: Mapping[int, InvalidInput] = {}


@dataclass(frozen=True, slots=True)
class Standing:
    """What stands of an item from now on, and after which offset: to be produced again."""

    record: ItemRecord
    after: int


@dataclass(slots=True)
class ItemsResult:
    """Per event of the batch, in order: None, or why it is a dead letter.

    Counts by outcome: upserted, deleted, refused, and superseded: a later update of the item stands.
    """

    errors: list[InvalidInput | None]
    outcomes: dict[str, int] = field(default_factory=dict)


Produce = Callable[[Sequence[Standing]], Awaitable[None]]
"""Returns when it is done, for sure; not every one needs producing, and once too often is harmless."""


async def _not_produced(_: Sequence[Standing]) -> None:
    """For those who only look."""


@dataclass(frozen=True, slots=True)
class _Vectors:
    """Both vectors of some events: float32[N, D] each."""

    item: Float32
    history: Float32


class ItemsPipeline:
    """Feeds one view. Running a batch again, whole or in part, changes nothing."""

    def __init__(
        self,
        view: ItemsView,
        table: ItemTable,
        index: ItemIndex,
        tower: Tower,
        inputs: Inputs,
        observe: Observe = unobserved,
        produce: Produce = _not_produced,
        log_ends: LogEnds | None = None,
    ) -> None:
        self._view = view
        self._log_ends = log_ends
        self._ends: Mapping[int, int] = {}
        self._table = table
        self._index = index
        self._tower = tower
        self._inputs = inputs
        self._observe = observe
        self._produce = produce
        self._one_at_a_time = asyncio.Lock()
        self.intent = uuid.uuid4().hex
        """Under which it tells what it is about to write."""

    async def run(self, batch: Sequence[ItemEvent]) -> ItemsResult:
        """Raises DependencyError when table, index or tower fails; the batch is to be run again then.

        Raises ConfigurationError when the table's records come from another log than the batch.
        """
        if not batch:
            return ItemsResult([])
        async with self._one_at_a_time:
            return await self._run(batch)

    async def _run(
        self,
        batch: Sequence[ItemEvent],
        refused: Mapping[int, InvalidInput] = NOT_REFUSED,
        unreadable: frozenset[str] = frozenset(),
    ) -> ItemsResult:
        """`refused`: positions of which that is known; `unreadable`: items in whose place something stands that only a
        write tells from nothing.
        """
        watch = Stopwatch(self._observe)
        # 1. records, and which event of each item counts
        stored, unread = await self._records(batch, unreadable)
        await self._require_one_log(batch, stored)
        refused = {**refused, **unread, **self._invalid_embeddings(batch)}
        order = decide(batch, stored, refused, self._view.partitions)
        watch.lap_ms("records")
        history: dict[int, bytes] = {}  # position -> history vector, of the events whose vector is in the index
        while waiting := [position for position in order.winners if position not in history]:
            # 2. item tower
            upserts = [position for position in waiting if not batch[position].deletes]
            vectors = await self._embed([batch[position] for position in upserts])
            fit = _fit(vectors.item) & _fit(vectors.history)
            line = f"the item tower gave no vector for it that is finite and no longer than {MAX_LENGTH:g}"
            for n in np.flatnonzero(~fit).tolist():
                refused[upserts[n]] = InvalidInput(ErrorCode.TOWER_OUTPUT, line)
            watch.lap_ms("tower")

            # 3. index
            rows = IndexRows(
                item_ids=[batch[position].item_id for position in upserts],
                vectors=vectors.item,
                attributes=[self._filterable(batch[position]) for position in upserts],
            )
            for n, error in (await self._upsert(rows, np.flatnonzero(fit).tolist())).items():
                refused[upserts[n]] = error
            deletes = [position for position in waiting if batch[position].deletes]
            await self._index.delete([batch[position].item_id for position in deletes])

            history |= {position: vectors.history[n].tobytes() for n, position in enumerate(upserts)}
            history |= dict.fromkeys(deletes, b"")
            watch.lap_ms("index")
            # behind a refused event, the one before it counts
            order = decide(batch, stored, refused, self._view.partitions)

        # 4. winners that compaction would lose
        records = [_record(batch[position], history[position]) for position in order.winners]
        stands = stored | {hash64(record.item_id): record for record in records}
        if order.again:
            await self._produce([Standing(stands[item_hash], after) for item_hash, after in order.again.items()])

        # 5. item table, and its feed
        expected = [stored.get(hash64(record.item_id)) for record in records]
        try:
            written = await self._table.write(records, expected, self.intent)
        except RowRefused as error:  # the others again, to the same effect; what is refused stays refused
            named = {records[row].item_id for row in error.rows or range(len(records))}
            return await self._run(batch, order.errors, unreadable | named)
        watch.lap_ms("table")
        result = _result(batch, order)
        overtaken = [position for position, done in zip(order.winners, written, strict=True) if not done]
        if overtaken:
            await self._again(batch, overtaken, result)
        return result

    async def _records(
        self, batch: Sequence[ItemEvent], unreadable: frozenset[str]
    ) -> tuple[dict[int, ItemRecord], dict[int, InvalidInput]]:
        """Stored records by item hash, and errors of the events whose record cannot be read (never overwritten)."""
        homes = {event.item_id: event.partition for event in batch}
        item_ids = list(homes)
        try:
            records = await self._table.read_to_write(hash64_each(item_ids), list(homes.values()), self.intent)
        except RowRefused as error:
            unreadable |= {item_ids[row] for row in error.rows or range(len(item_ids))}
            item_ids = [item_id for item_id in item_ids if item_id not in unreadable]
            records = await self._table.read(hash64_each(item_ids))
        stored = {hash64(i): record for i, record in zip(item_ids, records, strict=True) if record is not None}
        line = "the stored record of the item cannot be read by this version"
        return stored, {
            position: InvalidInput(ErrorCode.RECORD_UNREADABLE, line)
            for position, event in enumerate(batch)
            if event.item_id in unreadable
        }

    async def _require_one_log(self, batch: Sequence[ItemEvent], stored: Mapping[int, ItemRecord]) -> None:
        """Refuse records made from offsets that the topic does not reach: they would supersede whatever comes.

        Ends are asked for when a record is ahead of the batch, as in what is delivered again, and of the ends known.
        """
        read_to = {event.partition: event.offset for event in batch}

        def beyond() -> ItemRecord | None:
            ahead = (r for r in stored.values() if r.offset > read_to.get(r.partition, r.offset))
            return next((r for r in ahead if r.offset >= self._ends.get(r.partition, 0)), None)

        if self._log_ends is None or beyond() is None:
            return
        self._ends = await self._log_ends()
        if (record := beyond()) is not None:
            place, end = f"partition {record.partition} of item-updates", self._ends.get(record.partition, 0)
            line = f"{place} ends at {end}, and an item's record comes from its offset {record.offset}"
            todo = "the topic was made anew: empty the view, as docs/operations.md says under `Topics that change`"
            raise ConfigurationError(f"{line}; {todo}")

    def _invalid_embeddings(self, batch: Sequence[ItemEvent]) -> dict[int, InvalidInput]:
        errors = {}
        for position, event in enumerate(batch):
            given = self._given(event)
            if given is not None and (len(given) != self._view.dim or not _fit(given)):
                line = f"{len(given)} values, {self._view.dim} finite ones are needed, no longer than {MAX_LENGTH:g}"
                errors[position] = InvalidInput(ErrorCode.INVALID_EMBEDDING, line, "embedding")
        return errors

    def _given(self, event: ItemEvent) -> Float32 | None:
        """The item's vector when the update brings one for this view's model."""
        update = event.update
        if update is None or event.deletes or update.embedding is None:
            return None
        if update.embedding_model != self._view.model_version:
            return None
        with np.errstate(over="ignore"):
            return np.array(update.embedding, dtype=np.float32)

    async def _embed(self, events: Sequence[ItemEvent]) -> _Vectors:
        """Both vectors of upserts, from the tower; the item's own where the update brings it."""
        dim = self._view.dim
        if not events:
            return _Vectors(np.zeros((0, dim), dtype=np.float32), np.zeros((0, dim), dtype=np.float32))
        inputs = self._inputs([event.item_id for event in events], [_attributes(event) for event in events])
        outputs = await embed_in_parts(self._tower, inputs, VECTORS, dim)
        item, history = (np.array(outputs[name], dtype=np.float32) for name in VECTORS)
        for n, event in enumerate(events):
            given = self._given(event)
            if given is not None:
                item[n] = given
        return _Vectors(item, history)

    def _filterable(self, event: ItemEvent) -> dict[str, Any]:
        attributes = _attributes(event)
        return {name: attributes[name] for name in self._view.fields if name in attributes}

    async def _upsert(self, rows: IndexRows, chosen: Sequence[int]) -> dict[int, InvalidInput]:
        """Write the chosen rows; errors of those that the index refuses, found by halving if it does not say which."""
        if not chosen:
            return {}
        try:
            await self._index.upsert(_take(rows, chosen))
        except RowRefused as error:
            if len(chosen) == 1:
                return {chosen[0]: InvalidInput(ErrorCode.INDEX_REFUSED, str(error))}
            if error.rows:
                guilty = {chosen[row] for row in error.rows}
                errors = {n: InvalidInput(ErrorCode.INDEX_REFUSED, str(error)) for n in guilty}
                return errors | await self._upsert(rows, [n for n in chosen if n not in guilty])
            half = len(chosen) // 2
            return await self._upsert(rows, chosen[:half]) | await self._upsert(rows, chosen[half:])
        return {}

    async def _again(self, batch: Sequence[ItemEvent], overtaken: Sequence[int], result: ItemsResult) -> None:
        """Another worker wrote these items since step 1, and either vector may stand in the index.

        What stands in the table now and our events are run together: whichever counts is written again, all of it. Even
        so a vector of ours may come late again, if we are no longer the owner of the partition: the intent is left for
        who is, also if this fails and the batch comes again, which takes back another one.
        """
        self.intent = uuid.uuid4().hex
        events = [batch[position] for position in overtaken]
        stored = await self._table.read(hash64_each([event.item_id for event in events]))
        others = [standing(record) for record in stored if record is not None]
        again = await self._run([*others, *events])
        for position, error in zip(overtaken, again.errors[len(others) :], strict=True):
            result.errors[position] = error


def _fit(vectors: Float32) -> NDArray[np.bool_]:
    """Whether vectors (last axis) are finite, and so short that no score of theirs takes whole lists with it."""
    lengths: NDArray[np.float64] = np.linalg.norm(vectors.astype(np.float64), axis=-1)
    return lengths <= MAX_LENGTH


def _attributes(event: ItemEvent) -> Mapping[str, Any]:
    return (event.update.attributes if event.update is not None else None) or {}


def _take(rows: IndexRows, chosen: Sequence[int]) -> IndexRows:
    if len(chosen) == len(rows.item_ids):
        return rows
    return IndexRows(
        item_ids=[rows.item_ids[n] for n in chosen],
        vectors=rows.vectors[list(chosen)],
        attributes=[rows.attributes[n] for n in chosen],
    )


def _record(event: ItemEvent, history_vector: bytes) -> ItemRecord:
    return ItemRecord(
        item_id=event.item_id,
        partition=event.partition,
        offset=event.offset,
        deleted=event.deletes,
        version=event.version,
        history_vector=history_vector,
        update=event.raw,
    )


def _result(batch: Sequence[ItemEvent], order: Order) -> ItemsResult:
    winners = set(order.winners)
    result = ItemsResult([order.errors.get(position) for position in range(len(batch))])
    for position, event in enumerate(batch):
        if position in order.errors:
            outcome = "refused"
        elif position not in winners:
            outcome = "superseded"
        else:
            outcome = "deleted" if event.deletes else "upserted"
        result.outcomes[outcome] = result.outcomes.get(outcome, 0) + 1
    return result
