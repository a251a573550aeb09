"""What is asked in a window of time: one request per user and step with a target event, and its targets."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.evaluation.timeline import Timeline
from models.samples import Requests, is_target, target_requests

WARM_EVENTS = 20


@dataclass(frozen=True)
class Window:
    """Requests of a time window and their targets."""

    requests: Requests  # R requests, by user and time
    request: NDArray[np.int64]  # int64[P], request of each target
    item: NDArray[np.int64]  # int64[P], catalogue index of each target
    known_events: NDArray[np.int64]  # int64[R], events of the user before the window
    earlier_events: NDArray[np.int64]  # int64[R], events of the user before the request

    @property
    def user(self) -> NDArray[np.int64]:
        """int64[P]: the user of each target."""
        return self.requests.user[self.request]

    def of_users(self, users: Sequence[int]) -> "Window":
        """Only the requests of these users."""
        kept = np.isin(self.requests.user, users)
        number = np.cumsum(kept) - 1
        rows = np.flatnonzero(kept)
        targets = kept[self.request]
        return Window(
            Requests(self.requests.user[rows], self.requests.as_of_ms[rows], [self.requests.contexts[r] for r in rows]),
            number[self.request[targets]],
            self.item[targets],
            self.known_events[rows],
            self.earlier_events[rows],
        )


def time_window(timeline: Timeline, begin_ms: int, end_ms: int | None = None) -> Window:
    """The requests whose target events lie in [begin_ms, end_ms)."""
    log, encoding = timeline.log, timeline.encoding
    index = timeline.catalogue.index_of(log.item)
    inside = (log.timestamp_ms >= begin_ms) & (index >= 0)
    if end_ms is not None:
        inside &= log.timestamp_ms < end_ms
    rows = np.flatnonzero(is_target(log, encoding) & inside)
    requests, request = target_requests(log, rows, encoding)
    known = np.bincount(log.user[log.timestamp_ms < begin_ms], minlength=len(log.user_ids))
    earlier = timeline.visible(requests.user, requests.as_of_ms) - log.offsets[requests.user]
    return Window(requests, request, index[rows], known[requests.user], earlier)


def subsets(window: Window) -> dict[str, NDArray[np.bool_]]:
    """Targets by how well their user was known: all, warm (20 events before the window), new, new<=5 (5 ever)."""
    known, earlier = window.known_events[window.request], window.earlier_events[window.request]
    return {
        "all": np.ones(len(known), dtype=bool),
        "warm": known >= WARM_EVENTS,
        "new": known == 0,
        "new<=5": (known == 0) & (earlier <= 5),
    }


def sample_users(window: Window, requests: int, users: int, seed: int) -> list[int]:
    """Whole users in random order until there are at least so many requests and users."""
    names, counts = np.unique(window.requests.user, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    enough = int(np.searchsorted(np.cumsum(counts[order]), requests)) + 1
    return sorted(names[order[: max(enough, users)]].tolist())
