"""From recall requests to candidate lists, in six steps on whole batches. Every request gets an answer."""

import asyncio
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from models import tensors
from models.tensors import Encoding, UserFeatures
from schemas.recall import CandidateList, Reason, RecallRequest, Status, Timings
from schemas.records import hash64_each, holds_event, seen_items
from workers import filters, select
from workers.dependencies import Dependencies
from workers.errors import DependencyError, DependencyTimeout
from workers.ports import Clock, Float32, ItemIndex, StoredUser, Tower, UInt64, UserTable
from workers.stopwatch import Observe, Stopwatch, unobserved

T = TypeVar("T")

DEFAULT_SCENE = "default"
SOURCE_TOWER = "tower"
MAX_SEARCH_DEPTH = 16_384  # what one Milvus search may return
ANSWER_MARGIN_MS = 50  # kept for encoding, publishing and the way back
EVERYTHING = np.iinfo(np.int64).max
DEGRADED = {
    Reason.FEATURES_UNAVAILABLE,
    Reason.FEATURES_STALE,
    Reason.MODEL_UNAVAILABLE,
    Reason.INDEX_UNAVAILABLE,
}


class HistoryVectors(Protocol):
    """The items' history vectors, near at hand, and which items were deleted a moment ago."""

    async def vectors(self, hashes: UInt64) -> Float32:
        """float32[B, H, D] of uint64[B, H]; zeros for 0 and for unknown items."""
        ...

    def deleted(self, hashes: UInt64) -> NDArray[np.bool_]:
        """bool[N]: True where the item of that hash was deleted recently."""
        ...


@dataclass(frozen=True, slots=True)
class Incoming:
    """One readable request and the time at which the broker took its record."""

    request: RecallRequest
    taken_ms: int

    @property
    def deadline_ms(self) -> int:
        """When the answer must have been published."""
        return self.taken_ms + self.request.timeout_ms

    @property
    def as_of_ms(self) -> int:
        """The time of the request for ages and gaps; the broker's time lets a redelivery see the same."""
        return self.taken_ms if self.request.timestamp_ms is None else self.request.timestamp_ms


@dataclass(frozen=True, slots=True)
class View:
    """What one bundle fixes for its answers."""

    encoding: Encoding
    dim: int
    model_version: str
    collection: str


@dataclass(frozen=True, slots=True)
class StepTimeouts:
    """The longest each dependency may take, in milliseconds, when the deadline leaves that much."""

    store_ms: int
    tower_ms: int
    index_ms: int


@dataclass(frozen=True, slots=True)
class _Row:
    """What the steps found out about one request."""

    incoming: Incoming
    newest_ms: int | None  # the newest visible event with an item; None = there is none
    seen: UInt64
    excluded: UInt64
    where: filters.Filter
    reasons: list[Reason]


