"""From recall requests to candidate lists, in six steps on whole batches. Every request gets an answer."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models import tensors
from models.columns import UserFeatures
from models.spec import Spec
from models.tensors import Inputs
from schemas.recall import CandidateList, Reason, RecallRequest, Status, Timings
from schemas.records import TOKEN_SLICE, hash64_each, holds_event, seen_items
from workers import select
from workers.dependencies import Dependencies
from workers.pipelines.admission import ANSWER_MARGIN_MS, Asked, Incoming, View, admit, without_items
from workers.pipelines.anchors import read_anchors
from workers.pipelines.attempts import Attempts
from workers.pipelines.embedding import embed
from workers.pipelines.inputs import user_inputs
from workers.pipelines.ladder import Ladder
from workers.pipelines.retrieval import Retrieval
from workers.pipelines.rows import Findings, Row
from workers.pipelines.shortlist import Facts, Shortlist, Shortlisting
from workers.pipelines.sourcing import Sourcing
from workers.ports import (
    MAX_SEARCH_DEPTH,
    CandidateSource,
    Clock,
    Float32,
    HistoryVectors,
    Query,
    StoredUser,
    Tower,
    UInt64,
    UserTable,
)
from workers.remembered import Results, result_key
from workers.stopwatch import Observe, Stopwatch, unobserved

SESSION_ITEMS = 5
CAPPED_DEPTH = 3
CAPPED_DEEPER = 8
DELETED_MARGIN = 64  # items that were deleted a moment ago, and that the index still has
STEP_DOWN_MS = 15  # of ANSWER_MARGIN_MS, before the last list for a new filter is begun
TOWER = "tower"
SESSION = "session"
VECTOR = "user_embedding"
EVERYTHING = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class StepTimeouts:
    """The longest each dependency may take, in milliseconds, when the deadline leaves that much."""

    store_ms: int
    tower_ms: int
    index_ms: int


@dataclass(frozen=True, slots=True)
class Parts:
    """What the steps use. `sources` holds every name that a scene may give."""

    users: UserTable
    items: HistoryVectors
    facts: Facts
    tower: Tower
    sources: Mapping[str, CandidateSource]
    ladder: Ladder
    results: Results[Findings]
    sourcing: Sourcing | None = None  # None: the spec has no value that a feature source gives

    def expire(self) -> None:
        """Let go of what was kept of users and is too old, though nobody asks."""
        self.results.expire()
        self.ladder.expire()
        if self.sourcing is not None:
            self.sourcing.expire()


class RecallPipeline:
    """Answers batches of requests for one view. Two batches may run at once."""

    def __init__(
        self,
        view: View,
        parts: Parts,
        clock: Clock,
        timeouts: StepTimeouts,
        dependencies: Dependencies,
        observe: Observe = unobserved,
    ) -> None:
        self._view = view
        self._parts = parts
        self._clock = clock
        self._timeouts = timeouts
        self._dependencies = dependencies
        self._observe = observe
        self._retrieval = Retrieval(parts.sources, timeouts.index_ms)
        self._shortlisting = Shortlisting(parts.items, parts.facts, timeouts.store_ms)

    async def run(self, batch: Sequence[Incoming]) -> list[CandidateList]:
        """One answer per request, in input order. A failing dependency gives a `degraded` answer, never an exception.

        All of them have as long as the one with the least time: see `by_time_left`.
        """
        now_ms = self._clock.now_ms()
        answers: dict[int, CandidateList] = {}
        asked: dict[int, Asked] = {}
        for position, incoming in enumerate(batch):
            admitted = admit(incoming, self._view, now_ms)
            if isinstance(admitted, CandidateList):
                answers[position] = admitted
            else:
                asked[position] = admitted
        if asked:
            walked = await self._walk(list(asked.values()))
            answers.update((position, answer) for position, (_, answer) in zip(asked, walked, strict=True))
        return [answers[position] for position in range(len(batch))]

    async def trace(self, incoming: Incoming) -> tuple[Row | None, CandidateList]:
        """One request alone: what the steps found out, and the answer. None when the answer needed no work."""
        admitted = admit(incoming, self._view, self._clock.now_ms())
        return (None, admitted) if isinstance(admitted, CandidateList) else (await self._walk([admitted]))[0]

    async def _walk(self, batch: Sequence[Asked]) -> list[tuple[Row, CandidateList]]:
        """The six steps, for requests whose deadlines lie close together."""
        deadline_ms = min(asked.incoming.deadline_ms for asked in batch) - ANSWER_MARGIN_MS
        attempt = Attempts(self._dependencies, self._clock, deadline_ms)
        watch = Stopwatch(self._observe)

        # 1. records: one read of records and seen sets
        users = await attempt(
            "redis", self._parts.users.read([asked.request.user_id for asked in batch]), self._timeouts.store_ms
        )
        rows = [self._row(asked, None if users is None else users[n]) for n, asked in enumerate(batch)]
        fresh = [row for row in rows if not self._reuse(row)]
        known = [row for row in fresh if not row.failures]  # whose tower runs, also when anchors are not to be had

        # 2. history vectors of anchors and of the items in records, 3. inputs, 4. tower
        await read_anchors(fresh, self._parts.items, attempt, self._timeouts.store_ms)
        features_ms, tower_ms = await self._understand(known, attempt, watch)

        # 5. search: every source of the scene
        await self._retrieval.run(fresh, [_first_depth(row) for row in fresh], attempt)
        search_ms = watch.lap_ms("search")

        # 6. select: and where that leaves too few, search deeper, or take the next best thing
        lists = await self._shortlisting.run(rows, attempt)
        search_ms += await self._deepen(rows, lists, attempt, watch)
        for row, shortlist in zip(rows, lists, strict=True):
            if _cut_short(row, shortlist):
                row.fail(Reason.INDEX_UNAVAILABLE)  # there is more, deeper than it was searched
        for row in fresh:
            if row.key is not None and not row.failures:
                self._parts.results.put(row.key, row.findings())
        await self._step_down(rows, lists, attempt)
        timings = Timings(features=features_ms, tower=tower_ms, search=search_ms)
        answers = [self._answer_of(row, shortlist, timings) for row, shortlist in zip(rows, lists, strict=True)]
        watch.lap_ms("select")
        return list(zip(rows, answers, strict=True))

    def _row(self, asked: Asked, user: StoredUser | None) -> Row:
        """What the read of records says; None = it failed."""
        request = asked.request
        row = Row(asked)
        if request.exclude_items or request.anchor_items:
            row.excluded = np.sort(hash64_each([*request.exclude_items, *request.anchor_items]))
        if user is None:
            row.fail(Reason.FEATURES_UNAVAILABLE)
            return row
        row.record = user.record
        if user.uncertain:
            row.fail(Reason.FEATURES_UNAVAILABLE)
        if asked.exclude_seen:
            row.seen = _seen(user.seen, asked, self._view.encoding.spec)
        return row

    def _reuse(self, row: Row) -> bool:
        """Take over what an equal request of a moment ago has found; whether there was one."""
        if row.failures or not self._parts.results.ttl_ms or row.asked.request.after_event_id is not None:
            return False
        row.key = result_key(row.asked, b"" if row.record is None else row.record[TOKEN_SLICE])
        if self._parts.sourcing is not None:  # two users of whom nothing is stored are not alike
            row.key = row.asked.request.user_id, row.key
        kept = self._parts.results.get(row.key)
        if kept is None:
            return False
        row.take_over(*kept)
        return True

    async def _understand(self, rows: Sequence[Row], attempt: Attempts, watch: Stopwatch) -> tuple[float, float]:
        """Steps 2 to 4, for rows whose records were read. Returns milliseconds for features and for the tower."""
        if not rows:
            return watch.lap_ms("features"), 0.0
        encoding, requests = self._view.encoding, [row.asked.request for row in rows]
        visible_before_ms = np.array([_visible_before_ms(request) for request in requests], dtype=np.int64)
        features = tensors.user_features([row.record for row in rows], visible_before_ms, encoding)

        # 2. history vectors of the items in them, and what feature sources know of the users
        work = attempt("redis", self._parts.items.vectors(features.item_hashes), self._timeouts.store_ms)
        if self._parts.sourcing is None:
            known = await work
        else:
            known, _ = await asyncio.gather(work, self._parts.sourcing.run(rows, attempt))
        if known is None:
            for row in rows:
                row.fail(Reason.FEATURES_UNAVAILABLE)
            return watch.lap_ms("features"), 0.0
        vectors, lacking = known
        in_session = _in_session(features, encoding.spec.history.session_ms)
        for n, row in enumerate(rows):
            if _lacks(row, lacking[n], in_session[n]):
                row.fail(Reason.FEATURES_UNAVAILABLE)  # and what its sources find without them is kept

        # 3. inputs
        as_of_ms = np.array([row.asked.incoming.as_of_ms for row in rows], dtype=np.int64)
        contexts = [row.asked.request.context if row.context is None else row.context for row in rows]
        inputs, failed = user_inputs(features, vectors, as_of_ms, contexts, encoding)
        for n in failed:
            rows[n].fail(Reason.FEATURES_UNAVAILABLE)
            rows[n].lacks_required = True
        features_ms = watch.lap_ms("features")

        # 4. tower
        embeddings = await self._embed(rows, inputs, attempt)
        segments = tensors.segments(features, encoding)
        for n, row in enumerate(rows):
            _describe(row, features, n)
            embedding = None if features.unreadable[n] or row.lacks_required else embeddings[n]
            row.query = Query(embedding, vectors[n][in_session[n]], row.query.anchors, segments[n])
        return features_ms, watch.lap_ms("tower")

    async def _embed(self, rows: Sequence[Row], inputs: Inputs, attempt: Attempts) -> Sequence[Float32 | None]:
        """The user tower's vectors; rows that need one and have none get the reason."""
        needing = [any(share.name == TOWER for share in row.asked.sources) for row in rows]
        if not any(needing):
            return [None] * len(rows)
        work = embed(self._parts.tower, inputs, (VECTOR,), self._view.dim)
        outputs = await attempt("tower", work, self._timeouts.tower_ms)
        embeddings: list[Float32 | None] = [None] * len(rows)
        for n, row in enumerate(rows):
            if outputs is not None and np.isfinite(outputs[VECTOR][n]).all():
                embeddings[n] = outputs[VECTOR][n]
            elif needing[n]:
                row.fail(Reason.MODEL_UNAVAILABLE)
        return embeddings

    async def _deepen(self, rows: Sequence[Row], lists: list[Shortlist], attempt: Attempts, watch: Stopwatch) -> float:
        """Search again, as deep as it takes, where a list is short although there is more. Returns milliseconds.

        Rows for which there is no time have the reason added, those with caps too: deeper there may be what fits.
        """
        short = [
            n
            for n, (row, shortlist) in enumerate(zip(rows, lists, strict=True))
            if len(shortlist.chosen.item_ids) < row.asked.k and _goes_deeper(row)
        ]
        if not short:
            return 0.0
        if attempt.left_s() <= 0:
            for n in short:
                rows[n].fail(Reason.INDEX_UNAVAILABLE)
            return 0.0
        watch.lap_ms("select")
        deeper = [rows[n] for n in short]
        await self._retrieval.run(deeper, [_full_depth(row) for row in deeper], attempt)
        search_ms = watch.lap_ms("search")
        for n, shortlist in zip(short, await self._shortlisting.run(deeper, attempt), strict=True):
            lists[n] = shortlist
        return search_ms

    async def _step_down(self, rows: Sequence[Row], lists: list[Shortlist], attempt: Attempts) -> None:
        """Where something failed and nothing was found, the next best thing: rung after rung, for all rows at once."""
        for rung in self._parts.ladder.rungs(lambda: attempt.left_s() > -STEP_DOWN_MS / 1000):
            falling = [n for n, row in enumerate(rows) if row.failures and not lists[n].chosen.item_ids]
            for n in falling:
                rows[n].found = rung(rows[n])
                await asyncio.sleep(0)  # a filter that is new takes milliseconds
            replaced = await self._shortlisting.run([rows[n] for n in falling], attempt)
            for n, shortlist in zip(falling, replaced, strict=True):
                lists[n] = shortlist

    def _answer_of(self, row: Row, shortlist: Shortlist, timings: Timings) -> CandidateList:
        incoming, request, chosen = row.asked.incoming, row.asked.request, shortlist.chosen
        now_ms = self._clock.now_ms()
        if now_ms >= incoming.deadline_ms:
            return without_items(incoming, now_ms, Status.EXPIRED, Reason.DEADLINE_EXCEEDED, self._view)
        short = [Reason.SHORT_LIST] if len(chosen.item_ids) < row.asked.k else []
        failures = row.failures
        if not failures and row.reused_ms is None:
            self._parts.ladder.remember(row, chosen.item_ids, chosen.scores)
        worked_ms = timings.features + timings.tower + timings.search
        return CandidateList(
            request_id=request.request_id,
            user_id=request.user_id,
            scene=request.scene,
            status=Status.DEGRADED if failures else Status.OK,
            timestamp_ms=now_ms,
            reasons=[str(reason) for reason in failures or [*row.reasons, *short]],
            item_ids=chosen.item_ids,
            scores=chosen.scores,
            sources=chosen.sources,
            model_version=self._view.model_version,
            collection=self._view.collection,
            feature_age_ms=None if row.newest_ms is None else max(0, incoming.as_of_ms - row.newest_ms),
            removed=shortlist.removed,
            timings_ms=Timings(
                queue=max(0.0, now_ms - incoming.taken_ms - worked_ms),
                features=timings.features,
                tower=timings.tower,
                search=timings.search,
                total=float(max(0, now_ms - incoming.taken_ms)),
                reused=row.reused_ms,
            ),
        )


