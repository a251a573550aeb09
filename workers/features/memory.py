"""A feature source that holds its values in this process: from the settings, or from whoever made it."""

from collections.abc import Mapping, Sequence
from typing import Any

from workers.features.given import Given


class MemoryFeatureSource:
    """FeatureSource on `stored`: user id -> name -> value, which may be changed at any time."""

    def __init__(self, stored: Mapping[str, Mapping[str, Any]]) -> None:
        self.stored = stored

    async def values(self, user_ids: Sequence[str], names: Sequence[str]) -> list[Mapping[str, Any]]:
        """What is held."""
        rows = [self.stored.get(user_id, {}) for user_id in user_ids]
        return [{name: row[name] for name in names if row.get(name) is not None} for row in rows]

    async def check(self, _names: Sequence[str], /) -> str | None:
        """Users may have any values."""
        return None

    async def ping(self) -> None:
        """It is there."""

    async def close(self) -> None:
        """There is nothing to give back."""


def open_memory(given: Given) -> MemoryFeatureSource:
    """The values of the settings."""
    return MemoryFeatureSource(given.source.values)
