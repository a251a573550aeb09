"""Co-visitation: what came within a few events behind an item, in the histories of all users.

Sequential rules, as in Ludewig and Jannach 2018, "Evaluation of session-based recommendation algorithms" (section SR):
each pair of events of a user, at most `window` apart, counts 1 / distance^0.5 for (earlier, later). Popular items stand
behind everything and before everything, so a pair is divided by count(earlier)^0.5 * count(later)^0.25. The user's
items fade with their place in the history.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from models.evaluation.histories import decayed
from models.evaluation.ranking import Asked, Float32, Scorer
from models.evaluation.timeline import Timeline


@dataclass(frozen=True)
class CoVisitationOptions:
    """Tuned on the validation window of MovieLens-1M."""

    window: int = 10
    decay: float = 0.85
    distance_power: float = 0.5
    earlier_power: float = 0.5
    later_power: float = 0.25


class CoVisitation:
    """score = history @ pairs."""

    def __init__(self, training: Timeline, options: CoVisitationOptions = CoVisitationOptions()) -> None:
        self._decay = options.decay
        self._pairs = pairs(training, options)

    def __call__(self, asked: Asked, /) -> Scorer:
        """Histories are made piece by piece."""

        def scores(begin: int, end: int) -> Float32:
            found: Float32 = (decayed(asked, begin, end, self._decay) @ self._pairs).toarray()
            return found

        return scores


def pairs(training: Timeline, options: CoVisitationOptions) -> sp.csr_matrix:
    """float32[M, M]: rows are earlier items, columns later ones."""
    rows = np.flatnonzero(training.counts)
    users, items = training.log.user[training.log.order[rows]], training.item[rows]
    size = len(training.catalogue)
    total = sp.csr_matrix((size, size), dtype=np.float32)
    for distance in range(1, min(options.window, len(items) - 1) + 1):
        same = (users[distance:] == users[:-distance]) & (items[distance:] != items[:-distance])
        earlier, later = items[:-distance][same], items[distance:][same]
        weight = np.full(len(earlier), distance**-options.distance_power, np.float32)
        total = total + sp.csr_matrix((weight, (earlier, later)), shape=(size, size))
    counts = np.maximum(np.bincount(items, minlength=size), 1)
    before, behind = (
        sp.diags((counts**-power).astype(np.float32)) for power in (options.earlier_power, options.later_power)
    )
    return (before @ total @ behind).tocsr()
