"""Times the steps of one batch."""

import time
from collections.abc import Callable

Observe = Callable[[str, float], None]
"""(step, milliseconds): where the time of a step is told."""


def unobserved(_step: str, _elapsed_ms: float) -> None:
    """For a pipeline whose times nobody wants."""


class Stopwatch:
    """From one lap to the next."""

    def __init__(self, observe: Observe = unobserved) -> None:
        self._observe = observe
        self._lap = time.perf_counter()

    def lap_ms(self, step: str) -> float:
        """Milliseconds since the last lap, told under this step's name."""
        now = time.perf_counter()
        elapsed, self._lap = now - self._lap, now
        elapsed_ms = round(elapsed * 1000, 3)
        self._observe(step, elapsed_ms)
        return elapsed_ms
