"""What towers are trained on: for every request that led to a target event, the inputs that serving would have had.

Made by the code that serves (`models/tensors.py`): the inputs of a sample are those that the live system would have had
just before, byte for byte. Vectors of the history are looked up at training time, from tables that change meanwhile.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.event_log import Catalogue, EventLog
from models.positives import sample_inputs
from models.samples import chunks, is_target, target_requests
from models.tensors import Encoding, Inputs, event_codes
from models.training.seen import Seen, ranges, seen_before

DAY_MS = 86_400_000
HISTORY_VECTORS = "history_vectors"


@dataclass(frozen=True)
class TrainingSet:
    """R requests, ordered by user and time, and P positives."""

    user: NDArray[np.int64]  # int64[R], index into the log's user_ids
    history: NDArray[np.int32]  # int32[R, H], catalogue index, newest last, -1 = none, or not in the catalogue
    inputs: Inputs  # the user tower's, without history_vectors; narrow types, see `batch`
    as_of_ms: NDArray[np.int64]  # int64[R]
    request: NDArray[np.int64]  # int64[P], row of each positive, rising
    item: NDArray[np.int64]  # int64[P], catalogue index of each positive
    target: NDArray[np.bool_]  # bool[P]: what the spec calls a target; others are lesser events
    seen: Seen

    def __len__(self) -> int:
        """Number of requests."""
        return len(self.history)

    def age_days(self) -> NDArray[np.float32]:
        """float32[R]: how long each request was before the newest."""
        ages: NDArray[np.float32] = ((self.as_of_ms.max(initial=0) - self.as_of_ms) / DAY_MS).astype(np.float32)
        return ages

    def batch(self, rows: NDArray[np.int64]) -> Inputs:
        """The user tower's inputs of some requests, in their declared types, without `history_vectors`."""
        return {name: _declared(values[rows]) for name, values in self.inputs.items()}

    def positives(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positives of some requests: their places in `rows` int64[p], and which they are, int64[p]."""
        return ranges(np.searchsorted(self.request, rows), np.searchsorted(self.request, rows, side="right"))


def training_set(log: EventLog, catalogue: Catalogue, encoding: Encoding, *, lesser: bool = False) -> TrainingSet:
    """Samples of every target event whose item is in the catalogue; `lesser`: and of all that the history knows."""
    index, target = catalogue.index_of(log.item), is_target(log, encoding)
    wanted = target | (event_codes(log.action, log.value, encoding.spec) > 0) if lesser else target
    rows = np.flatnonzero(wanted & (index >= 0))
    requests, request = target_requests(log, rows, encoding)
    order = np.argsort(request, kind="stable")
    history, parts = [], []
    for chunk, features in chunks(log, requests, encoding):
        history.append(catalogue.index_of(features.item_hashes).astype(np.int32))
        parts.append(
            {
                name: _narrow(values)
                for name, values in sample_inputs(features, chunk.as_of_ms, chunk.contexts, encoding).items()
            }
        )
    return TrainingSet(
        requests.user,
        np.concatenate(history) if history else np.zeros((0, encoding.spec.history.length), dtype=np.int32),
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {},
        requests.as_of_ms,
        request[order],
        index[rows][order],
        target[rows][order],
        seen_before(log, requests, catalogue, encoding),
    )


def _narrow(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Codes are below 1,002 (`tensors.MAX_VALUES`, edges of buckets): two bytes are enough to keep them."""
    if values.dtype != np.int64:
        return values
    narrow = values.astype(np.int16)
    return narrow if np.array_equal(narrow, values) else values


def _declared(values: NDArray[np.generic]) -> NDArray[np.generic]:
    return values.astype(np.int64) if values.dtype == np.int16 else values
