"""Scenes made for one bundle: what the pipeline does for a request of each, checked against the feature spec."""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from models.spec import Spec
from schemas.recall import DEFAULT_K, DEFAULT_SCENE, MAX_K, FilterClause
from workers import filters
from workers.errors import ConfigurationError
from workers.filters import Filter, InvalidFilter
from workers.scenes import SceneSettings


@dataclass(frozen=True, slots=True)
class SourceShare:
    """A source of a plan. `at_least` places go to its best items; it takes more than `at_most` only when others end."""

    name: str
    weight: float = 1.0
    at_least: int = 0
    at_most: int = MAX_K


@dataclass(frozen=True, slots=True)
class Plan:
    """A scene for one bundle. `caps`: pairs of a filterable field and how many items may have one value of it."""

    scene: str = DEFAULT_SCENE
    k: int = DEFAULT_K
    exclude_seen: bool = True
    seen_window_ms: int = 0
    where: Filter = ()
    caps: tuple[tuple[str, int], ...] = ()
    sources: tuple[SourceShare, ...] = (SourceShare("tower"),)

    def since_ms(self, as_of_ms: int) -> int | None:
        """An item last seen before this time may come again; None = there is no such time."""
        return as_of_ms - self.seen_window_ms if self.seen_window_ms else None


def plans(scenes: Mapping[str, SceneSettings], spec: Spec) -> dict[str, Plan]:
    """Every scene by name; `default` too where the settings leave it out. Raises ConfigurationError with one line."""
    return {name: _plan(name, scene, spec) for name, scene in ({DEFAULT_SCENE: SceneSettings()} | dict(scenes)).items()}


def _plan(name: str, scene: SceneSettings, spec: Spec) -> Plan:
    try:
        where = filters.checked(msgspec.convert(scene.filter, list[FilterClause]), spec.filterable)
    except InvalidFilter as error:
        raise ConfigurationError(f"setting scenes.{name}.{error} does not fit [filterable] of the bundle") from error
    for field in scene.at_most:
        if field not in spec.filterable:
            raise ConfigurationError(f"setting scenes.{name}.at_most: {field!r} is not [filterable] in the bundle")
    shares = tuple(SourceShare(source, **share.model_dump()) for source, share in scene.sources.items())
    return Plan(name, scene.k, scene.exclude_seen, scene.seen_window_ms, where, tuple(scene.at_most.items()), shares)
