"""All checks at once: each has a few seconds, and none stops another."""

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from workers.doctor import bundle, clock, kafka, milvus, redis
from workers.doctor.findings import Finding, Level
from workers.errors import ConfigurationError, DependencyError
from workers.settings import AGENT_KINDS, Settings

TIMEOUT_S = 4.0

Check = Coroutine[Any, Any, list[Finding]]


async def examine(settings: Settings, *, probe: bool = False) -> list[Finding]:
    """Look at every backend, the bundle and the clocks; in the order of the subjects. Raises nothing."""
    found = await asyncio.gather(
        _backend(settings, "kafka_bootstrap", kafka.CHECK, kafka.check(settings, AGENT_KINDS)),
        _backend(settings, "redis_url", redis.CHECK, redis.check(settings)),
        _backend(settings, "milvus_uri", milvus.CHECK, milvus.check(settings)),
        _judged(bundle.CHECK, bundle.check(settings)),
        _judged(clock.CHECK, clock.check(settings, probe=probe)),
    )
    hide = settings.hide  # messages of servers and libraries are in the lines
    return [replace(each, line=hide(each.line), todo=hide(each.todo)) for findings in found for each in findings]


async def _backend(settings: Settings, address: str, name: str, check: Check) -> list[Finding]:
    """One backend's findings; that it is away is one of them. `address` is the setting that says where it is."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await _judged(name, check)
    except DependencyError as error:
        reason = str(error).removeprefix(f"{error.dependency}: ").partition("; ")[0].rstrip(".")
    except TimeoutError:
        reason = f"no answer in {TIMEOUT_S:g} s"
    todo = f"start it, or set {address}"
    if name == kafka.CHECK and "not answer" not in reason and "no answer" not in reason:
        todo = "set what it wants: kafka_security_protocol, kafka_user, kafka_password, kafka_ca_path"
    where = settings.shown(address)
    line = reason if where in reason else f"{where}: {reason}"
    return [Finding(name, Level.DOWN, line, todo)]


async def _judged(name: str, check: Check) -> list[Finding]:
    """What a check finds, and what keeps it from looking: that the settings are wrong, or that it fails itself."""
    try:
        return await check
    except DependencyError:
        raise
    except ConfigurationError as error:
        return [Finding(name, Level.WRONG, str(error))]
    except Exception as error:  # noqa: BLE001  # what the other checks found must be seen all the same
        line = f"the check failed: {type(error).__name__}: {error}"
        return [Finding(name, Level.DOWN, line, "report it as a defect of `recall doctor`")]
