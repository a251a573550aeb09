"""What users had seen before each request: no candidate there, and so no negative either."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.evaluation.timeline import Timeline
from models.event_log import Catalogue, EventLog
from models.samples import Requests
from models.tensors import Encoding


@dataclass(frozen=True)
class Seen:
    """Events that make their item seen, by user and time, and which of them each of R requests knows."""

    items: NDArray[np.int32]  # int32[S], catalogue index
    begin: NDArray[np.int64]  # int64[R]
    end: NDArray[np.int64]  # int64[R]

    def before(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Of some requests: their places in `rows` int64[n], and the catalogue index of each seen item int32[n]."""
        row, place = ranges(self.begin[rows], self.end[rows])
        return row, self.items[place]


def seen_before(log: EventLog, requests: Requests, catalogue: Catalogue, encoding: Encoding) -> Seen:
    """By the spec's rule; of an item that was seen again each time counts towards the rule's cap."""
    timeline, rule = Timeline(log, catalogue, encoding), encoding.spec.seen
    before = np.append(0, np.cumsum(timeline.makes_seen))  # int64[N + 1]
    end = before[timeline.visible(requests.user, requests.as_of_ms)]
    begin = np.maximum(before[log.offsets[requests.user]], end - rule.cap)
    if rule.window_ms:
        begin = np.maximum(begin, before[timeline.visible(requests.user, requests.as_of_ms - rule.window_ms)])
    return Seen(timeline.item[timeline.makes_seen].astype(np.int32), begin, end)


def ranges(begin: NDArray[np.int64], end: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """begin[n], begin[n] + 1, ..., end[n] - 1 for every n, one behind the other: n of each, and each."""
    counts = end - begin
    offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(np.arange(len(counts)), counts), np.repeat(begin, counts) + offsets
