"""Popular counts in this process: for trials and for pipelines without a Redis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from workers.popularity import EPOCHS_KEPT, EpochCounts, merged
from workers.ports import PopularChange, PopularItems

MAX_ITEMS = 10_000


@dataclass(slots=True)
class _Partition:
    next_offset: int = 0
    sets: dict[tuple[int, str], dict[int, int]] = field(default_factory=dict)  # (epoch, segment) -> item -> amount


class MemoryPopularTable:
    """PopularTable in dicts. Nothing expires, nothing outlives the process."""

    def __init__(self, max_items: int = MAX_ITEMS) -> None:
        self._max_items = max_items
        self._partitions: dict[int, _Partition] = {}

    async def add(self, changes: Sequence[PopularChange]) -> list[int]:
        """Add what is expected next."""
        return [self._add(change) for change in changes]

    async def expected(self, partitions: Sequence[int]) -> list[int]:
        """The offset that each partition expects next."""
        return [self._partitions[n].next_offset if n in self._partitions else 0 for n in partitions]

    async def expect(self, offsets: Mapping[int, int]) -> None:
        """Let partitions expect these offsets next."""
        for partition, offset in offsets.items():
            self._partitions.setdefault(partition, _Partition()).next_offset = offset

    async def top(self, segments: Sequence[str], n: int) -> list[PopularItems]:
        """The most popular items of each segment."""
        return [merged(self._parts(segment, n), n) for segment in segments]

    async def close(self) -> None:
        """Nothing to give back."""

    def _add(self, change: PopularChange) -> int:
        partition = self._partitions.setdefault(change.partition, _Partition())
        expected = partition.next_offset
        if expected != change.first_offset:
            return expected
        partition.next_offset = change.end_offset
        epochs = {epoch for epoch, _ in (*partition.sets, *change.additions)}
        oldest = max(epochs, default=0) - EPOCHS_KEPT + 1
        partition.sets = {place: counts for place, counts in partition.sets.items() if place[0] >= oldest}
        for place, added in change.additions.items():
            if place[0] >= oldest:
                partition.sets[place] = _strongest(_sum(partition.sets.get(place, {}), added), self._max_items)
        return expected

    def _parts(self, segment: str, n: int) -> list[EpochCounts]:
        parts = []
        for number in sorted(self._partitions):
            for (epoch, name), counts in self._partitions[number].sets.items():
                if name == segment:
                    best = _strongest(counts, n)
                    hashes = np.array(list(best), dtype=np.uint64)
                    parts.append(EpochCounts(epoch, hashes, np.array(list(best.values()), dtype=np.float64)))
        return parts


def _sum(counts: Mapping[int, int], added: Mapping[int, int]) -> dict[int, int]:
    return {item: counts.get(item, 0) + added.get(item, 0) for item in {**counts, **added}}


def _strongest(counts: dict[int, int], most: int) -> dict[int, int]:
    """At most so many items: of equal ones those with the greater hash, as a sorted set in Redis has it."""
    if len(counts) <= most:
        return counts
    return {item: counts[item] for item in sorted(counts, key=lambda item: (counts[item], item))[-most:]}
