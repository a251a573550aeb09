"""Co-visitation: what came within a few events after an item, in the histories of all users.

Association by sequential rules, as in Ludewig and Jannach 2018, "Evaluation of session-based recommendation algorithms"
(sections AR and SR): each pair in a window of events counts 1 / distance; a row is divided by the root of its column's
count, so that popular items do not follow everything. The user's items fade with their place in the history.
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
    decay: float = 0.8
    power: float = 0.5  # of the column's count that a pair is divided by
    distance: float = 0.0
    forward: bool = False
    rowpower: float = 0.0


class CoVisitation:
    """score = history @ pairs."""

    def __init__(self, training: Timeline, options: CoVisitationOptions = CoVisitationOptions()) -> None:
        self._decay = options.decay
        self._pairs = pairs(training, options)

    def __call__(self, asked: Asked) -> Scorer:
        """Histories are made piece by piece."""

        def scores(begin: int, end: int) -> Float32:
            found: Float32 = (decayed(asked, begin, end, self._decay) @ self._pairs).toarray()
            return found

        return scores


def pairs(training: Timeline, options: "CoVisitationOptions") -> sp.csr_matrix:
    rows = np.flatnonzero(training.counts)
    users, items = training.log.user[training.log.order[rows]], training.item[rows]
    size = len(training.catalogue)
    total = sp.csr_matrix((size, size), dtype=np.float32)
    for distance in range(1, options.window + 1):
        same = users[distance:] == users[:-distance]
        earlier, later = items[:-distance][same], items[distance:][same]
        ones = np.full(len(earlier), (1 / distance) ** options.distance, np.float32)
        total = total + sp.csr_matrix((ones, (earlier, later)), shape=(size, size))
    if not options.forward:
        total = (total + total.T).tocsr()
    total.setdiag(0)
    counts = np.maximum(np.bincount(items, minlength=size), 1).astype(np.float32)
    return (
        sp.diags(counts**-options.rowpower).astype(np.float32)
        @ total
        @ sp.diags(counts**-options.power).astype(np.float32)
    ).tocsr()
