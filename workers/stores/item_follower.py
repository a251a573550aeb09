"""Follows the feed of an item table and tells the caches of this process what has changed."""

from typing import Protocol

from workers.ports import ItemChanges, ItemTable


class ItemCache(Protocol):
    """Something that was read from the item table and is kept."""

    def apply(self, changes: ItemChanges) -> None:
        """Forget what changed; all of it when changes were missed. Must not fail."""
        ...


class ItemFollower:
    """`refresh` is to be called a few times a second. Caches keep nothing before it has found its place in the feed."""

    def __init__(self, table: ItemTable, *caches: ItemCache) -> None:
        self._table = table
        self._caches = caches
        self._cursor: str | None = None

    async def refresh(self) -> None:
        """Tell what changed since the last call. Raises the table's DependencyError; nothing is told then."""
        changes = await self._table.changes(self._cursor)
        self._cursor = changes.cursor
        for cache in self._caches:
            cache.apply(changes)
