"""Softmax over the catalogue, or over a corrected sample of it.

Sampled softmax with log Q correction: Bengio and Senecal 2008, "Adaptive importance sampling"; Yi et al. 2019 for two
towers. With every item among the candidates log Q is 0 and the loss is the exact softmax.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

HIDDEN = -1e4
EXPONENT = 0.75  # negatives are drawn with probability ~ count^this


class Negatives:
    """Draws the items that positives are compared with, and knows log Q of each."""

    def __init__(self, targets: NDArray[np.int64], count: int) -> None:
        """`targets` int64[M]: how often each item was a positive. All items are drawn where there are no more."""
        items = len(targets)
        self._all = np.arange(items) if items <= count else None
        probability = (targets + 0.1) ** EXPONENT
        probability /= probability.sum()
        self._cumulative, self._count = probability.cumsum(), count
        chance = -np.expm1(count * np.log1p(-probability))
        self._log_q = np.zeros(items) if self._all is not None else np.log(chance + 1e-12)

    def __len__(self) -> int:
        """Number of items."""
        return len(self._log_q)

    def draw(self, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Distinct catalogue indices, rising, and log Q of each."""
        drawn = self._all
        if drawn is None:
            found = np.searchsorted(self._cumulative, rng.random(self._count))
            drawn = np.unique(found).clip(0, len(self._cumulative) - 1)
        return drawn, self._log_q[drawn].astype(np.float32)


def softmax_loss(
    users: Tensor,
    negatives: Tensor,
    log_q: Tensor,
    hidden: tuple[Tensor, Tensor],
    positives: tuple[Tensor, Tensor, Tensor],
    weight: Tensor,
) -> Tensor:
    """Mean weighted cross entropy of each positive against the negatives.

    users float32[B, D]; negatives float32[N, D] with log_q float32[N]; `hidden`: pairs (row, column) of B x N that are
    no candidates; `positives`: row int64[P], vectors float32[P, D], column int64[P] among the negatives, -1 = it is
    not there; weight float32[P].
    """
    row, vectors, column = positives
    logits = users @ negatives.T - log_q
    logits[hidden] = HIDDEN
    total = torch.logsumexp(logits, dim=1)[row]
    wanted = (users[row] * vectors).sum(1)
    drawn = torch.where(
        column >= 0, logits[row, column.clamp(min=0)], HIDDEN
    )  # its own column counts once, uncorrected
    rest = 1 + torch.exp(wanted - total) - torch.exp(drawn - total)
    return ((total + torch.log(rest.clamp(min=1e-6)) - wanted) * weight).sum() / weight.sum()
