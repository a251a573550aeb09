"""Training samples: one row per request that led to a target event, as the live system would have seen it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from models.columns import UserFeatures
from models.event_log import Catalogue, EventLog
from models.positives import sample_inputs, target_events
from models.signature import width
from models.spec import Field
from models.tensors import Encoding, Inputs, event_codes, log_features

CHUNK = 65_536
SMALLEST_UNIT = 1e-30  # by less no weight may be divided: it would leave float32
Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Samples:
    """R requests and P positives. Columns of `history` are items of the catalogue, of `dense` see `dense_columns`."""

    history: sp.csr_matrix  # float32[R, M], weighted
    dense: Float32  # float32[R, m]
    request: NDArray[np.int64]  # int64[P], row of each positive
    item: NDArray[np.int64]  # int64[P], catalogue index of each positive
    age_days: Float32  # float32[P], before the newest positive


@dataclass(frozen=True)
class Requests:
    """What is asked: a user, a time, and a context, for R requests."""

    user: NDArray[np.int64]
    as_of_ms: NDArray[np.int64]
    contexts: list[Mapping[str, Any] | None]

    def piece(self, begin: int, end: int) -> "Requests":
        """Requests begin, begin + 1, ..., end - 1."""
        return Requests(self.user[begin:end], self.as_of_ms[begin:end], self.contexts[begin:end])


def is_target(log: EventLog, encoding: Encoding) -> NDArray[np.bool_]:
    """bool[N]: the rows that are what a good recommendation leads to."""
    return target_events(log.action, log.value, encoding.spec)


def target_requests(log: EventLog, rows: NDArray[np.int64], encoding: Encoding) -> tuple[Requests, NDArray[np.int64]]:
    """The requests of these target rows, one per user and step of time, and int64[P], the request of each row."""
    steps = log.timestamp_ms[rows] // encoding.spec.history.time_resolution_ms
    pairs = np.stack([log.user[rows].astype(np.int64), steps])
    _, first, request = np.unique(pairs, axis=1, return_index=True, return_inverse=True)
    rows_of_requests = rows[first]
    contexts = [log.contexts[row] for row in rows_of_requests.tolist()] if log.contexts else [None] * len(first)
    users, times = log.user[rows_of_requests].astype(np.int64), log.timestamp_ms[rows_of_requests]
    return Requests(users, times, contexts), request.reshape(-1)


def build_samples(
    log: EventLog, catalogue: Catalogue, encoding: Encoding, code_weight: Float32, position_weight: Float32
) -> Samples:
    """Samples of every target event whose item is in the catalogue."""
    index = catalogue.index_of(log.item)
    positives = np.flatnonzero(is_target(log, encoding) & (index >= 0))
    requests, request = target_requests(log, positives, encoding)
    parts, dense = [], []
    for chunk, features in chunks(log, requests, encoding):
        inputs = sample_inputs(features, chunk.as_of_ms, chunk.contexts, encoding)
        parts.append(_history(features, inputs, catalogue, code_weight, position_weight, encoding))
        dense.append(dense_columns(inputs, encoding))
    times = log.timestamp_ms[positives]
    age_days = ((times.max(initial=0) - times) / 86_400_000).astype(np.float32)
    history = sp.vstack(parts, format="csr") if parts else sp.csr_matrix((0, len(catalogue)), dtype=np.float32)
    return Samples(
        history,
        np.concatenate(dense) if dense else np.zeros((0, 0), dtype=np.float32),
        request,
        index[positives],
        age_days,
    )


def chunks(log: EventLog, requests: Requests, encoding: Encoding) -> Iterator[tuple[Requests, UserFeatures]]:
    """The requests in pieces of bounded memory, with what was visible of each user."""
    for start in range(0, len(requests.user), CHUNK):
        chunk = requests.piece(start, start + CHUNK)
        yield chunk, log_features(log, chunk.user, chunk.as_of_ms, encoding)


def dense_columns(inputs: Inputs, encoding: Encoding) -> Float32:
    """float32[R, m]: 1, six aggregates, then the blocks of `user_fields`, as graphs.user_tower sees them."""
    count, gap = inputs["event_count"], inputs["gap_s"]
    session_s = encoding.spec.history.session_ms / 1000
    aggregates = [
        np.ones_like(count),
        1 / (1 + count),
        count == 0,
        np.log1p(count) / 5,
        np.log1p(gap) / 10,
        gap > session_s,
        gap > 60,
    ]
    blocks = [np.stack(aggregates, axis=1)]
    for name, field in user_fields(encoding).items():
        blocks.append(design(field, name, inputs[name.replace(".", "_", 1)], encoding))
    return np.concatenate(blocks, axis=1).astype(np.float32)


def user_fields(encoding: Encoding) -> dict[str, Field]:
    """`section.name` -> field, for what the user tower sees beside the history: profile, context, extractors."""
    spec = encoding.spec
    fields: dict[str, Field] = {f"profile.{name}": field for name, field in spec.profile.items()}
    fields |= {f"context.{name}": field for name, field in spec.context.items()}
    return fields | spec.vectors


def design(field: Field, name: str, values: NDArray[Any], encoding: Encoding) -> Float32:
    """float32[R, width]: one-hot of codes, or the values themselves."""
    if field.kind in {"category", "bucket"}:
        one_hot: Float32 = np.eye(width(field, name, encoding.vocabularies), dtype=np.float32)[values]
        return one_hot
    return values.astype(np.float32).reshape(len(values), -1)


def units(columns: NDArray[Any]) -> Float32:
    """float32[m], what numbers float32[R, m] are divided by: the root mean square of each; 1 for one next to zero."""
    size = np.sqrt(np.square(columns, dtype=np.float64).mean(axis=0))
    unit: Float32 = np.where(size > SMALLEST_UNIT, size, 1).astype(np.float32)
    return unit


def _history(
    features: UserFeatures,
    inputs: Inputs,
    catalogue: Catalogue,
    code_weight: Float32,
    position_weight: Float32,
    encoding: Encoding,
) -> sp.csr_matrix:
    session_s = encoding.spec.history.session_ms / 1000
    weights = code_weight[features.codes] * position_weight
    weights *= np.where(inputs["history_age_s"] < session_s, np.float32(1), np.float32(0.5))
    columns = catalogue.index_of(features.item_hashes)
    rows, places = np.nonzero((columns >= 0) & (weights != 0))
    shape = (len(features.counts), len(catalogue))
    matrix = sp.csr_matrix((weights[rows, places], (rows, columns[rows, places])), shape=shape, dtype=np.float32)
    matrix.sum_duplicates()
    return matrix


def history_counts(log: EventLog, catalogue: Catalogue, encoding: Encoding) -> NDArray[np.int64]:
    """int64[M]: how often each item stands in histories with a weight."""
    codes = event_codes(log.action, log.value, encoding.spec)
    index = catalogue.index_of(log.item)
    return np.bincount(index[(index >= 0) & (codes > 0)], minlength=len(catalogue))