class RecallPipeline:
    """Answers batches of requests for one view. Holds no state between batches; two batches may run at once."""

    def __init__(
        self,
        view: View,
        users: UserTable,
        items: HistoryVectors,
        tower: Tower,
        index: ItemIndex,
        clock: Clock,
        timeouts: StepTimeouts,
        dependencies: Dependencies,
        observe: Observe = unobserved,
    ) -> None:
        self._view = view
        self._users = users
        self._items = items
        self._tower = tower
        self._index = index
        self._clock = clock
        self._timeouts = timeouts
        self._dependencies = dependencies
        self._observe = observe

    async def run(self, batch: Sequence[Incoming]) -> list[CandidateList]:
        """One answer per request, in input order. A failing dependency gives a `degraded` answer, never an exception.

        Requests are answered together with those that have about as much time left, so that one in a hurry does not
        cut short what the others may wait for.
        """
        now_ms = self._clock.now_ms()
        answers: dict[int, CandidateList] = {}
        groups: dict[int, dict[int, filters.Filter]] = {}
        for position, incoming in enumerate(batch):
            admitted = self._admit(incoming, now_ms)
            if isinstance(admitted, CandidateList):
                answers[position] = admitted
            else:
                groups.setdefault((incoming.deadline_ms - now_ms).bit_length(), {})[position] = admitted
        lists = await asyncio.gather(
            *(self._answer([batch[n] for n in group], list(group.values())) for group in groups.values())
        )
        for group, group_answers in zip(groups.values(), lists, strict=True):
            answers.update(zip(group, group_answers, strict=True))
        return [answers[position] for position in range(len(batch))]

    def _admit(self, incoming: Incoming, now_ms: int) -> filters.Filter | CandidateList:
        """Its filter; or the answer that needs no work: too late, or asking for what cannot be done."""
        request = incoming.request
        if now_ms >= incoming.deadline_ms:
            return without_items(incoming, now_ms, Status.EXPIRED, Reason.DEADLINE_EXCEEDED, self._view)
        rejected = partial(without_items, incoming, now_ms, Status.REJECTED, view=self._view)
        try:
            where = filters.checked(request.filter, self._view.encoding.spec.filterable)
        except filters.InvalidFilter as error:
            return rejected(Reason.INVALID_FILTER, error_field=str(error))
        if request.scene != DEFAULT_SCENE:
            return rejected(Reason.INVALID_REQUEST, error_field="scene")
        if request.anchor_items:
            return rejected(Reason.INVALID_REQUEST, error_field="anchor_items")
        return where

    async def _answer(self, batch: Sequence[Incoming], wheres: Sequence[filters.Filter]) -> list[CandidateList]:
        """The six steps, for requests whose deadlines lie close together, each with its filter."""
        view, timeouts = self._view, self._timeouts
        requests = [incoming.request for incoming in batch]
        until = _Until(self._clock, min(incoming.deadline_ms for incoming in batch) - ANSWER_MARGIN_MS)
        watch = Stopwatch(self._observe)
        failed: list[Reason] = []

        # 1. records: one read of records and seen sets
        stored = await self._attempt(
            "redis", self._users.read([r.user_id for r in requests]), until.at_most(timeouts.store_ms)
        )
        if stored is None:
            failed.append(Reason.FEATURES_UNAVAILABLE)
            stored = [StoredUser(record=None, seen=b"")] * len(batch)
        visible_before_ms = np.array([_visible_before_ms(request) for request in requests], dtype=np.int64)
        features = tensors.user_features([user.record for user in stored], visible_before_ms, view.encoding)

        # 2. history vectors of the items in them
        vectors = await self._attempt(
            "redis", self._items.vectors(features.item_hashes), until.at_most(timeouts.store_ms)
        )
        if vectors is None:
            failed.append(Reason.FEATURES_UNAVAILABLE)
            vectors = np.zeros((*features.item_hashes.shape, view.dim), dtype=np.float32)

        # 3. inputs
        as_of_ms = np.array([incoming.as_of_ms for incoming in batch], dtype=np.int64)
        inputs = tensors.user_inputs(
            features, vectors, as_of_ms, [request.context for request in requests], view.encoding
        )
        features_ms = watch.lap_ms("features")

        # 4. tower
        outputs = await self._attempt("tower", self._tower.embed(inputs), until.at_most(timeouts.tower_ms))
        tower_ms = watch.lap_ms("tower")

        # 5. search: one for every distinct depth and filter
        rows = [
            self._row(incoming, where, stored[n], features, n, failed)
            for n, (incoming, where) in enumerate(zip(batch, wheres, strict=True))
        ]
        embeddings = None if outputs is None else outputs["user_embedding"]
        found = await self._search(rows, embeddings, until.at_most(timeouts.index_ms))
        timings = Timings(features=features_ms, tower=tower_ms, search=watch.lap_ms("search"))

        # 6. select
        answers = [self._select(row, *hits, timings) for row, hits in zip(rows, found, strict=True)]
        watch.lap_ms("select")
        return answers

    def _row(
        self,
        incoming: Incoming,
        where: filters.Filter,
        user: StoredUser,
        features: UserFeatures,
        n: int,
        failed: list[Reason],
    ) -> _Row:
        request = incoming.request
        reasons = list(dict.fromkeys(failed))
        if features.unreadable[n] and not failed:  # stored by a version that this one cannot read
            reasons.append(Reason.FEATURES_UNAVAILABLE)
        elif not failed:
            if not features.known[n]:
                reasons.append(Reason.COLD_START)
            if request.after_event_id is not None and not holds_event(user.record, request.after_event_id):
                reasons.append(Reason.FEATURES_STALE)
        newest_ms = int(features.newest_ms[n]) or None
        seen = np.zeros(0, dtype=np.uint64)
        if request.exclude_seen:
            seen = seen_items(user.seen, None if request.timestamp_ms is None else _floor(request, self._view.encoding))
        excluded = np.sort(hash64_each(request.exclude_items))
        return _Row(incoming, newest_ms, seen, excluded, where, reasons)

    async def _search(
        self, rows: Sequence[_Row], embeddings: Float32 | None, allowed_s: float
    ) -> list[tuple[Sequence[str], Float32]]:
        """Hits of every row; rows without any because something failed have the reason added."""
        found: list[tuple[Sequence[str], Float32]] = [((), np.zeros(0, dtype=np.float32))] * len(rows)
        groups: dict[tuple[int, filters.Filter], list[int]] = {}
        for position, row in enumerate(rows):
            if embeddings is None or not np.isfinite(embeddings[position]).all():
                row.reasons.append(Reason.MODEL_UNAVAILABLE)
                continue
            removable = len(row.seen) + len(row.excluded)
            depth = select.search_depth(row.incoming.request.k, removable, MAX_SEARCH_DEPTH)
            groups.setdefault((depth, row.where), []).append(position)
        if embeddings is None:
            return found
        searches = (self._index.search(embeddings[group], *asked) for asked, group in groups.items())
        results = await asyncio.gather(*(self._attempt("milvus", search, allowed_s) for search in searches))
        for group, hits in zip(groups.values(), results, strict=True):
            for place, position in enumerate(group):
                if hits is None or not np.isfinite(hits.scores[place]).all():
                    rows[position].reasons.append(Reason.INDEX_UNAVAILABLE)
                else:
                    found[position] = hits.item_ids[place], hits.scores[place]
        return found

    def _select(self, row: _Row, item_ids: Sequence[str], scores: Float32, timings: Timings) -> CandidateList:
        incoming, request = row.incoming, row.incoming.request
        now_ms = self._clock.now_ms()
        if now_ms > incoming.deadline_ms:
            return without_items(incoming, now_ms, Status.EXPIRED, Reason.DEADLINE_EXCEEDED, self._view)
        selection = select.candidates(
            item_ids, scores, k=request.k, seen=row.seen, excluded=row.excluded, deleted=self._items
        )
        failures = [reason for reason in row.reasons if reason in DEGRADED]
        short = [Reason.SHORT_LIST] if len(selection.item_ids) < request.k else []
        worked_ms = timings.features + timings.tower + timings.search
        return CandidateList(
            request_id=request.request_id,
            user_id=request.user_id,
            scene=request.scene,
            status=Status.DEGRADED if failures else Status.OK,
            timestamp_ms=now_ms,
            reasons=[str(reason) for reason in failures or [*row.reasons, *short]],
            item_ids=selection.item_ids,
            scores=selection.scores,
            sources=[SOURCE_TOWER] * len(selection.item_ids),
            model_version=self._view.model_version,
            collection=self._view.collection,
            feature_age_ms=None if row.newest_ms is None else max(0, incoming.as_of_ms - row.newest_ms),
            removed=selection.removed,
            timings_ms=Timings(
                queue=max(0.0, now_ms - incoming.taken_ms - worked_ms),
                features=timings.features,
                tower=timings.tower,
                search=timings.search,
                total=float(max(0, now_ms - incoming.taken_ms)),
            ),
        )

    async def _attempt(self, dependency: str, work: Awaitable[T], timeout_s: float) -> T | None:
        """The result, or None when the dependency failed or took too long."""
        try:
            async with asyncio.timeout(timeout_s):
                result = await work
        except DependencyError as error:
            self._dependencies.failed(error)
            return None
        except TimeoutError:
            self._dependencies.failed(DependencyTimeout(dependency, f"no answer in {timeout_s * 1000:.0f} ms"))
            return None
        self._dependencies.worked(dependency)
        return result


