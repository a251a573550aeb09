"""Samples in blocks: consecutive requests of one user share the stretch of history that they look back on.

An event is embedded once for all requests of its block, which makes an epoch several times shorter, and every request
still gets what serving gives it: its own places and ages, taken from its own sample.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.tensors import Inputs
from models.training.encoders import Past
from models.training.samples import TrainingSet

MAX_REQUESTS = 16
MAX_SPAN = 32  # events from a block's first request to its last


@dataclass(frozen=True)
class Block:
    """B stretches of L events and K requests; requests that only fill up stand behind the others of their row."""

    rows: NDArray[np.int64]  # int64[B, K], of the training set
    real: NDArray[np.bool_]  # bool[B, K]
    items: NDArray[np.int32]  # int32[B, L], catalogue index, -1 = none
    codes: NDArray[np.int64]  # int64[B, L]
    ago_s: NDArray[np.float32]  # float32[B, L], before the last request
    age_s: NDArray[np.float32]  # float32[B, K, L]
    place: NDArray[np.int64]  # int64[B, K, L]

    def past(self, vectors: Tensor) -> Past:
        """With the events' vectors float32[B, L, D]."""
        codes, ago_s, age_s, place = (
            torch.from_numpy(values).to(vectors.device) for values in (self.codes, self.ago_s, self.age_s, self.place)
        )
        return Past(vectors, codes, ago_s, age_s, place)


def cut(samples: TrainingSet, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """All requests in runs of one user, each at most MAX_REQUESTS long and MAX_SPAN (or H) events wide."""
    span = min(MAX_SPAN, samples.history.shape[1])
    counts, users = samples.inputs["event_count"].astype(np.int64).tolist(), samples.user.tolist()
    room = rng.integers(1, MAX_REQUESTS + 1, size=len(users)).tolist()  # of a user's first run: cuts move by epoch
    runs, begin, limit = [], 0, room[0] if room else 0
    for row in range(1, len(users)):
        other = users[row] != users[begin]
        if other or row - begin >= limit or counts[row] - counts[begin] > span:
            runs.append(np.arange(begin, row))
            begin, limit = row, room[row] if other else MAX_REQUESTS
    if users:
        runs.append(np.arange(begin, len(users)))
    return runs


def assemble(samples: TrainingSet, runs: list[NDArray[np.int64]]) -> Block:
    """The runs as one block of equally long rows."""
    length = samples.history.shape[1]
    lasts = np.array([len(run) - 1 for run in runs])
    k = np.arange(lasts.max() + 1)[None]
    rows = np.array([run[0] for run in runs])[:, None] + np.minimum(k, lasts[:, None])
    counts = samples.inputs["event_count"][rows].astype(np.int64)
    shift = counts - counts[:, :1]  # where a request's history begins in the stretch
    total = length + int(shift.max(initial=0))
    place = shift[:, :, None] + length - np.arange(total)
    visible = (place >= 1) & (place <= length)
    source = np.where(visible, length - place, 0)
    codes, ages = samples.inputs["history_codes"][rows], samples.inputs["history_age_s"][rows]
    visible &= np.take_along_axis(codes, source, axis=2) > 0
    first, last = rows[:, :1], rows[:, -1:]
    between_s = (samples.as_of_ms[last] - samples.as_of_ms[first]) / 1000
    at = np.arange(length)
    items = np.full((len(runs), total), -1, dtype=np.int32)
    kinds = np.zeros((len(runs), total), dtype=np.int64)
    ago_s = np.zeros((len(runs), total), dtype=np.float32)
    for row, begin, later_s in ((first, np.zeros_like(first), between_s), (last, shift[:, -1:], 0.0)):
        here = (np.arange(len(runs))[:, None], begin + at)
        known = samples.inputs["history_codes"][row[:, 0]] > 0
        items[here] = np.where(known, samples.history[row[:, 0]], items[here])
        kinds[here] = np.where(known, samples.inputs["history_codes"][row[:, 0]], kinds[here])
        ago_s[here] = np.where(known, samples.inputs["history_age_s"][row[:, 0]] + later_s, ago_s[here])
    return Block(
        rows=rows,
        real=k <= lasts[:, None],
        items=items,
        codes=kinds,
        ago_s=ago_s,
        age_s=np.where(visible, np.take_along_axis(ages, source, axis=2), np.float32(0)),
        place=np.where(visible, place, 0),
    )


def request_inputs(samples: TrainingSet, block: Block) -> Inputs:
    """What the user tower is given beside the history: B * K rows."""
    inputs = samples.batch(block.rows.reshape(-1))
    return {name: values for name, values in inputs.items() if not name.startswith("history_")}