def _describe(row: Row, features: UserFeatures, n: int) -> None:
    """What is known of the user, and what that says of the answer."""
    row.newest_ms = int(features.newest_ms[n]) or None
    request = row.asked.request
    unreadable = bool(features.unreadable[n])  # stored by a version that this one cannot read
    if unreadable:
        row.fail(Reason.FEATURES_UNAVAILABLE)
    elif not features.known[n]:
        row.reasons.insert(0, Reason.COLD_START)
    if request.after_event_id is not None and (unreadable or not holds_event(row.record, request.after_event_id)):
        row.fail(Reason.FEATURES_STALE)


def _in_session(features: UserFeatures, session_ms: int) -> NDArray[np.bool_]:
    """bool[B, H]: the newest few items, as far as they belong to the user's last session."""
    newest: NDArray[np.bool_] = features.timestamps_ms >= features.newest_ms[:, None] - session_ms
    newest[:, :-SESSION_ITEMS] = False
    newest &= features.item_hashes != 0
    return newest


def _lacks(row: Row, lacking: NDArray[np.bool_], in_session: NDArray[np.bool_]) -> bool:
    """Whether a source of the row goes by a vector that is not there, and may be there again later: bool[H] both."""
    names = {share.name for share in row.asked.sources}
    return bool((TOWER in names and lacking.any()) or (SESSION in names and lacking[in_session].any()))


