"""The same list for everybody: items by how many target events they had before the window (frozen, like weights)."""

import numpy as np

from models.evaluation.ranking import Asked, Scorer
from models.evaluation.timeline import Timeline


class Popularity:
    """Most target events first; the score is the count."""

    def __init__(self, training: Timeline) -> None:
        """Count."""
        self._scores = training.target_counts.astype(np.float32)

    def __call__(self, _: Asked, /) -> Scorer:
        """The same row for every request."""
        return lambda begin, end: np.repeat(self._scores[None], end - begin, axis=0)
