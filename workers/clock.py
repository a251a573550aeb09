"""The real clock."""

import time
from dataclasses import dataclass


class SystemClock:
    """Wall-clock time of this machine."""

    def now_ms(self) -> int:
        """Epoch milliseconds UTC."""
        return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Skew:
    """How far a server's clock is ahead of ours, ms (negative: behind), give or take `within_ms`."""

    address: str
    ahead_ms: float
    within_ms: float
