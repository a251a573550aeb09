"""Scenes as the settings declare them: what a request for one place of a product gets. See workers/plans.py.

[scenes.home]
k = 60                                      # of a request that names none
exclude_seen = true                         # the same; with seen_window_ms only what was seen in that time
filter = [{ field = "in_stock", op = "eq", value = true }]
at_most = { seller = 3 }                    # of one value of a filterable field
sources.tower = { weight = 1.0 }
sources.popular = { weight = 0.5, at_least = 5, at_most = 20 }
"""

from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from schemas.recall import DEFAULT_K, MAX_K, FilterClause

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
