"""Feature sources of one spec: found by the name of their kind, and held against what the spec asks of them."""

from collections.abc import Callable

import structlog

from models.spec import Spec
from workers.adapters import Builtin, find
from workers.errors import ConfigurationError, DependencyError
from workers.features.given import Given
from workers.ports import FeatureSource
from workers.settings import Settings

GROUP = "recall.feature_sources"
BUILTINS = {
    "memory": Builtin("workers.features.memory:open_memory"),
    "redis": Builtin("workers.features.redis_hash:open_redis"),
    "http": Builtin("workers.features.http:open_http", "servers"),
    "feast": Builtin("workers.features.feast:open_feast", "servers"),
}
PATIENT_MS = 1500  # of checks and probes: a source that is slower than requests may wait for is not down

Open = Callable[[Given], FeatureSource]
"""What an adapter is: opens a source, and does not ask it yet. Raises ConfigurationError."""

log = structlog.get_logger()


def dependency(name: str) -> str:
    """What a source is called in errors, metrics and logs."""
    return f"features.{name}"


def configured(settings: Settings, spec: Spec) -> None:
    """Raise ConfigurationError, one line, when the spec names a source that the settings do not have."""
    for name, fields in spec.sourced.items():
        if name not in settings.sources:
            known = ", ".join(sorted(settings.sources)) or "none"
            line = f"context.{', '.join(fields)} of spec {spec.name} comes from source {name!r}"
            raise ConfigurationError(f"{line}, which the setting `sources` does not have (it has {known})")


def open_source(settings: Settings, name: str, timeout_ms: int | None = None) -> FeatureSource:
    """One source of the settings; it is not asked yet. `timeout_ms` in place of its own. Raises ConfigurationError."""
    declared = settings.sources[name]
    if timeout_ms is not None:
        declared = declared.model_copy(update={"timeout_ms": timeout_ms})
    opened: Open = find(f"sources.{name}.kind", declared.kind, BUILTINS, GROUP)
    return opened(Given(dependency(name), declared, settings))


async def lacking(name: str, source: FeatureSource, names: list[str]) -> str | None:
    """One line on what a source can never answer. Raises DependencyError when it cannot be asked."""
    line = await source.check(names)
    return None if line is None else f"source {name!r}: {line}"


async def check(name: str, source: FeatureSource, names: list[str]) -> None:
    """Refuse a source that can never answer: raises ConfigurationError. One that is down is no reason to wait."""
    try:
        line = await lacking(name, source, names)
    except DependencyError as error:
        log.warning("feature source not checked", source=name, error=str(error))
        return
    if line is not None:
        raise ConfigurationError(line)
