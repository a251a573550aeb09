"""What users did in columns, by user and time, and what of it a request sees: the one place where time is told.

An event is visible to a request when its time, in whole steps of the spec's time_resolution_ms, lies before that of the
request: events of the request's own step are never seen. Delayed features see less; what counts as seen is not delayed.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from models.event_log import Catalogue, EventLog
from models.samples import Requests, is_target
from models.tensors import Encoding, event_codes
from schemas.records import SEEN_ENTRY, among, hash64, seen_items

DAY_MS = 86_400_000


@dataclass(frozen=True)
class Delay:
    """How late features are: `late_ms` before the request, or, `nightly`, as they stood at the last midnight (UTC)."""

    late_ms: int = 0
    nightly: bool = False

    def visible_before_ms(self, as_of_ms: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64[R]: the time whose record a request made at `as_of_ms` is answered from."""
        if self.nightly:
            return as_of_ms // DAY_MS * DAY_MS
        return as_of_ms - self.late_ms


AT_ONCE = Delay()


@dataclass(frozen=True)
class Timeline:
    """All events of a log by (user, time, event hash), for one catalogue and encoding."""

    log: EventLog
    catalogue: Catalogue
    encoding: Encoding

    @cached_property
    def time_ms(self) -> NDArray[np.int64]:
        """int64[N]: when each happened."""
        return self.log.timestamp_ms[self.log.order]

    @cached_property
    def item(self) -> NDArray[np.int64]:
        """int64[N]: index in the catalogue of the item of each, -1 = none, or not in it."""
        return self.catalogue.index_of(self.log.item)[self.log.order]

    @cached_property
    def counts(self) -> NDArray[np.bool_]:
        """bool[N]: names an item of the catalogue, by an action to which the spec's history gives a code."""
        codes = event_codes(self.log.action, self.log.value, self.encoding.spec)[self.log.order]
        return (codes > 0) & (self.item >= 0)

    @cached_property
    def is_target(self) -> NDArray[np.bool_]:
        """bool[N]: what a good recommendation leads to, with an item of the catalogue."""
        return is_target(self.log, self.encoding)[self.log.order] & (self.item >= 0)

    @cached_property
    def target_counts(self) -> NDArray[np.int64]:
        """int64[M]: target events of each item."""
        return np.bincount(self.item[self.is_target], minlength=len(self.catalogue))

    @cached_property
    def makes_seen(self) -> NDArray[np.bool_]:
        """bool[N]: takes its item out of the candidates, by the spec's actions."""
        actions = self.encoding.spec.seen_actions
        if not actions:
            return self.item >= 0
        named = np.array([hash64(name) for name in actions], dtype=np.uint64)
        return np.isin(self.log.action[self.log.order], named) & (self.item >= 0)

    def visible(self, user: NDArray[np.int64], before_ms: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64[R]: the end of the rows that are visible to each request; they begin at log.offsets[user]."""
        step_ms = self.encoding.spec.history.time_resolution_ms
        limits = before_ms // step_ms * step_ms
        ends = np.empty(len(limits), dtype=np.int64)
        for n, (who, limit) in enumerate(zip(user.tolist(), limits.tolist(), strict=True)):
            begin, end = self.log.offsets[who], self.log.offsets[who + 1]
            ends[n] = begin + np.searchsorted(self.time_ms[begin:end], limit)
        return ends

    def seen(self, requests: Requests) -> list[NDArray[np.int64]]:
        """For each request the catalogue indices that its user has seen, by the spec's rule, in earlier steps."""
        ends = self.visible(requests.user, requests.as_of_ms)
        begins = self.log.offsets[requests.user]
        rule, met = self.encoding.spec.seen, []
        for begin, end, as_of_ms in zip(begins.tolist(), ends.tolist(), requests.as_of_ms.tolist(), strict=True):
            rows = begin + np.flatnonzero(self.makes_seen[begin:end])
            if rule.window_ms or len(rows) > rule.cap:
                rows = rows[self._still_seen(rows, as_of_ms)]
            met.append(self.item[rows])
        return met

    def _still_seen(self, rows: NDArray[np.int64], as_of_ms: int) -> NDArray[np.bool_]:
        """bool[n] of rows that made an item seen: where that item still counts, told as the live system does."""
        rule = self.encoding.spec.seen
        entries = np.zeros(len(rows), dtype=SEEN_ENTRY)
        entries["item"] = self.log.item[self.log.order[rows]]
        entries["timestamp_ms"] = self.time_ms[rows]
        return among(entries["item"], seen_items(entries.tobytes(), None, rule.since_ms(as_of_ms), rule.cap))
