"""Why a user's list is what it is: what is known, what the towers see, what each source finds, where an item stands.

Runs the steps of the recall pipeline in this process, on the tables and the index that workers use. Changes nothing.
"""

from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import numpy as np

from models import tensors
from schemas.recall import CandidateList, RecallRequest
from schemas.records import RecordFormatError, UserRecord, hash64, hash64_each
from workers import views
from workers.blend import capped_values
from workers.clock import SystemClock
from workers.dependencies import Dependencies
from workers.errors import ConfigurationError
from workers.filters import holds
from workers.metrics import Metrics
from workers.pipelines.admission import Incoming
from workers.pipelines.inputs import user_inputs
from workers.pipelines.rows import Found, Row
from workers.ports import MAX_SEARCH_DEPTH, Clock
from workers.recall_parts import RecallParts, Tools, open_recall_parts
from workers.settings import Settings
from workers.stores.connect import close, connect
from workers.stores.item_facts import ItemFact

SHOWN = 1000  # of each source's list


async def open_explainer(settings: Settings, opened: AsyncExitStack) -> "Explainer":
    """The active view's, once it knows what is popular. Raises DependencyError, ConfigurationError."""
    view = await views.read_active(settings)
    if view is None:
        raise ConfigurationError("no bundle is active; make one: recall model fit --data movielens-1m")
    client = connect(settings)
    opened.push_async_callback(close, client)
    metrics = Metrics()
    tools = Tools(SystemClock(), Dependencies("recall", metrics), metrics)
    ready = await open_recall_parts(settings, (views.load(view), view), client, tools, opened)
    await ready.popular.refresh_all()
    return Explainer(ready, tools.clock)


