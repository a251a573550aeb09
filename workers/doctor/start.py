"""What stops a worker at its start: what `recall doctor` finds unsafe or wrong in the backends that the worker uses."""

from collections.abc import Collection, Sequence

import structlog

from workers.doctor import kafka, redis
from workers.doctor.findings import Finding, Level
from workers.errors import ConfigurationError
from workers.settings import AgentKind, Settings

log = structlog.get_logger()


async def check_kafka(settings: Settings, kinds: Collection[AgentKind]) -> None:
    """Refuse topics that lose data. Raises ConfigurationError, DependencyError while Kafka does not answer."""
    refuse(settings, await kafka.check(settings, kinds))


async def check_redis(settings: Settings) -> None:
    """Refuse a Redis that loses data. Raises ConfigurationError, DependencyError while Redis does not answer."""
    refuse(settings, await redis.check(settings))


def refuse(settings: Settings, findings: Sequence[Finding]) -> None:
    """Raise ConfigurationError for what cannot work, and for what is unsafe unless that is allowed: then it is logged.

    What is down passes: a worker waits for that.
    """
    for finding in findings:
        if finding.level is Level.WRONG:
            raise ConfigurationError(str(finding))
    unsafe = [finding for finding in findings if finding.level is Level.UNSAFE]
    if unsafe and not settings.allow_unsafe:
        more = f" ({len(unsafe) - 1} more: `recall doctor`)" if len(unsafe) > 1 else ""
        raise ConfigurationError(f"unsafe: {unsafe[0]}{more}; --allow-unsafe starts all the same")
    for finding in unsafe:
        log.warning("unsafe, and allowed", check=finding.check, finding=finding.line, todo=finding.todo)
