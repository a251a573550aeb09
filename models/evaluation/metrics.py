"""What ranks are worth: per target, in the mean over targets (micro) and over users (macro), with paired intervals."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CUTS = (10, 50, 100)
GAIN_CUTS = (10, 100)
LEVEL = 0.95

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """How much more a model has than the reference, and where that lies in 95 % of the resamples."""

    difference: float
    low: float
    high: float


def values(ranks: NDArray[np.float64]) -> dict[str, Values]:
    """Of each metric float64[P], its value for every target: one relevant item each.

    Recall@k is 1 within the first k. NDCG@k is 1 / log2(rank + 2) there (Jarvelin and Kekalainen 2002; ranks from 0,
    and the best possible gain of one item is 1).
    """
    found = {f"recall_at_{k}": (ranks < k).astype(np.float64) for k in CUTS}
    return found | {f"ndcg_at_{k}": np.where(ranks < k, 1 / np.log2(ranks + 2), 0) for k in GAIN_CUTS}


def metrics(ranks: NDArray[np.float64]) -> dict[str, float]:
    """Micro: the mean of each metric over targets; 0 when there is none."""
    return {name: float(each.mean()) if len(each) else 0.0 for name, each in values(ranks).items()}


def macro(ranks: NDArray[np.float64], user: NDArray[np.int64]) -> dict[str, float]:
    """The mean over users of each user's mean over their targets; `user` int64[P] is whose target it is."""
    _, member = np.unique(user, return_inverse=True)
    counts = np.bincount(member)
    found = {}
    for name, each in values(ranks).items():
        found[name] = float((np.bincount(member, each) / counts).mean()) if len(each) else 0.0
    return found


def paired_intervals(
    ranks: Mapping[str, NDArray[np.float64]], reference: str, user: NDArray[np.int64], resamples: int, seed: int
) -> dict[str, dict[str, dict[str, Interval]]]:
    """Model -> micro and macro -> metric -> its difference from `reference`, by a bootstrap of whole users.

    Users are drawn with replacement (Efron and Tibshirani 1993, the percentile interval): targets of one user depend on
    each other. Each draw is the same for all models (paired), so what makes users hard or easy cancels out.
    """
    _, member = np.unique(user, return_inverse=True)
    counts = np.bincount(member).astype(np.float64)
    names = [name for name in ranks if name != reference]
    if not names or not len(counts):
        return {}
    base = values(ranks[reference])
    sums = np.stack(  # float64[U, models * metrics]
        [np.bincount(member, each - base[metric]) for name in names for metric, each in values(ranks[name]).items()],
        axis=1,
    )
    means = sums / counts[:, None]
    rng = np.random.default_rng(seed)
    draws = np.empty((2, resamples, sums.shape[1]))
    for n in range(resamples):
        weight = np.bincount(rng.integers(len(counts), size=len(counts)), minlength=len(counts)).astype(np.float64)
        draws[0, n] = weight @ sums / (weight @ counts)
        draws[1, n] = weight @ means / len(counts)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
    whole = np.stack([sums.sum(0) / counts.sum(), means.mean(0)])
    found: dict[str, dict[str, dict[str, Interval]]] = {}
    for number, (name, metric) in enumerate((name, metric) for name in names for metric in base):
        for kind, mean in enumerate(("micro", "macro")):
            interval = Interval(*(float(part[kind, number]) for part in (whole, low, high)))
            found.setdefault(name, {}).setdefault(mean, {})[metric] = interval
    return found
