"""The temporal streaming protocol: weights frozen at a time, features live, every later target event foretold.

One request per user and step of time with a target event; its history is what happened in strictly earlier steps; all
items are candidates but those the user had seen strictly before; what counts is the exact rank of every target.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.event_log import Catalogue, EventLog
from models.samples import Requests, chunks, is_target, target_requests
from models.spec import Seen
from models.tensors import Encoding, Inputs, item_inputs, user_inputs
from schemas.records import SEEN_ENTRY, among, hash64, seen_items

Float32 = NDArray[np.float32]
EmbedUsers = Callable[[Inputs], Float32]
EmbedItems = Callable[[Inputs], tuple[Float32, Float32]]

CUTS = (10, 50, 100)
GAIN_CUTS = (10, 100)
WARM_EVENTS = 20


@dataclass(frozen=True)
class Window:
    """Requests of a time window and their targets."""

    requests: Requests  # R requests, by user and time
    request: NDArray[np.int64]  # int64[P], request of each target
    item: NDArray[np.int64]  # int64[P], catalogue index of each target
    known_events: NDArray[np.int64]  # int64[R], events of the user before the window
    earlier_events: NDArray[np.int64]  # int64[R], events of the user before the request

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


def window(log: EventLog, catalogue: Catalogue, encoding: Encoding, begin_ms: int, end_ms: int | None = None) -> Window:
    """The requests whose target events lie in [begin_ms, end_ms)."""
    index = catalogue.index_of(log.item)
    inside = (log.timestamp_ms >= begin_ms) & (index >= 0)
    if end_ms is not None:
        inside &= log.timestamp_ms < end_ms
    rows = np.flatnonzero(is_target(log, encoding) & inside)
    requests, request = target_requests(log, rows, encoding)
    known = np.bincount(log.user[log.timestamp_ms < begin_ms], minlength=len(log.user_ids))
    return Window(requests, request, index[rows], known[requests.user], _earlier(log, requests, encoding))


def exact_ranks(
    log: EventLog,
    catalogue: Catalogue,
    encoding: Encoding,
    asked: Window,
    towers: tuple[EmbedUsers, EmbedItems],
    progress: Callable[[float], None],
) -> NDArray[np.float64]:
    """float64[P]: how many candidates stand before each target, by the inner product of the towers' vectors."""
    embed_users, embed_items = towers
    item_vectors, history_vectors = embed_items(item_inputs(catalogue.item_ids, catalogue.attributes, encoding))
    padded = np.vstack([history_vectors, np.zeros_like(history_vectors[:1])])  # index -1: not in the catalogue
    ranks = np.empty(len(asked.item))
    done = 0
    for chunk, features in chunks(log, asked.requests, encoding):
        for start in range(0, len(chunk.user), 1024):
            piece = slice(start, start + 1024)
            vectors = padded[catalogue.index_of(features.item_hashes[piece])]
            part = type(features)(
                **{name: getattr(features, name)[piece] for name in features.__dataclass_fields__ if name != "profile"},
                profile={name: values[piece] for name, values in features.profile.items()},
            )
            users = embed_users(user_inputs(part, vectors, chunk.as_of_ms[piece], chunk.contexts[piece], encoding))
            _rank(users @ item_vectors.T, done, log, catalogue, encoding, asked, ranks)
            done += len(users)
            progress(done / len(asked.requests.user))
    return ranks


def popularity_ranks(
    log: EventLog, catalogue: Catalogue, encoding: Encoding, asked: Window, begin_ms: int
) -> NDArray[np.float64]:
    """float64[P]: ranks when everybody is shown the items with most events before `begin_ms`."""
    index = catalogue.index_of(log.item)
    counts = np.bincount(index[(log.timestamp_ms < begin_ms) & (index >= 0)], minlength=len(catalogue))
    scores = counts.astype(np.float32)
    ranks = np.empty(len(asked.item))
    for start in range(0, len(asked.requests.user), 1024):
        rows = min(1024, len(asked.requests.user) - start)
        _rank(np.repeat(scores[None], rows, axis=0), start, log, catalogue, encoding, asked, ranks)
    return ranks


