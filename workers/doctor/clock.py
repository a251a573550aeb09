"""Clocks: a request's deadline is the broker's time plus its timeout, and a worker compares it with its own clock."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from workers.doctor.findings import Finding, Level
from workers.errors import ConfigurationError, DependencyError
from workers.kafka_inspect import newest_ahead_ms, probe_clocks
from workers.settings import Settings
from workers.stores.inspect import clock_skews

CHECK = "clock"
WARN_MS = 1000
WRONG_MS = 10_000
TIMEOUT_S = 4.0
REMEDY = "let NTP or chrony set the clocks of both machines"


async def check(settings: Settings, *, probe: bool) -> list[Finding]:
    """Redis' clocks against ours, and Kafka's, those that answer. `probe` writes into a topic of its own.

    Raises ConfigurationError.
    """
    of_kafka = _probed(settings) if probe else _read(settings)
    found = await asyncio.gather(*(_answered(question) for question in (_redis(settings), of_kafka)))
    return [finding for findings in found for finding in findings]


async def _answered(question: Coroutine[Any, Any, list[Finding]]) -> list[Finding]:
    """Nothing when there is no answer: another check tells that a server is away."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await question
    except (DependencyError, TimeoutError):
        return []


async def _redis(settings: Settings) -> list[Finding]:
    skews = await clock_skews(settings)
    return [judge(f"Redis at {skew.address}", skew.ahead_ms, skew.within_ms) for skew in skews]


async def _probed(settings: Settings) -> list[Finding]:
    try:
        skews = await probe_clocks(settings)
    except ConfigurationError as error:
        return [Finding(CHECK, Level.WARNING, f"Kafka's clock cannot be measured: {error}", "allow the topic it names")]
    return [judge(f"Kafka at {skew.address}", skew.ahead_ms, skew.within_ms) for skew in skews]


async def _read(settings: Settings) -> list[Finding]:
    """The newest records alone: they show a clock that is ahead of ours, not one that is behind."""
    ahead_ms = await newest_ahead_ms(settings, [settings.topic("recall-requests"), settings.topic("user-activity")])
    if ahead_ms is None:
        return [
            Finding(CHECK, Level.NOTE, "Kafka: no record yet tells its clock", "`recall doctor --probe` measures it")
        ]
    if ahead_ms > WARN_MS:
        return [judge(f"Kafka at {settings.kafka_bootstrap}", ahead_ms, 0)]
    line = "Kafka's newest record is not from our future"
    return [Finding(CHECK, Level.OK, f"{line} (`recall doctor --probe` measures the clock)")]


def judge(what: str, ahead_ms: float, within_ms: float) -> Finding:
    """What a clock means that is so far ahead of ours (negative: behind), give or take `within_ms`. Pure."""
    sure_ms = max(abs(ahead_ms) - within_ms, 0)
    apart = f"{abs(ahead_ms) / 1000:.1f} s {'ahead of' if ahead_ms > 0 else 'behind'} ours"
    if sure_ms > WRONG_MS:
        line = f"the clock of {what} is {apart}: requests expire at once or far too late"
        return Finding(CHECK, Level.WRONG, line, REMEDY)
    if sure_ms > WARN_MS:
        return Finding(CHECK, Level.WARNING, f"the clock of {what} is {apart}: deadlines are off by that", REMEDY)
    return Finding(CHECK, Level.OK, f"the clock of {what} is ours within {max(abs(ahead_ms), within_ms):.0f} ms")
