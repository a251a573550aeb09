"""Where a group begins to read that fills an index in its own process, and when all of it is there."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from workers.dependencies import Dependencies
from workers.index.in_process import HeldIndex
from workers.index.memory import MemoryItemIndex
from workers.index.schema import Collection
from workers.metrics import Metrics
from workers.positions import Positions
from workers.refill import Extent, Refill, Start
from workers.settings import Settings
from workers.stores.connect import connect
from workers.stores.markers_redis import RedisMarkers

OURS = Collection("items_v1", 4, "IP", "v1")
EXTENT = Extent(committed=80, first=5, end=100)
CASES: dict[str, tuple[Extent, int | None, str | None, Start]] = {
    "empty, and all is committed": (Extent(100, 5, 100), None, "", Start(5, 100)),
    "a snapshot behind what is committed": (EXTENT, 60, "", Start(60, 100)),
    "a snapshot ahead of what is committed": (EXTENT, 90, "", Start(80, 100)),
    "a snapshot of everything": (Extent(100, 5, 100), 100, "", Start(100)),
    "an emptied Redis": (EXTENT, 60, None, Start(5, 100)),
    "an empty topic": (Extent(None, 0, 0), None, "", Start(0)),
    "a topic that is shorter than it was": (Extent(None, 0, 7), 60, "", Start(0, 7)),
}


def held(folder: Path, position: int | None) -> HeldIndex:
    ours = HeldIndex("memory", MemoryItemIndex(OURS), OURS, folder)
    if position is not None:
        ours.took_in({0: (0, position)})
    return ours


async def refill_of(settings: Settings, ours: HeldIndex, marker: str | None) -> Refill:
    markers = RedisMarkers(connect(settings), settings, "filler")
    await markers.open(1)
    if marker is not None:
        await markers.mark(0, marker)
    return Refill(markers, Dependencies("items", Metrics()), held=ours)


@pytest.mark.parametrize("case", CASES)
async def test_where_reading_begins(settings: Settings, tmp_path: Path, case: str) -> None:
    extent, position, marker, start = CASES[case]
    ours = held(tmp_path, position)
    refill = await refill_of(settings, ours, marker)

    async def extents() -> Mapping[int, Extent]:
        return {0: extent}

    assert refill.missing() == "where its partitions begin"
    assert await refill.begin([0], 1, extents) == {0: start}
    if start.complete_at is not None:
        line = "the retained events of 1 partitions, which the index in this process did not have"
        assert refill.missing() == line
        ours.took_in({0: (start.offset, extent.end)})
        await refill.complete(0)
    assert refill.missing() is None
    extent = Extent(extent.end, extent.first, extent.end)
    assert await refill.begin([0], 1, extents) == {0: Start(extent.end)}, "another assignment"
    assert refill.missing() is None


async def test_an_index_whose_process_has_lost_every_partition_is_not_whole(settings: Settings, tmp_path: Path) -> None:
    ours = held(tmp_path, None)
    refill = await refill_of(settings, ours, "")

    async def extents() -> Mapping[int, Extent]:
        return {0: EXTENT}

    [start] = (await refill.begin([0], 1, extents)).values()
    ours.took_in({0: (start.offset, EXTENT.end)})
    await refill.complete(0)
    assert refill.missing() is None
    positions = Positions(SimpleNamespace(assignment=set), refill)
    positions.placed = True
    assert await positions.settle()
    assert refill.missing() == "every partition, which another process has taken"
    await refill.begin([0], 1, extents)
    await refill.complete(0)
    assert refill.missing() is None, "it has come back"


async def test_a_process_without_every_partition_is_never_filled(settings: Settings, tmp_path: Path) -> None:
    refill = await refill_of(settings, held(tmp_path, None), "")

    async def extents() -> Mapping[int, Extent]:
        return {0: EXTENT}

    await refill.begin([0], 3, extents)
    await refill.complete(0)
    assert refill.missing() == "2 of 3 partitions, which another process has taken"
