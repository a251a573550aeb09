"""iALS: matrix factorisation of implicit feedback by alternating least squares, by the library `implicit`.

Hu, Koren and Volinsky 2008, "Collaborative filtering for implicit feedback datasets". Item factors are frozen; a user's
are solved anew for every request (their equation 4) from the history, whose confidences fade with their place in it.
"""

from dataclasses import dataclass

import numpy as np

from models.evaluation.histories import decayed, interactions
from models.evaluation.ranking import Asked, Float32, Scorer
from models.evaluation.timeline import Timeline


@dataclass(frozen=True)
class IalsOptions:
    """Tuned on the validation window of MovieLens-1M."""

    factors: int = 64
    regularization: float = 50.0
    alpha: float = 5.0
    iterations: int = 15
    decay: float = 0.8
    seed: int = 0


class Ials:
    """score = user factors @ item factors. Raises ImportError where `implicit` is not installed."""

    def __init__(self, training: Timeline, options: IalsOptions = IalsOptions()) -> None:
        from implicit.cpu.als import AlternatingLeastSquares

        self._decay = options.decay
        self._model = AlternatingLeastSquares(
            factors=options.factors,
            regularization=options.regularization,
            alpha=options.alpha,
            iterations=options.iterations,
            num_threads=1,
            random_state=options.seed,
        )
        self._model.fit(interactions(training), show_progress=False)

    @property
    def item_factors(self) -> Float32:
        """float32[M, factors]: the frozen half."""
        return np.asarray(self._model.item_factors)

    def __call__(self, asked: Asked, /) -> Scorer:
        """Users are solved piece by piece."""

        def scores(begin: int, end: int) -> Float32:
            history = decayed(asked, begin, end, self._decay)
            users = self._model.recalculate_user(np.arange(end - begin), history)
            found: Float32 = users @ self.item_factors.T
            return found

        return scores
