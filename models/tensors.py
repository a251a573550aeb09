"""From facts to the towers' named inputs. Pure, and the one implementation for serving, evaluation and fitting.

User tower (B users, H = history.length, D = dimension):
    history_vectors  float32[B, H, D]  vectors of the newest H items, newest last, zeros where there is none
    history_codes    int64[B, H]       which action and value range it was; 0 = none, or without weight
    history_age_s    float32[B, H]     seconds between event and request, in steps of time_resolution_ms
    event_count      float32[B]        events with an item so far
    gap_s            float32[B]        age of the newest one, 0 when there is none
    profile_NAME, context_NAME         see `encode_field`
    EXTRACTOR_COLUMN float32[B, W]     see models/extractors.py
Item tower (N items):
    item_code        int64[N]          position in the fit's vocabulary, 0 = not in it
    item_NAME                          see `encode_field`

An event is visible when its time, in whole steps of time_resolution_ms, lies before the request's. The same holds for
profile values.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.columns import RequestColumns, UserFeatures
from models.event_log import EventLog
from models.extractors import Extract, Watch, extracted, unwatched
from models.profiles import profiles_at, visible_profile
from models.spec import ContextField, Field, Spec, is_value
from schemas.records import (
    HISTORY_ROW,
    MAX_HISTORY_ROWS,
    RecordFormatError,
    UserRecord,
    encode_value,
    hash64,
    profile_keeps,
)

Inputs = dict[str, NDArray[Any]]
EVERYTHING_MS = np.iinfo(np.int64).max
MAX_VALUES = 1000  # of a field's vocabulary: each is a column of the fit


@dataclass(frozen=True)
class Vocabularies:
    """What the fit has seen: values of category and multi fields, `section.name` -> values in order of their codes.

    The code of a value is its position + 1; 0 stands for anything else.
    """

    values: Mapping[str, Sequence[str]]
    item_ids: Sequence[str]

    def __post_init__(self) -> None:
        """Index them once."""
        tables = {name: {value: n for n, value in enumerate(known, 1)} for name, known in self.values.items()}
        object.__setattr__(self, "codes", tables)
        object.__setattr__(self, "item_codes", {item_id: n for n, item_id in enumerate(self.item_ids, 1)})

    codes: Mapping[str, Mapping[str, int]] = None  # type: ignore[assignment]  # filled at once
    item_codes: Mapping[str, int] = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Encoding:
    """How facts become tensors for one bundle: spec, vocabularies, code of extractors, and what watches its calls."""

    spec: Spec
    vocabularies: Vocabularies
    extractors: Mapping[str, Extract] = field(default_factory=dict)
    watch: Watch = unwatched


def user_features(
    records: Sequence[bytes | None], visible_before_ms: NDArray[np.int64], encoding: Encoding
) -> UserFeatures:
    """Read B stored records as of B times (EVERYTHING_MS = all that is known)."""
    users = [_decode(record) for record in records]
    lengths = np.array([len(user.history) // HISTORY_ROW.itemsize for user in users], dtype=np.int64)
    rows = np.frombuffer(b"".join(user.history for user in users), dtype=HISTORY_ROW)
    width = max(1, int(lengths.max(initial=0)))
    owner = np.repeat(np.arange(len(users)), lengths)
    ends = np.cumsum(lengths)
    place = (owner, width - ends[owner] + np.arange(len(rows)))  # right-aligned
    items = np.zeros((len(users), width), dtype=np.uint64)
    codes = np.zeros((len(users), width), dtype=np.int64)
    times = np.zeros((len(users), width), dtype=np.int64)
    items[place] = rows["item"]
    times[place] = rows["timestamp_ms"]
    codes[place] = event_codes(rows["action"].astype(np.uint64), rows["value"].astype(np.float32), encoding.spec)
    visible = _steps(times, encoding.spec) < _steps(visible_before_ms, encoding.spec)[:, None]
    hidden = ((items != 0) & ~visible).sum(axis=1)
    counts = np.array([user.count for user in users], dtype=np.int64) - hidden
    profiles = [
        visible_profile(user.profile, int(b), encoding.spec) for user, b in zip(users, visible_before_ms, strict=True)
    ]
    return _assemble(
        *_newest(items, codes, times, visible & (items != 0), encoding.spec.history.length),
        counts=counts,
        known=np.array([bool(user.history or user.profile) for user in users], dtype=bool),
        unreadable=np.array([user is UNREADABLE for user in users], dtype=bool),
        profile=encode_fields("profile", encoding.spec.profile, profiles, encoding.vocabularies),
    )


def log_features(
    log: EventLog, user: NDArray[np.int64], visible_before_ms: NDArray[np.int64], encoding: Encoding
) -> UserFeatures:
    """The same columns straight from a log, for R requests: `user` int64[R] are indices into log.user_ids.

    Equal to merging each user's earlier events into a record and reading it with `user_features`.
    """
    spec, order, offsets = encoding.spec, log.order, log.offsets
    times_sorted = log.timestamp_ms[order]
    with_item = np.append(0, np.cumsum(log.item[order] != 0))
    step_ms = spec.history.time_resolution_ms
    limit_ms = np.minimum(visible_before_ms, EVERYTHING_MS - step_ms) // step_ms * step_ms
    end = _last_before(log.user[order].astype(np.int64), times_sorted, offsets, user, limit_ms)
    window = end[:, None] + np.arange(-MAX_HISTORY_ROWS, 0)
    valid = window >= offsets[user][:, None]
    rows = np.append(order, len(order))[np.where(valid, window, len(order))]  # the row behind the last is nobody's
    items = np.append(log.item, np.uint64(0))[rows]
    codes = np.append(event_codes(log.action, log.value, spec), 0)[rows]
    times = np.append(log.timestamp_ms, 0)[rows]
    profiles = profiles_at(log, user, limit_ms, spec)
    return _assemble(
        *_newest(items, codes, times, valid & (items != 0), spec.history.length),
        counts=with_item[end] - with_item[offsets[user]],
        known=(end > offsets[user]) | np.array([bool(profile) for profile in profiles], dtype=bool),
        unreadable=np.zeros(len(user), dtype=bool),
        profile=encode_fields("profile", spec.profile, profiles, encoding.vocabularies),
    )


def user_inputs(
    features: UserFeatures,
    history_vectors: NDArray[np.float32],
    as_of_ms: NDArray[np.int64],
    contexts: Sequence[Mapping[str, Any] | None],
    encoding: Encoding,
) -> Inputs:
    """The user tower's inputs for B requests at the times `as_of_ms` int64[B]. Raises ExtractorError."""
    spec = encoding.spec
    filled = with_defaults(contexts, spec)
    inputs = history_inputs(features, as_of_ms, spec)
    inputs["history_vectors"] = history_vectors
    inputs |= features.profile
    inputs |= encode_fields("context", spec.context, filled, encoding.vocabularies)
    if spec.extractors:
        requests = RequestColumns(as_of_ms, filled)
        inputs |= extracted(spec.extractors, encoding.extractors, features, requests, encoding.watch)
    return inputs


