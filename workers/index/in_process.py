"""An index that lives in the process of the workers: how far it has followed its topic, and what outlives the process.

It is empty at start. What it holds of each partition of `item-updates` is counted here, so that the items group reads
from there on and not from what is committed; until it has read all that the topic had at start, nothing is searched.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import structlog

from schemas.records import hash64_each
from workers import topics
from workers.errors import ConfigurationError, DependencyUnavailable
from workers.filters import Filter
from workers.index import snapshot
from workers.index.schema import Collection
from workers.index.snapshot import Snapshot, Unfit
from workers.locks import locked
from workers.ports import Float32, Hits, IndexRows, ItemIndex, UInt64
from workers.settings import Settings

FOLDER = "index"  # in `data_dir`
ROWS_AT_ONCE = 2000
RENEWED_MS = topics.DELETE_RETENTION_MS // 7  # how old a snapshot gets that is still true

log = structlog.get_logger()


class HeldIndex:
    """One collection in this process. `index` is for who writes, `searched` for who searches."""

    def __init__(self, name: str, index: ItemIndex, collection: Collection, folder: Path) -> None:
        """`name` as in the setting `index`; snapshots are kept in `folder`."""
        self.index = index
        self.missing: Callable[[], str | None] = lambda: "where its partitions begin"
        self.searched = SearchedIndex(name, self)
        self._collection = collection
        self._path = folder / f"{collection.name}.snapshot"
        self._positions: dict[int, int] = {}
        self._saved: dict[int, int] = {}
        self._saved_ms = 0
        self._saving = asyncio.Lock()

    def begins(self, partition: int, first: int, end: int) -> int:
        """From which offset on a partition, which has those from `first` to before `end`, is not in the index yet."""
        known = self._positions.get(partition, first)
        self._positions[partition] = known if first <= known <= end else first
        return self._positions[partition]

    def took_in(self, spans: Mapping[int, tuple[int, int]]) -> None:
        """All from one offset to before another is in the index, by partition."""
        for partition, (start, end) in spans.items():
            if start <= self._positions.get(partition, start) < end:
                self._positions[partition] = end

    async def restore(self, ends: Mapping[int, int]) -> None:
        """Begin with what was written down; `ends` are those of the topic's partitions. One line when it does not fit.

        Raises DependencyError of the index.
        """
        began_s = time.monotonic()
        for left in self._path.parent.glob(f"{self._path.stem}.*.tmp"):  # by a process that was killed
            left.unlink(missing_ok=True)
        try:
            kept = await asyncio.to_thread(snapshot.read, self._path)
            kept.require(self._collection, ends, _now_ms() - topics.DELETE_RETENTION_MS)
        except FileNotFoundError:
            return
        except Unfit as why:
            log.warning(
                "the index is filled from the topic: its snapshot cannot be used", path=str(self._path), why=str(why)
            )
            return
        for piece in kept.pieces:
            await self.index.upsert(piece.rows(kept.dim))
        self._positions, self._saved, self._saved_ms = dict(kept.positions), dict(kept.positions), kept.saved_ms
        took_s = round(time.monotonic() - began_s, 1)
        log.info("the index begins with its snapshot", items=kept.items, after_s=took_s)

    async def keep(self, every_ms: int) -> None:
        """Write it down now and then, until cancelled."""
        while True:
            await asyncio.sleep(every_ms / 1000)
            await self.save()

    async def save(self) -> None:
        """Write down what the index holds, unless it is written already. Where that fails it is said, once a try.

        Positions are taken first. What is written meanwhile may be in the snapshot or not: it is read again.

        While the index follows the topic and nothing comes, it is written again once a day, or it would get too old.
        While it is being filled it stays as old as what it began with, and without that nothing is written: deletions
        further on in the topic may be from long ago, and be gone by the time that somebody begins with it.
        """
        async with self._saving:
            positions, follows = dict(self._positions), self.missing() is None
            as_of_ms = _now_ms() if follows else self._saved_ms
            renewed = follows and as_of_ms - self._saved_ms > RENEWED_MS
            if not as_of_ms or (positions == self._saved and not renewed):
                return
            kept = Snapshot.empty(self._collection, positions, as_of_ms)
            parts = max(1, await self.index.count() // ROWS_AT_ONCE)
            for part in range(parts):
                ids = await self.index.ids(part, parts)
                kept.add(await self.index.rows(hash64_each(ids)))
            try:
                await asyncio.to_thread(snapshot.write, self._path, kept)
            except OSError as error:
                log.error("the index cannot be written down", path=str(self._path), why=error.strerror)  # noqa: TRY400
                return
            self._saved, self._saved_ms = positions, as_of_ms


class SearchedIndex:
    """ItemIndex for who searches: unavailable while what is there is not all. Closing is for who holds it."""

    def __init__(self, name: str, held: HeldIndex) -> None:
        self._name = name
        self._held = held

    async def search(self, vectors: Float32, k: int, where: Filter = ()) -> Hits:
        """See ItemIndex."""
        return await self._whole().search(vectors, k, where)

    async def exact(self, vector: Float32, k: int) -> Hits:
        """See ItemIndex."""
        return await self._whole().exact(vector, k)

    async def upsert(self, rows: IndexRows) -> None:
        """See ItemIndex."""
        await self._held.index.upsert(rows)

    async def delete(self, item_ids: Sequence[str]) -> None:
        """See ItemIndex."""
        await self._held.index.delete(item_ids)

    async def count(self) -> int:
        """See ItemIndex."""
        return await self._whole().count()

    async def ids(self, part: int, parts: int) -> list[str]:
        """See ItemIndex."""
        return await self._whole().ids(part, parts)

    async def rows(self, hashes: UInt64) -> IndexRows:
        """See ItemIndex."""
        return await self._whole().rows(hashes)

    async def visible(self, item_ids: Sequence[str]) -> list[bool]:
        """See ItemIndex."""
        return await self._whole().visible(item_ids)

    async def ping(self) -> None:
        """Raises DependencyUnavailable too while it is being filled."""
        await self._whole().ping()

    async def close(self) -> None:
        """Nothing: it is shared."""

    def _whole(self) -> ItemIndex:
        missing = self._held.missing()
        if missing is not None:
            raise DependencyUnavailable(self._name, f"the index in this process is not filled yet: it reads {missing}")
        return self._held.index


@contextmanager
def held_alone(settings: Settings) -> Iterator[None]:
    """While it lasts, no other process on this data folder does so in this namespace. Raises ConfigurationError."""
    folder = settings.data_dir / FOLDER
    line = f"index = {settings.index!r}: another process holds the items of {folder}, and there is one for all"
    with locked(folder / f"{settings.key('items')}.lock", ConfigurationError(line)):
        yield


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