def metrics(ranks: NDArray[np.float64]) -> dict[str, float]:
    """Recall@10, 50, 100 and NDCG@10, 100 over targets, one relevant item each."""
    found = {f"recall_at_{k}": float((ranks < k).mean()) if len(ranks) else 0.0 for k in CUTS}
    for k in GAIN_CUTS:
        gains = np.where(ranks < k, 1 / np.log2(ranks + 2), 0)
        found[f"ndcg_at_{k}"] = float(gains.mean()) if len(ranks) else 0.0
    return found


def subsets(asked: Window) -> dict[str, NDArray[np.bool_]]:
    """Targets by how well their user was known: all, warm (20 events before the window), new, new<=5 (5 ever)."""
    known, earlier = asked.known_events[asked.request], asked.earlier_events[asked.request]
    return {
        "all": np.ones(len(known), dtype=bool),
        "warm": known >= WARM_EVENTS,
        "new": known == 0,
        "new<=5": (known == 0) & (earlier <= 5),
    }


def sample_users(asked: Window, requests: int, users: int, seed: int) -> list[int]:
    """Whole users in random order until there are at least so many requests and users."""
    names, counts = np.unique(asked.requests.user, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    enough = int(np.searchsorted(np.cumsum(counts[order]), requests)) + 1
    return sorted(names[order[: max(enough, users)]].tolist())


def seen_before(log: EventLog, catalogue: Catalogue, encoding: Encoding, requests: Requests) -> list[NDArray[np.int64]]:
    """For every request the catalogue indices that its user had seen, by the spec's rule, in strictly earlier steps."""
    counts = np.ones(len(log), dtype=bool)
    if encoding.spec.seen_actions:
        counts = np.isin(log.action, np.array([hash64(name) for name in encoding.spec.seen_actions], dtype=np.uint64))
    index = np.where(counts, catalogue.index_of(log.item), -1)[log.order]
    ends = log.offsets[requests.user] + _earlier(log, requests, encoding)
    rule, met = encoding.spec.seen, []
    for begin, end, as_of_ms in zip(
        log.offsets[requests.user].tolist(), ends.tolist(), requests.as_of_ms.tolist(), strict=True
    ):
        rows = np.arange(begin, end)[index[begin:end] >= 0]
        if rule.window_ms or len(rows) > rule.cap:
            rows = rows[_counting(log, log.order[rows], rule, as_of_ms)]
        met.append(index[rows])
    return met


def _counting(log: EventLog, rows: NDArray[np.int64], rule: Seen, as_of_ms: int) -> NDArray[np.bool_]:
    """bool[n] of the log's rows that made an item seen: where that item still counts, told as the live system does."""
    entries = np.zeros(len(rows), dtype=SEEN_ENTRY)
    entries["item"], entries["timestamp_ms"] = log.item[rows], log.timestamp_ms[rows]
    return among(entries["item"], seen_items(entries.tobytes(), None, rule.since_ms(as_of_ms), rule.cap))


def _earlier(log: EventLog, requests: Requests, encoding: Encoding) -> NDArray[np.int64]:
    """int64[R]: how many events of the user lie in strictly earlier steps."""
    step_ms = encoding.spec.history.time_resolution_ms
    limits = requests.as_of_ms // step_ms * step_ms
    times = log.timestamp_ms[log.order]
    counts = np.empty(len(limits), dtype=np.int64)
    for n, (user, limit) in enumerate(zip(requests.user.tolist(), limits.tolist(), strict=True)):
        begin, end = log.offsets[user], log.offsets[user + 1]
        counts[n] = np.searchsorted(times[begin:end], limit)
    return counts


def _rank(
    scores: Float32,
    start: int,
    log: EventLog,
    catalogue: Catalogue,
    encoding: Encoding,
    asked: Window,
    ranks: NDArray[np.float64],
) -> None:
    """Fill in the ranks of the targets of requests start, start + 1, ...; ties share their mean rank."""
    requests = asked.requests
    piece = slice(start, start + len(scores))
    some = Requests(requests.user[piece], requests.as_of_ms[piece], requests.contexts[piece])
    order = np.argsort(asked.request, kind="stable")
    bounds = np.searchsorted(asked.request[order], np.arange(start, start + len(scores) + 1))
    for row, met in enumerate(seen_before(log, catalogue, encoding, some)):
        line = scores[row]
        line[met] = -np.inf
        targets = order[bounds[row] : bounds[row + 1]]
        wanted = line[asked.item[targets]][:, None]
        ranks[targets] = (line > wanted).sum(1) + 0.5 * ((line == wanted).sum(1) - 1)
