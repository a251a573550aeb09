"""The step of the recall pipeline that asks feature sources, opened for one spec; None where it names none."""

from contextlib import AsyncExitStack

from models.spec import Spec
from workers.dependencies import Dependencies, Probe
from workers.features.cached import CachedFeatures
from workers.features.opening import PATIENT_MS, check, configured, dependency, open_source
from workers.metrics import Metrics
from workers.pipelines.sourcing import Asking, Sourcing
from workers.settings import Settings


async def open_sourcing(
    settings: Settings, spec: Spec, dependencies: Dependencies, metrics: Metrics, opened: AsyncExitStack
) -> tuple[Sourcing | None, dict[str, Probe]]:
    """The step, and probes of its sources; `opened` closes them. A source that is down is no reason to wait.

    Raises ConfigurationError when a source is not configured, or can never answer.
    """
    configured(settings, spec)
    if not spec.sourced:
        return None, {}
    asking: dict[str, Asking] = {}
    probes: dict[str, Probe] = {}
    for name, fields in spec.sourced.items():
        declared, source = settings.sources[name], open_source(settings, name)
        features = CachedFeatures(source, list(fields), ttl_ms=declared.cache_ttl_ms, size=declared.cache_size)
        opened.push_async_callback(features.close)
        patient = open_source(settings, name, PATIENT_MS)
        opened.push_async_callback(patient.close)
        await check(name, patient, list(fields))
        asking[name] = Asking(dependency(name), features, fields, declared.timeout_ms)
        probes[dependency(name)] = patient.ping
        if not any(field.required for field in fields.values()):
            dependencies.can_do_without(dependency(name))

    def told(source: str, feature: str, origin: str, count: int) -> None:
        metrics.features.labels(source, feature, origin).inc(count)

    return Sourcing(asking, told), probes
