"""The code of a spec's extractors: named by the setting `extractors`, else registered by another package."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from models.bundle import Bundle
from models.extractors import Extract, Watch
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
    encoding = replace(bundle.encoding, extractors=resolve(settings.extractors, bundle.spec))
    if metrics is not None:
        encoding = replace(encoding, watch=_measuring(bundle.spec, metrics))
    return replace(bundle, encoding=encoding)


def _imported(setting: str, place: str) -> Any:
    module, _, attribute = place.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except Exception as error:  # whatever a foreign module does when it is imported
        line = f"{setting} = {place!r} cannot be loaded: {type(error).__name__}: {error}"
        raise ConfigurationError(" ".join(line.split())) from error


def _measuring(spec: Spec, metrics: Metrics) -> Watch:
    """Each call's time, and the calls that fail or give something else than the spec declares."""
    took = {name: metrics.extractor_ms.labels(name) for name in spec.extractors}
    failures = {name: metrics.extractor_failures.labels(name) for name in spec.extractors}

    @contextmanager
    def measuring(name: str) -> Iterator[None]:
        started_s = time.perf_counter()
        try:
            yield
        except Exception:
            failures[name].inc()
            raise
        finally:
            took[name].observe((time.perf_counter() - started_s) * 1000)

    return measuring