def _cut_short(row: Row, shortlist: Shortlist) -> bool:
    """Whether it has fewer than it asks for although there are more; what caps leave out is not looked for."""
    short = len(shortlist.chosen.item_ids) < row.asked.k
    return short and not row.asked.plan.caps and not all(found.whole for found in row.found.values())


def _goes_deeper(row: Row) -> bool:
    """Whether a source may have more. With caps not one that an equal request has searched as deep as they ever go."""
    deepest = _full_depth(row) if row.asked.plan.caps else EVERYTHING
    return any(not found.whole and len(found.item_ids) < deepest for found in row.found.values())


def _first_depth(row: Row) -> int:
    """Where caps will take some, three candidates for every place."""
    k = row.asked.k * CAPPED_DEPTH if row.asked.plan.caps else row.asked.k
    return select.first_depth(k, len(row.seen), len(row.excluded), MAX_SEARCH_DEPTH)


def _full_depth(row: Row) -> int:
    """What caps take cannot be known before: then far deeper."""
    if row.asked.plan.caps:
        return min(CAPPED_DEEPER * _first_depth(row), MAX_SEARCH_DEPTH)
    return select.full_depth(row.asked.k, len(row.seen) + len(row.excluded) + DELETED_MARGIN, MAX_SEARCH_DEPTH)


def _visible_before_ms(request: RecallRequest) -> int:
    return EVERYTHING if request.timestamp_ms is None else request.timestamp_ms


def _seen(raw: bytes, asked: Asked, spec: Spec) -> UInt64:
    """The items that count as seen at the time of the request; what happened in the same step of time is not."""
    request, step_ms = asked.request, spec.history.time_resolution_ms
    before_ms = None if request.timestamp_ms is None else request.timestamp_ms // step_ms * step_ms
    rules = (spec.seen.since_ms(asked.incoming.as_of_ms), asked.plan.since_ms(asked.incoming.as_of_ms))
    since_ms = max((time_ms for time_ms in rules if time_ms is not None), default=None)
    return seen_items(raw, before_ms, since_ms, spec.seen.cap)
