"""EASE: a linear autoencoder with zero diagonal, in closed form. Steck 2019, "Embarrassingly shallow autoencoders".

With G = X'X of the interaction matrix X and P = (G + lambda I)^-1, the weights are B = I - P diag(P)^-1 (equation 8).
The user's items fade with their place in the history.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from models.evaluation.histories import decayed, interactions
from models.evaluation.ranking import Asked, Float32, Scorer
from models.evaluation.timeline import Timeline

MOST_ITEMS = 10_000  # a dense float64 matrix of these: 800 MB


@dataclass(frozen=True)
class EaseOptions:
    """Tuned on the validation window of MovieLens-1M."""

    ridge: float = 3000.0
    decay: float = 0.85


class Ease:
    """score = history @ B. Of more than MOST_ITEMS items, only the most frequent have weights."""

    def __init__(self, training: Timeline, options: EaseOptions = EaseOptions()) -> None:
        self._decay = options.decay
        met = interactions(training)
        counts = np.asarray(met.sum(axis=0)).reshape(-1)
        self._items = np.sort(np.argsort(-counts, kind="stable")[:MOST_ITEMS])
        chosen = met[:, self._items]
        self._weights = weights((chosen.T @ chosen).toarray(), options.ridge)

    def __call__(self, asked: Asked, /) -> Scorer:
        """Histories are made piece by piece."""

        def scores(begin: int, end: int) -> Float32:
            found = np.zeros((end - begin, len(asked.timeline.catalogue)), dtype=np.float32)
            found[:, self._items] = decayed(asked, begin, end, self._decay)[:, self._items] @ self._weights
            return found

        return scores


def weights(gram: Float32, ridge: float) -> Float32:
    """float32[M, M]: B for a Gram matrix G float32[M, M]."""
    size = len(gram)
    regular = gram.astype(np.float64)
    regular[np.diag_indices(size)] += ridge
    factor = cho_factor(regular, lower=True, overwrite_a=True, check_finite=False)
    inverse = cho_solve(factor, np.eye(size), overwrite_b=True, check_finite=False)
    found: NDArray[np.float64] = inverse / -np.diag(inverse)
    found[np.diag_indices(size)] = 0
    return np.asarray(found, dtype=np.float32)
