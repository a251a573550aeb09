"""What a call that takes too long says of its dependency."""

import pytest

from workers.breaker import STRIKES
from workers.clock import SystemClock
from workers.dependencies import Dependencies
from workers.metrics import Metrics
from workers.pipelines.attempts import Attempts


async def timed_out() -> None:
    """As if all the time was over: nobody waits for it here."""
    raise TimeoutError


@pytest.mark.parametrize(("limit_ms", "is_open"), [(1000, True), (1005, True), (2010, True), (60_000, False)])
async def test_a_whole_timeout_is_told_from_one_that_the_deadline_cut_short(limit_ms: int, is_open: bool) -> None:
    """1005 / 1000 * 1000 is less than 1005."""
    dependencies, clock = Dependencies("recall", Metrics()), SystemClock()
    for _ in range(STRIKES):
        attempt = Attempts(dependencies, clock, clock.now_ms() + 30_000)
        assert await attempt("tower", timed_out(), limit_ms) is None
    assert (dependencies.breaker("tower").open_since_s is not None) == is_open
