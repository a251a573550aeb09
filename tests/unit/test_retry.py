"""How long who tries again waits: longer each time, never very long, and not all at the same moment."""

import asyncio
from itertools import islice

import pytest

from workers.dependencies import Dependencies
from workers.errors import DependencyUnavailable, InvalidInput
from workers.metrics import Metrics
from workers.retry import FIRST_DELAY_S, LONGEST_DELAY_S, pauses, until_done


def test_pauses_double_up_to_a_bound() -> None:
    for n, pause_s in enumerate(islice(pauses(), 30)):
        longest_s = min(FIRST_DELAY_S * 2**n, LONGEST_DELAY_S)
        assert longest_s / 2 <= pause_s <= longest_s


def test_no_two_workers_wait_alike() -> None:
    twelfth = {round(list(islice(pauses(), 12))[-1], 3) for _ in range(30)}
    assert len(twelfth) > 20
    assert max(twelfth) - min(twelfth) > LONGEST_DELAY_S / 10


async def test_it_waits_between_tries_and_lets_other_errors_through(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    sleep = asyncio.sleep

    async def no_sleep(seconds: float) -> None:
        waited.append(seconds)
        await sleep(0)

    monkeypatch.setattr("workers.retry.asyncio.sleep", no_sleep)
    outcomes = [*[DependencyUnavailable("redis", "down")] * 12, InvalidInput("code", "no")]

    async def work() -> None:
        raise outcomes.pop(0)

    with pytest.raises(InvalidInput):
        await until_done(work, Dependencies("items", Metrics()))
    assert len(waited) == 12
    assert waited[0] <= FIRST_DELAY_S
    assert LONGEST_DELAY_S / 2 <= waited[-1] <= LONGEST_DELAY_S
