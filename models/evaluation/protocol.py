"""The temporal streaming protocol: weights frozen at a time, features live, every later target event foretold.

One request per user and step of time with a target event; its history is what happened in strictly earlier steps; all
items are candidates but those the user had seen strictly before; what counts is the exact rank of every target.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from models.bundle import Metric
from models.evaluation.baselines.popularity import Popularity
from models.evaluation.metrics import metrics
from models.evaluation.ranking import rank
from models.evaluation.timeline import Timeline
from models.evaluation.two_tower import EmbedItems, EmbedUsers, TowerRanker
from models.evaluation.window import Window, sample_users, subsets, time_window
from models.event_log import Catalogue, EventLog
from models.tensors import Encoding

__all__ = ["Window", "exact_ranks", "metrics", "popularity_ranks", "sample_users", "subsets", "window"]


def window(log: EventLog, catalogue: Catalogue, encoding: Encoding, begin_ms: int, end_ms: int | None = None) -> Window:
    """The requests whose target events lie in [begin_ms, end_ms)."""
    return time_window(Timeline(log, catalogue, encoding), begin_ms, end_ms)


def exact_ranks(
    log: EventLog,
    catalogue: Catalogue,
    encoding: Encoding,
    asked: Window,
    towers: tuple[EmbedUsers, EmbedItems],
    progress: Callable[[float], None],
    metric: Metric = "IP",
) -> NDArray[np.float64]:
    """float64[P]: how many candidates stand before each target, by the towers' vectors and the bundle's metric."""
    ranker = TowerRanker(towers, encoding, metric, lambda part: progress(part / 2))
    timeline = Timeline(log, catalogue, encoding)
    return rank(ranker, timeline, asked, lambda part: progress((1 + part) / 2)).ranks


def popularity_ranks(
    log: EventLog, catalogue: Catalogue, encoding: Encoding, asked: Window, begin_ms: int
) -> NDArray[np.float64]:
    """float64[P]: ranks when everybody is shown the items with most target events before `begin_ms`."""
    popular = Popularity(Timeline(log.before(begin_ms), catalogue, encoding))
    return rank(popular, Timeline(log, catalogue, encoding), asked, lambda _: None).ranks