def with_defaults(contexts: Sequence[Mapping[str, Any] | None], spec: Spec) -> list[Mapping[str, Any]]:
    """Contexts with the default of each field that has a source where there is no value of its kind; or without it.

    So an extractor sees what a feature source could have given, whoever wrote the context.
    """
    filled: list[Mapping[str, Any]] = [context or {} for context in contexts]
    for name, declared in spec.context.items():
        if declared.source:
            filled = [row if is_value(declared, row.get(name)) else _absent(row, name, declared) for row in filled]
    return filled


def _absent(context: Mapping[str, Any], name: str, declared: ContextField) -> Mapping[str, Any]:
    if declared.default is not None:
        return {**context, name: declared.default}
    return {other: value for other, value in context.items() if other != name} if name in context else context


def segments(features: UserFeatures, encoding: Encoding) -> list[str | None]:
    """B users' segments of popularity: the value of the profile field that the spec names; None = unknown."""
    field = encoding.spec.popular.segment
    if not field:
        return [None] * len(features.known)
    values = (None, *encoding.vocabularies.values.get(f"profile.{field}", ()))
    return [values[code] for code in features.profile[f"profile_{field}"].tolist()]


def history_inputs(features: UserFeatures, as_of_ms: NDArray[np.int64], spec: Spec) -> Inputs:
    """The inputs that come from the history, without its vectors."""
    step_ms = spec.history.time_resolution_ms
    seconds = step_ms / 1000
    now = _steps(as_of_ms, spec)
    ages = np.maximum(now[:, None] - _steps(features.timestamps_ms, spec), 0) * seconds
    gaps = np.maximum(now - _steps(features.newest_ms, spec), 0) * seconds
    return {
        "history_codes": features.codes,
        "history_age_s": np.where(features.item_hashes != 0, ages, 0).astype(np.float32),
        "event_count": features.counts.astype(np.float32),
        "gap_s": np.where(features.newest_ms > 0, gaps, 0).astype(np.float32),
    }


