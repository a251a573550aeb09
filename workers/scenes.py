"""Scenes: what a request for one place of a product gets. `[scenes.NAME]` of the settings, checked against the bundle.

[scenes.home]
k = 60                                      # of a request that names none
exclude_seen = true                         # the same; with seen_window_ms only what was seen in that time
filter = [{ field = "in_stock", op = "eq", value = true }]
at_most = { seller = 3 }                    # of one value of a filterable field
sources.tower = { weight = 1.0 }
sources.popular = { weight = 0.5, at_least = 5, at_most = 20 }
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from models.spec import Spec
from schemas.recall import DEFAULT_K, DEFAULT_SCENE, MAX_K, FilterClause
from workers import filters
from workers.errors import ConfigurationError
from workers.filters import Filter, InvalidFilter

SourceName = Literal["tower", "session", "similar", "popular"]
Weight = Annotated[float, Field(gt=0, le=1000)]
Places = Annotated[int, Field(ge=0, le=MAX_K)]


class SourceSettings(BaseModel):
    """What one source brings into a list: its weight in the merge, places that are kept for it, places it may take."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: Weight = 1.0
    at_least: Places = 0
    at_most: Places = MAX_K

    @model_validator(mode="after")
    def _in_order(self) -> "SourceSettings":
        if self.at_least > self.at_most:
            raise ValueError(f"at_least is {self.at_least}, more than at_most, {self.at_most}")
        return self


class SceneSettings(BaseModel):
    """One scene as it is written in the settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    k: Annotated[int, Field(ge=1, le=MAX_K)] = DEFAULT_K
    exclude_seen: bool = True
    seen_window_ms: Annotated[int, Field(ge=0)] = 0
    filter: tuple[dict[str, Any], ...] = ()
    at_most: dict[str, Annotated[int, Field(ge=1, le=MAX_K)]] = {}
    sources: Annotated[dict[SourceName, SourceSettings], Field(min_length=1)] = {"tower": SourceSettings()}

    @field_validator("filter")
    @classmethod
    def _of_clauses(cls, value: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        try:
            msgspec.convert(value, list[FilterClause])
        except msgspec.ValidationError as error:
            raise ValueError(str(error)) from error
        return value


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
