"""What a history encoder is, and what it is given: histories of users, and requests that look back on them.

A training block is a stretch of one user's history, L events, and K requests that fall into it; serving is the case of
one request and its own H events. What a request gets does not depend on which block it stands in.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Past:
    """B stretches of history, oldest event first, and K requests looking back on each."""

    vectors: Tensor  # float32[B, L, D]
    codes: Tensor  # int64[B, L], 0 = nobody's, or counting for nothing
    ago_s: Tensor  # float32[B, L], before one time of the whole stretch
    age_s: Tensor  # float32[B, K, L], before each request
    place: Tensor  # int64[B, K, L], 1 = the newest event that a request sees, H = the oldest, 0 = it does not see it


class HistoryEncoder(Protocol):
    """A vector of each request from what it sees of the history."""

    def __call__(self, past: Past, request: Tensor) -> Tensor:
        """float32[B, K, W] from float32[B, K, W], which tells what else is known of each request."""
