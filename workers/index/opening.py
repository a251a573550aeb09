"""An index that may not be there yet: a worker that searches starts at once and answers without it until it is."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from workers.errors import DependencyError, DependencyUnavailable
from workers.ports import Float32, Hits, IndexRows, ItemIndex

TRY_EVERY_S = 0.5

log = structlog.get_logger()


class OpeningIndex:
    """ItemIndex that raises DependencyUnavailable until `open_index` has succeeded once in `keep_opening`."""

    def __init__(self, open_index: Callable[[], Awaitable[ItemIndex]]) -> None:
        self._open_index = open_index
        self._index: ItemIndex | None = None

    @property
    def is_open(self) -> bool:
        """Whether searches reach the index."""
        return self._index is not None

    async def keep_opening(self) -> None:
        """Try until it is open. Raises ConfigurationError when what is there is not the bundle's collection."""
        while self._index is None:
            try:
                self._index = await self._open_index()
            except DependencyError as error:
                log.info("waiting for the index", dependency=error.dependency, error=str(error))
                await asyncio.sleep(TRY_EVERY_S)

    async def search(self, vectors: Float32, k: int) -> Hits:
        """See ItemIndex."""
        return await self._opened().search(vectors, k)

    async def upsert(self, rows: IndexRows) -> None:
        """See ItemIndex."""
        await self._opened().upsert(rows)

    async def delete(self, item_ids: Sequence[str]) -> None:
        """See ItemIndex."""
        await self._opened().delete(item_ids)

    async def close(self) -> None:
        """Close it when it is open."""
        if self._index is not None:
            await self._index.close()

    def _opened(self) -> ItemIndex:
        if self._index is None:
            raise DependencyUnavailable("milvus", "the collection is not open yet")
        return self._index
