"""Adapters by name: those that come with the package, and those that other packages register as entry points."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from workers.errors import ConfigurationError, ExtraMissing


@dataclass(frozen=True, slots=True)
class Builtin:
    """Where an adapter of our own is, `module:attribute`, and the extra that installs what it imports."""

    place: str
    extra: str = ""


def find(setting: str, name: str, builtins: Mapping[str, Builtin], group: str) -> Any:
    """The adapter that `setting` names: one of `builtins`, else the entry point of that name in `group`.

    Nothing of the others is imported. Raises ConfigurationError, one line: there is none, it cannot be imported, or the
    extra that it needs is not installed.
    """
    builtin = builtins.get(name)
    if builtin is not None:
        module, _, attribute = builtin.place.partition(":")
        try:
            return getattr(import_module(module), attribute)
        except ModuleNotFoundError as error:
            if not builtin.extra:
                raise
            raise ExtraMissing(f"{setting} = {name!r}", builtin.extra, f"{error.name} is not there") from error
    registered = {point.name: point for point in entry_points(group=group)}
    if name not in registered:
        known = ", ".join(sorted({*builtins, *registered}))
        raise ConfigurationError(f"{setting} = {name!r}: there is no such adapter, only {known}")
    try:
        return registered[name].load()
    except Exception as error:  # whatever a foreign module does when it is imported
        line = f"{setting} = {name!r}: {registered[name].value} cannot be loaded: {type(error).__name__}: {error}"
        raise ConfigurationError(" ".join(line.split())) from error
