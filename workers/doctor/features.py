"""Feature sources that the active bundle's spec asks: each is configured, has what it is asked for, and answers."""

import asyncio

from models.spec import Spec
from workers.doctor.findings import Finding, Level
from workers.errors import ConfigurationError, DependencyError
from workers.features.opening import PATIENT_MS, configured, lacking, open_source
from workers.settings import Settings

CHECK = "features"


async def check(settings: Settings, spec: Spec) -> list[Finding]:
    """Nothing where the spec names no source. Raises nothing but what is a defect."""
    try:
        configured(settings, spec)
    except ConfigurationError as error:
        return [Finding(CHECK, Level.WRONG, str(error), "add it to recall.toml: [sources.NAME]")]
    asked = [(name, list(fields), any(f.required for f in fields.values())) for name, fields in spec.sourced.items()]
    return list(await asyncio.gather(*(_source(settings, *each) for each in asked)))


async def _source(settings: Settings, name: str, features: list[str], required: bool) -> Finding:
    kind = settings.sources[name].kind
    try:
        source = open_source(settings, name, PATIENT_MS)
    except ConfigurationError as error:
        return Finding(CHECK, Level.WRONG, str(error))
    try:
        line = await lacking(name, source, features)
    except DependencyError as error:
        reason = str(error).partition(": ")[2]
        todo = "" if required else "; its values count as their defaults meanwhile"
        level = Level.DOWN if required else Level.WARNING
        return Finding(CHECK, level, f"source {name!r} ({kind}): {reason}{todo}", f"start it, or set sources.{name}")
    finally:
        await source.close()
    if line is not None:
        return Finding(CHECK, Level.WRONG, line, f"correct sources.{name}, or the spec's [context]")
    return Finding(CHECK, Level.OK, f"source {name!r} ({kind}) answers: {', '.join(features)}")
