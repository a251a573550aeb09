"""The code of a spec's extractors: named by the setting `extractors`, else registered by another package."""

import time
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from models.bundle import Bundle
from models.columns import RequestColumns, UserFeatures
from models.extractors import Extract
from models.spec import Spec
from workers.adapters import find
from workers.errors import ConfigurationError
from workers.metrics import Metrics
from workers.settings import Settings

GROUP = "recall.extractors"


def resolve(places: Mapping[str, str], spec: Spec) -> dict[str, Extract]:
    """The function of every extractor of a spec; `places`: name -> `module:attribute`. Raises ConfigurationError.

    A function that has an attribute `version` must have the one that the spec names.
    """
    found: dict[str, Extract] = {}
    for name, declared in spec.extractors.items():
        setting = f"extractors.{name}"
        if name in places:
            code = _imported(setting, places[name])
        elif entry_points(group=GROUP, name=name):
            code = find(setting, name, {}, GROUP)
        else:
            line = f"the spec has an extractor {name!r}, and there is no code for it: install the package that has it"
            raise ConfigurationError(f'{line}, or set {setting} = "module:function"')
        if not callable(code):
            raise ConfigurationError(f"{setting}: {code!r} cannot be called")
        version = getattr(code, "version", declared.version)
        if version != declared.version:
            raise ConfigurationError(f"{setting}: its code is version {version}, the spec needs {declared.version}")
        found[name] = code
    return found


def with_code(bundle: Bundle, settings: Settings, metrics: Metrics | None = None) -> Bundle:
    """A bundle that can make inputs of facts, its extractors measured where that is wanted. Raises ConfigurationError.

    The same bundle where its spec has no extractor.
    """
    if not bundle.spec.extractors:
        return bundle
    code = resolve(settings.extractors, bundle.spec)
    if metrics is not None:
        code = {name: _measured(name, function, metrics) for name, function in code.items()}
    return replace(bundle, encoding=replace(bundle.encoding, extractors=code))


def _imported(setting: str, place: str) -> Any:
    module, _, attribute = place.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except Exception as error:  # whatever a foreign module does when it is imported
        line = f"{setting} = {place!r} cannot be loaded: {type(error).__name__}: {error}"
        raise ConfigurationError(" ".join(line.split())) from error


def _measured(name: str, function: Extract, metrics: Metrics) -> Extract:
    took, failures = metrics.extractor_ms.labels(name), metrics.extractor_failures.labels(name)

    def measured(users: UserFeatures, requests: RequestColumns) -> Mapping[str, Any]:
        started_s = time.perf_counter()
        try:
            return function(users, requests)
        except Exception:
            failures.inc()
            raise
        finally:
            took.observe((time.perf_counter() - started_s) * 1000)

    return measured
