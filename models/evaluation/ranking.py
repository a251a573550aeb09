"""One ranker protocol for every model, and the exact rank of every target among all candidates under it.

A ranker is told all requests of a window at once, each with the events that it may see, and gives a scorer, which is
asked for the scores of the requests piece by piece. What a model may know is decided here, not by the model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.evaluation.timeline import AT_ONCE, Delay, Timeline
from models.evaluation.window import Window
from models.samples import Requests

Float32 = NDArray[np.float32]
Progress = Callable[[float], None]
Scorer = Callable[[int, int], Float32]
"""`scorer(begin, end)`: float32[end - begin, M], their scores of all items; the array may be changed."""

ELEMENTS_AT_ONCE = 1 << 23  # of scores: 32 MiB
MOST_ROWS = 2048
TOP = 100


class RankingError(ValueError):
    """Scores that cannot be ranked; one line."""


@dataclass(frozen=True)
class Asked:
    """R requests, and which events each may see: rows begin[r]:end[r] of the timeline, oldest first."""

    timeline: Timeline
    requests: Requests
    visible_before_ms: NDArray[np.int64]  # int64[R], whole steps of the spec
    begin: NDArray[np.int64]  # int64[R]
    end: NDArray[np.int64]  # int64[R]

    @classmethod
    def of(cls, timeline: Timeline, requests: Requests, delay: Delay = AT_ONCE) -> "Asked":
        """What these requests may see when features are that late."""
        step_ms = timeline.encoding.spec.history.time_resolution_ms
        before_ms = delay.visible_before_ms(requests.as_of_ms) // step_ms * step_ms
        end = timeline.visible(requests.user, before_ms)
        return cls(timeline, requests, before_ms, timeline.log.offsets[requests.user], end)


class Ranker(Protocol):
    """A model that can be evaluated."""

    def __call__(self, asked: Asked, /) -> Scorer:
        """Take the requests. The scorer is called once for each piece, in order."""
        ...


@dataclass(frozen=True)
class Ranking:
    """How one model ranks a window."""

    ranks: NDArray[np.float64]  # float64[P]: candidates before each target; equal scores share their mean rank
    shown: NDArray[np.int64]  # int64[M]: in how many lists of the first 100 each item stands


def rank(ranker: Ranker, timeline: Timeline, window: Window, progress: Progress, delay: Delay = AT_ONCE) -> Ranking:
    """Rank every target among all items but those that its user had seen. Raises RankingError for a score of NaN."""
    asked = Asked.of(timeline, window.requests, delay)
    scorer = ranker(asked)
    items, total = len(timeline.catalogue), len(window.requests.user)
    ranks, shown = np.empty(len(window.item)), np.zeros(items, dtype=np.int64)
    order = np.argsort(window.request, kind="stable")
    bounds = np.searchsorted(window.request[order], np.arange(total + 1))
    size = max(1, min(MOST_ROWS, ELEMENTS_AT_ONCE // max(items, 1)))
    for start in range(0, total, size):
        stop = min(start + size, total)
        scores = scorer(start, stop)
        if np.isnan(scores).any():
            raise RankingError("a score is not a number")
        for line, met in zip(scores, timeline.seen(window.requests.piece(start, stop)), strict=True):
            line[met] = -np.inf
        for row, line in enumerate(scores, start):
            targets = order[bounds[row] : bounds[row + 1]]
            wanted = line[window.item[targets]][:, None]
            ranks[targets] = (line > wanted).sum(1) + 0.5 * ((line == wanted).sum(1) - 1)
        shown += _first(scores, TOP)
        progress(stop / total)
    return Ranking(ranks, shown)


def _first(scores: Float32, count: int) -> NDArray[np.int64]:
    """int64[M]: how often each item is among the first `count` candidates of a row."""
    items = scores.shape[1]
    if items > count:
        best = np.argpartition(scores, items - count, axis=1)[:, items - count :]
        best = best[np.isfinite(np.take_along_axis(scores, best, axis=1))]
    else:
        best = np.nonzero(np.isfinite(scores))[1]
    return np.bincount(best.reshape(-1), minlength=items)