class Explainer:
    """What explains one view's answers."""

    def __init__(self, ready: RecallParts, clock: Clock) -> None:
        self._pipeline = ready.pipeline
        self._parts = ready.parts
        self._view = ready.view
        self._index = ready.index
        self._clock = clock

    async def explain(self, request: RecallRequest, item_id: str | None = None) -> dict[str, Any]:
        """A JSON object: `user`, `features`, `inputs`, `sources`, `answer`, and `item` when one is asked about.

        Raises DependencyError when a backend fails that only the explanation needs.
        """
        row, answer = await self.trace(request)
        report: dict[str, Any] = {"answer": _answer(answer)}
        if row is None:
            return report
        report["user"] = await self._user(row)
        report["features"] = self._features(row)
        report["inputs"] = await self._inputs(row)
        report["sources"] = {name: await self._source(row, found) for name, found in row.found.items()}
        if item_id is not None:
            report["item"] = await self._item(row, answer, item_id)
        return report

    async def trace(self, request: RecallRequest) -> tuple[Row | None, CandidateList]:
        """What the steps find out about a request that comes now, and its answer."""
        return await self._pipeline.trace(Incoming(request, self._clock.now_ms()))

    async def _user(self, row: Row) -> dict[str, Any]:
        """The record, events newest first."""
        known = {"user_id": row.asked.request.user_id, "known": row.record is not None, "seen_items": len(row.seen)}
        if row.record is None:
            return known
        try:
            record = UserRecord.decode(row.record)
        except RecordFormatError as error:
            return known | {"unreadable": str(error)}
        rows = record.rows()[::-1]
        facts = await self._parts.facts.read(rows["item"].astype(np.uint64))
        actions = {hash64(action): action for action in self._view.encoding.spec.actions}
        events = [
            {
                "timestamp_ms": int(event["timestamp_ms"]),
                "action": actions.get(int(event["action"])),
                "item_id": None if fact is None else fact.item_id,
                "value": None if np.isnan(event["value"]) else float(event["value"]),
            }
            for event, fact in zip(rows, facts, strict=True)
        ]
        profile = {name: {"value": value, "timestamp_ms": time_ms} for name, value, time_ms in record.profile}
        return known | {
            "event_count": record.count,
            "forgotten_ms": record.forgotten_ms or None,
            "segment": row.query.segment,
            "profile": profile,
            "events": events,
        }

    def _features(self, row: Row) -> dict[str, Any]:
        """Values that have a source: what was used, and where it came from."""
        context, fields = row.context or {}, self._view.encoding.spec.context
        return {
            name: {"value": context.get(name, fields[name].default), "from": origin}
            for name, origin in sorted(row.origins.items())
        }

    async def _inputs(self, row: Row) -> dict[str, Any]:
        """The user tower's inputs by name: shape and values; of the history vectors only their lengths."""
        request = row.asked.request
        visible_ms = tensors.EVERYTHING_MS if request.timestamp_ms is None else request.timestamp_ms
        features = tensors.user_features([row.record], np.array([visible_ms]), self._view.encoding)
        vectors, _ = await self._parts.items.vectors(features.item_hashes)
        as_of_ms = np.array([row.asked.incoming.as_of_ms])
        context = request.context if row.context is None else row.context
        inputs, _ = user_inputs(features, vectors, as_of_ms, [context], self._view.encoding)
        told = {name: values[0] for name, values in inputs.items()}
        shapes = {name: list(values.shape[1:]) for name, values in inputs.items()}
        told["history_vectors"] = np.linalg.norm(told["history_vectors"], axis=1)
        return {name: {"shape": shapes[name], "values": np.round(told[name], 4).tolist()} for name in told}

    async def _source(self, row: Row, found: Found) -> list[dict[str, Any]]:
        """A source's candidates, best first, and why one is left out."""
        return [
            {"rank": rank, "item_id": item_id, "score": float(score), "removed": self._removed(row, item_id)}
            for rank, (item_id, score) in enumerate(zip(found.item_ids[:SHOWN], found.scores[:SHOWN], strict=True), 1)
        ]

    def _removed(self, row: Row, item_id: str) -> str | None:
        """The set that takes the item out of a list."""
        item = np.array([hash64(item_id)], dtype=np.uint64)
        if item[0] in row.seen:
            return "seen"
        if item[0] in row.excluded:
            return "excluded"
        return "deleted" if self._parts.items.deleted(item)[0] else None

    async def _item(self, row: Row, answer: CandidateList, item_id: str) -> dict[str, Any]:
        (fact,) = await self._parts.facts.read(np.array([hash64(item_id)], dtype=np.uint64))
        told: dict[str, Any] = {
            "item_id": item_id,
            "known": fact is not None,
            "attributes": None if fact is None else fact.attributes,
            "fails_filter": self._failed_clauses(row, fact),
            "removed": self._removed(row, item_id),
            "full_cap": await self._full_cap(row, answer, fact),
            "list_rank": _rank(answer.item_ids, item_id),
            "found_by": {name: rank for name, found in row.found.items() if (rank := _rank(found.item_ids, item_id))},
            "exact_rank": None,
            "ann_rank": None,
            "score": None,
        }
        if row.query.embedding is not None:
            vector = row.query.embedding[None, :]
            exact = await self._index.exact(vector, MAX_SEARCH_DEPTH)
            near = await self._index.search(vector, MAX_SEARCH_DEPTH)
            told["exact_rank"] = _rank(exact.item_ids[0], item_id)
            told["ann_rank"] = _rank(near.item_ids[0], item_id)
            if told["exact_rank"]:
                told["score"] = float(exact.scores[0][told["exact_rank"] - 1])
        return told | {"verdict": _verdict(told)}

    async def _full_cap(self, row: Row, answer: CandidateList, fact: ItemFact | None) -> str | None:
        """The first field of whose value, as the item has it, the list has as many as its cap allows."""
        caps = row.asked.plan.caps
        if fact is None or fact.item_id in answer.item_ids or not caps:
            return None
        listed = await self._parts.facts.read(hash64_each(answer.item_ids))
        counts = Counter(value for each in listed if each for value, _ in capped_values(each.attributes, caps))
        return next((value[0] for value, limit in capped_values(fact.attributes, caps) if counts[value] >= limit), None)

    def _failed_clauses(self, row: Row, fact: ItemFact | None) -> list[str]:
        attributes: Mapping[str, Any] = {} if fact is None else fact.attributes
        return [
            f"{clause.field} {clause.op} {', '.join(map(str, clause.values))}"
            for clause in row.asked.where
            if not holds((clause,), attributes)
        ]


def _answer(answer: CandidateList) -> dict[str, Any]:
    told: dict[str, Any] = msgspec.to_builtins(answer, enc_hook=lambda scores: scores.tolist())
    return told


def _rank(item_ids: Any, item_id: str) -> int | None:
    """1 for the first; None when it is not there."""
    return item_ids.index(item_id) + 1 if item_id in item_ids else None


def _verdict(item: Mapping[str, Any]) -> str:
    """One line: where the item stands, or the first thing that keeps it out."""
    if item["list_rank"]:
        return f"in the list, place {item['list_rank']}"
    if not item["known"]:
        return "the item table does not know it"
    if item["fails_filter"]:
        return f"the filter leaves it out: {item['fails_filter'][0]}"
    if item["removed"]:
        return f"taken out as {item['removed']}"
    if item["found_by"] and item["full_cap"]:
        return f"the cap on {item['full_cap']} leaves it out"
    if item["found_by"]:
        return "found, but not among the best"
    if item["exact_rank"] and not item["ann_rank"]:
        return f"the index does not find it: exact rank {item['exact_rank']}"
    return f"no source finds it: exact rank {item['exact_rank'] or f'beyond {MAX_SEARCH_DEPTH}'}"