def without_items(
    incoming: Incoming,
    now_ms: int,
    status: Status,
    reason: Reason,
    view: View | None,
    error_field: str | None = None,
) -> CandidateList:
    """The answer that has no list."""
    waited_ms = float(max(0, now_ms - incoming.taken_ms))
    return CandidateList(
        request_id=incoming.request.request_id,
        user_id=incoming.request.user_id,
        scene=incoming.request.scene,
        status=status,
        timestamp_ms=now_ms,
        reasons=[str(reason)],
        error_field=error_field,
        model_version=None if view is None else view.model_version,
        collection=None if view is None else view.collection,
        timings_ms=Timings(queue=waited_ms, total=waited_ms),
    )


class _Until:
    """How long the steps of one batch may take."""

    def __init__(self, clock: Clock, deadline_ms: int) -> None:
        self._end = time.perf_counter() + max(1, deadline_ms - clock.now_ms()) / 1000

    def at_most(self, limit_ms: int) -> float:
        """Seconds that a step may take: its own limit, or what is left before the deadline."""
        return max(0.001, min(limit_ms / 1000, self._end - time.perf_counter()))


def _visible_before_ms(request: RecallRequest) -> int:
    return EVERYTHING if request.timestamp_ms is None else request.timestamp_ms


def _floor(request: RecallRequest, encoding: Encoding) -> int:
    """The as-of time in whole steps of the spec's time resolution: what happened in the same step is not seen."""
    step_ms = encoding.spec.history.time_resolution_ms
    return (request.timestamp_ms or 0) // step_ms * step_ms
