"""Values that requests do not carry: every source of the spec is asked for those of the users whose requests lack them.

A source costs at most its timeout. A value that is not to be had is absent: it counts as the field's default, which is
told; a required one makes the answer `degraded`.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.spec import ContextField, is_value
from schemas.recall import Reason
from workers.features.cached import CachedFeatures
from workers.pipelines.attempts import Attempts
from workers.pipelines.rows import REQUEST, Row

CACHE = "cache"
SOURCE = "source"
ABSENT = "absent"
UNUSABLE = "unusable"
UNAVAILABLE = "unavailable"

Told = Callable[[str, str, str, int], None]
"""Called with source, feature, where its values came from, and how many."""


@dataclass(frozen=True, slots=True)
class Asking:
    """One source, what it is asked for, and how long that may take."""

    dependency: str
    features: CachedFeatures
    fields: Mapping[str, ContextField]
    limit_ms: int


class Sourcing:
    """The sources of one spec by name."""

    def __init__(self, sources: Mapping[str, Asking], told: Told = lambda *_: None) -> None:
        self._sources = sources
        self._told = told

    async def run(self, rows: Sequence[Row], attempt: Attempts) -> None:
        """Set `context` and `origins` of each row; tell of values that are missing."""
        for row in rows:
            row.context = dict(row.asked.request.context or {})
        await asyncio.gather(*(self._fill(name, asking, rows, attempt) for name, asking in self._sources.items()))

    async def _fill(self, name: str, asking: Asking, rows: Sequence[Row], attempt: Attempts) -> None:
        needing = [row for row in rows if not _carries_all(row, asking.fields)]
        users = dict.fromkeys(row.asked.request.user_id for row in needing)
        kept = asking.features.kept(users)
        missing = [user_id for user_id in users if user_id not in kept]
        asked: Mapping[str, Mapping[str, Any]] | None = {}
        if missing:
            asked = await attempt(asking.dependency, asking.features.ask(missing), asking.limit_ms)
        counts: Counter[tuple[str, str]] = Counter()
        for row in rows:
            user_id = row.asked.request.user_id
            for feature, field in asking.fields.items():
                origin, value = _value(field, feature, row, kept.get(user_id), asked)
                counts[feature, origin] += 1
                _take(row, field, feature, origin, value, name)
        for (feature, origin), count in counts.items():
            self._told(name, feature, origin, count)

    def expire(self) -> None:
        """Let go of values that no longer count."""
        for asking in self._sources.values():
            asking.features.expire()

    async def close(self) -> None:
        """Close every source."""
        for asking in self._sources.values():
            await asking.features.close()


def _carries_all(row: Row, fields: Mapping[str, ContextField]) -> bool:
    context = row.asked.request.context or {}
    return all(is_value(field, context.get(name)) for name, field in fields.items())


def _value(
    field: ContextField,
    feature: str,
    row: Row,
    kept: Mapping[str, Any] | None,
    asked: Mapping[str, Mapping[str, Any]] | None,
) -> tuple[str, Any]:
    """Where a value is from, and what it is; None when there is none."""
    own = (row.asked.request.context or {}).get(feature)
    if is_value(field, own):
        return REQUEST, own
    if kept is None and asked is None:
        return UNAVAILABLE, None
    values = kept if kept is not None else (asked or {}).get(row.asked.request.user_id, {})
    value = values.get(feature)
    if value is None:
        return ABSENT, None
    if not is_value(field, value):
        return UNUSABLE, None
    return CACHE if kept is not None else SOURCE, value


def _take(row: Row, field: ContextField, feature: str, origin: str, value: Any, source: str) -> None:
    assert row.context is not None  # noqa: S101  # for the types: set for all rows before
    place = {REQUEST: REQUEST, SOURCE: source, CACHE: f"{source} (cache)"}.get(origin)
    if place is not None:
        row.context[feature] = value
    else:
        row.context.pop(feature, None)
        row.fail(Reason.FEATURES_UNAVAILABLE if field.required else Reason.FEATURE_DEFAULTED)
        row.lacks_required |= field.required
        place = f"default ({source}: {origin})"
    row.origins[feature] = place
