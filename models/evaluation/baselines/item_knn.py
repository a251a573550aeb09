"""Item-based nearest neighbours: cosine of the columns of the interaction matrix, shrunk, the nearest K of each item.

Sarwar, Karypis, Konstan and Riedl 2001, "Item-based collaborative filtering recommendation algorithms"; cosine and the
sum over the user's items: Deshpande and Karypis 2004, "Item-based top-N recommendation algorithms"; the shrink term:
Bell and Koren 2007. The user's items fade with their place in the history.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from models.evaluation.histories import decayed, interactions
from models.evaluation.ranking import Asked, Float32, Scorer
from models.evaluation.timeline import Timeline

ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class ItemKnnOptions:
    """Tuned on the validation window of MovieLens-1M."""

    neighbours: int = 500
    shrink: float = 10.0
    decay: float = 0.7


class ItemKnn:
    """score = history @ similarity."""

    def __init__(self, training: Timeline, options: ItemKnnOptions = ItemKnnOptions()) -> None:
        self._decay = options.decay
        self._similarity = similarity(interactions(training), options.neighbours, options.shrink)

    def __call__(self, asked: Asked, /) -> Scorer:
        """Histories are made piece by piece."""

        def scores(begin: int, end: int) -> Float32:
            found: Float32 = (decayed(asked, begin, end, self._decay) @ self._similarity).toarray()
            return found

        return scores


def similarity(met: sp.csr_matrix, neighbours: int, shrink: float) -> sp.csr_matrix:
    """float32[M, M]: |a and b| / (sqrt(|a| |b|) + shrink), of each row the greatest `neighbours`, without itself."""
    counts = np.asarray(met.sum(axis=0)).reshape(-1)
    by_item = met.T.tocsr()
    blocks = []
    for start in range(0, met.shape[1], ROWS_AT_ONCE):
        block = (by_item[start : start + ROWS_AT_ONCE] @ met).toarray()
        block[np.arange(len(block)), start + np.arange(len(block))] = 0
        block /= np.sqrt(counts[start : start + ROWS_AT_ONCE, None] * counts[None]) + max(shrink, 1e-9)
        if block.shape[1] > neighbours:
            least = np.partition(block, block.shape[1] - neighbours, axis=1)[:, [block.shape[1] - neighbours]]
            block[block < least] = 0
        blocks.append(sp.csr_matrix(block))
    return sp.vstack(blocks, format="csr")