def item_inputs(item_ids: Sequence[str], attributes: Sequence[Mapping[str, Any]], encoding: Encoding) -> Inputs:
    """The item tower's inputs for N items."""
    codes = encoding.vocabularies.item_codes
    inputs: Inputs = {"item_code": np.array([codes.get(item_id, 0) for item_id in item_ids], dtype=np.int64)}
    return inputs | encode_fields("item", encoding.spec.item, attributes, encoding.vocabularies)


def encode_fields(
    section: str, fields: Mapping[str, Field], rows: Sequence[Mapping[str, Any]], vocabularies: Vocabularies
) -> Inputs:
    """Columns `SECTION_NAME` for every field of a section."""
    return {
        f"{section}_{name}": encode_field(
            field, [row.get(name) for row in rows], vocabularies.codes.get(f"{section}.{name}", {})
        )
        for name, field in fields.items()
    }


def encode_field(field: Field, values: Sequence[Any], codes: Mapping[str, int]) -> NDArray[Any]:
    """One column; a missing value, or one of another type or beyond float32, is the field's zero.

    category: int64[B], code of str(value). multi: float32[B, V], 1 where the list holds the value of that code.
    bucket: int64[B], 1 + number of edges not above the value. number: float32[B], or log1p of it.
    """
    if field.kind == "category":
        return np.array([codes.get(category_name(value), 0) for value in values], dtype=np.int64)
    if field.kind == "multi":
        hot = np.zeros((len(values), len(codes)), dtype=np.float32)
        for row, value in enumerate(values):
            for element in value if isinstance(value, list) else [value]:
                code = codes.get(category_name(element), 0)
                if code:
                    hot[row, code - 1] = 1
        return hot
    numbers = np.array([value if is_value(field, value) else math.nan for value in values], dtype=np.float64)
    if field.kind == "bucket":
        return np.where(np.isnan(numbers), 0, 1 + np.searchsorted(np.array(field.edges), numbers, side="right"))
    if field.log:
        numbers = np.log1p(np.maximum(numbers, 0))
    return np.nan_to_num(numbers).astype(np.float32)


def event_codes(actions: NDArray[np.uint64], values: NDArray[np.float32], spec: Spec) -> NDArray[np.int64]:
    """int64[N]: position + 1 of the first entry of history.codes that an event matches, 0 when none does."""
    codes = np.zeros(len(actions), dtype=np.int64)
    for number, code in reversed(list(enumerate(spec.history.codes, 1))):
        matches = actions == np.uint64(hash64(code.action))
        if code.at_least is not None:
            matches &= values >= np.float32(code.at_least)
        if code.below is not None:
            matches &= values < np.float32(code.below)
        codes[matches] = number
    return codes


