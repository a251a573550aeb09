"""Popularity that follows the time: target events of everybody up to the request, each fading with its age.

The weight of an event halves every `half_life_ms` (the spec's `popular.half_life_ms`), as it does in the live source
`popular`. Exponentially decayed counters: Cormode, Shkapenyuk, Srivastava and Xu 2009, "Forward decay: a practical time
decay model for streaming systems".
"""

import numpy as np
from numpy.typing import NDArray

from models.evaluation.ranking import Asked, Float32, Scorer


class DecayedPopularity:
    """Counts are live: nothing is fitted. What a request sees of others' events ends where its own user's does."""

    def __call__(self, asked: Asked, /) -> Scorer:
        """Sort the target events of the log by time, once."""
        return _Decayed(asked).scores


class _Decayed:
    def __init__(self, asked: Asked) -> None:
        timeline = asked.timeline
        spec = timeline.encoding.spec
        self._half_life_ms = spec.popular.half_life_ms
        targets = np.flatnonzero(timeline.is_target)
        targets = targets[np.argsort(timeline.time_ms[targets], kind="stable")]
        self._item, self._time_ms = timeline.item[targets], timeline.time_ms[targets]
        self._before_ms = asked.visible_before_ms
        self._items = len(timeline.catalogue)
        first = int(self._before_ms.min(initial=0))
        self._base_ms, self._base_end = first, int(np.searchsorted(self._time_ms, first))
        self._base = self._added(0, self._base_end, first)

    def scores(self, begin: int, end: int) -> Float32:
        """float32[end - begin, M]."""
        found = np.empty((end - begin, self._items), dtype=np.float32)
        counts, now_ms, done = self._base.copy(), self._base_ms, self._base_end
        for row in (begin + np.argsort(self._before_ms[begin:end], kind="stable")).tolist():
            before_ms = int(self._before_ms[row])
            until = int(np.searchsorted(self._time_ms, before_ms))
            counts *= 0.5 ** ((before_ms - now_ms) / self._half_life_ms)
            counts += self._added(done, until, before_ms)
            now_ms, done = before_ms, until
            found[row - begin] = counts
        return found

    def _added(self, begin: int, end: int, at_ms: int) -> NDArray[np.float64]:
        weights = 0.5 ** ((at_ms - self._time_ms[begin:end]) / self._half_life_ms)
        return np.bincount(self._item[begin:end], weights, minlength=self._items).astype(np.float64)
