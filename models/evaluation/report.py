"""The table: every model's figures over one window, by the same means, and how far each is from the reference."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.evaluation.metrics import macro, metrics, paired_intervals
from models.evaluation.ranking import TOP, Ranking
from models.evaluation.window import Window, subsets


@dataclass(frozen=True)
class Resampling:
    """How intervals are made: so many draws of users, from this seed."""

    resamples: int = 1000
    seed: int = 0


def figures(ranking: Ranking, window: Window, popularity: NDArray[np.int64]) -> dict[str, Any]:
    """One model's figures: micro means, `macro`, `groups`, `coverage_at_100`, `arp_at_100`.

    Coverage is the share of the catalogue that stands in at least one list. The average recommendation popularity (ARP;
    Yin, Cui, Li, Yao and Chen 2012, "Challenging the long tail recommendation") is the mean of `popularity` int64[M]
    over all places of all lists.
    """
    found: dict[str, Any] = dict(metrics(ranking.ranks))
    found["macro"] = macro(ranking.ranks, window.user)
    found["groups"] = {
        name: {"targets": int(rows.sum())}
        | metrics(ranking.ranks[rows])
        | {"macro": macro(ranking.ranks[rows], window.user[rows])}
        for name, rows in subsets(window).items()
    }
    found[f"coverage_at_{TOP}"] = float((ranking.shown > 0).mean()) if len(ranking.shown) else 0.0
    found[f"arp_at_{TOP}"] = float(ranking.shown @ popularity / max(int(ranking.shown.sum()), 1))
    return found


def table(
    rankings: Mapping[str, Ranking],
    window: Window,
    popularity: NDArray[np.int64],
    reference: str,
    resampling: Resampling = Resampling(),
) -> dict[str, Any]:
    """`models` (name -> figures), and `intervals` (name -> micro and macro -> metric -> difference, low, high)."""
    ranks = {name: ranking.ranks for name, ranking in rankings.items()}
    intervals = paired_intervals(ranks, reference, window.user, resampling.resamples, resampling.seed)
    return {
        "requests": len(window.requests.user),
        "targets": len(window.item),
        "users": len(np.unique(window.requests.user)),
        "items": len(popularity),
        "targets_arp": float(popularity[window.item].mean()) if len(window.item) else 0.0,
        "models": {name: figures(ranking, window, popularity) for name, ranking in rankings.items()},
        "reference": reference,
        "intervals": {
            name: {
                mean: {metric: asdict(interval) for metric, interval in by_metric.items()}
                for mean, by_metric in by_mean.items()
            }
            for name, by_mean in intervals.items()
        },
    }