class ValueCounts:
    """Counts the values of category and multi fields, row by row: what vocabularies are made of.

    Memory: one entry for each different value.
    """

    def __init__(self, spec: Spec) -> None:
        self._counts: dict[str, dict[str, Counter[str]]] = {
            section: {
                name: Counter() for name, field in getattr(spec, section).items() if field.kind in {"category", "multi"}
            }
            for section in ("profile", "context", "item")
        }
        for name, counts in self._counts["context"].items():
            counts.update(category_name(e) for e in _elements(spec.context[name].default))  # has a code at all events

    def add(self, section: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take in facts of a section: profile changes, without what no record keeps, contexts, or items' attributes."""
        for name, counts in self._counts[section].items():
            values = [row.get(name) for row in rows]
            if section == "profile":
                values = [value for value in values if profile_keeps(name, encode_value(value))]
            counts.update(category_name(e) for value in values for e in _elements(value))

    def vocabularies(self, item_ids: Sequence[str]) -> Vocabularies:
        """The values so far, sorted; of more than MAX_VALUES of a field, the most frequent."""
        values: dict[str, list[str]] = {}
        for section, fields in self._counts.items():
            for name, counts in fields.items():
                found = [value for value in counts if value]
                found.sort(key=lambda value: (-counts[value], value))  # sorted at once
                values[f"{section}.{name}"] = sorted(found[:MAX_VALUES])
        return Vocabularies(values, list(item_ids))


def build_vocabularies(
    log: EventLog, item_ids: Sequence[str], attributes: Sequence[Mapping[str, Any]], spec: Spec
) -> Vocabularies:
    """The values that the fit sees."""
    counts = ValueCounts(spec)
    counts.add("profile", [change[2] for change in log.profiles])
    counts.add("context", [context for context in log.contexts if context])
    counts.add("item", attributes)
    return counts.vocabularies(item_ids)


UNREADABLE = UserRecord(forgotten_ms=-1)


def _decode(record: bytes | None) -> UserRecord:
    if record is None:
        return UserRecord()
    try:
        return UserRecord.decode(record)
    except RecordFormatError:
        return UNREADABLE


def _newest(
    items: NDArray[np.uint64], codes: NDArray[np.int64], times: NDArray[np.int64], keep: NDArray[np.bool_], length: int
) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
    """The last `length` kept entries of each row, right-aligned, the rest zero."""
    columns: list[NDArray[Any]] = [items, codes, times, keep]
    missing = length - items.shape[1]
    if missing > 0:
        columns = [np.pad(column, ((0, 0), (missing, 0))) for column in columns]
    if not np.all(columns[3][:, 1:] >= columns[3][:, :-1]):
        order = np.argsort(columns[3], axis=1, kind="stable")  # what is not kept goes left, order is kept
        columns = [np.take_along_axis(column, order, axis=1) for column in columns]
    kept = [column[:, -length:].copy() for column in columns]
    for column in kept[:3]:
        column[~kept[3]] = 0
    return kept[0], kept[1], kept[2]


def _assemble(
    items: NDArray[np.uint64],
    codes: NDArray[np.int64],
    times: NDArray[np.int64],
    *,
    counts: NDArray[np.int64],
    known: NDArray[np.bool_],
    unreadable: NDArray[np.bool_],
    profile: Inputs,
) -> UserFeatures:
    return UserFeatures(
        item_hashes=items,
        codes=codes,
        timestamps_ms=times,
        counts=counts,
        newest_ms=times[:, -1],
        known=known,
        unreadable=unreadable,
        profile=profile,
    )


def _steps(times_ms: NDArray[np.int64], spec: Spec) -> NDArray[np.int64]:
    return times_ms // spec.history.time_resolution_ms


def _last_before(
    users: NDArray[np.int64],
    times_ms: NDArray[np.int64],
    offsets: NDArray[np.int64],
    user: NDArray[np.int64],
    limit_ms: NDArray[np.int64],
) -> NDArray[np.int64]:
    """int64[R]: where the rows of `user` before `limit_ms` end, in rows sorted by (user, time)."""
    ranks = np.searchsorted(np.unique(times_ms), times_ms)  # dense ranks keep user and time in one sortable integer
    step = np.int64(ranks.max(initial=0) + 2)
    wanted = np.searchsorted(np.unique(times_ms), limit_ms)
    return np.maximum(np.searchsorted(users * step + ranks, user * step + wanted), offsets[user])


def category_name(value: Any) -> str:
    """A category's name: text as it is, true and false, numbers without a trailing .0; '' = none."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(int(value)) if float(value).is_integer() else str(value)
    return ""


def _elements(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]
