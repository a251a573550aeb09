"""What every history encoder is: histories and what is known of the request in, one vector of each user out."""

from typing import Protocol

from torch import Tensor


class HistoryEncoder(Protocol):
    """Sees what the user tower sees of the history."""

    def __call__(self, vectors: Tensor, codes: Tensor, age_s: Tensor, request: Tensor) -> Tensor:
        """float32[B, W] from vectors float32[B, H, D], codes int64[B, H], ages float32[B, H], request float32[B, W].

        Newest last. Events of code 0 are nobody's or count for nothing.
        """
