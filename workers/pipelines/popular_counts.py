"""What accepted events add to popularity, each once, none left out: fenced by the offset at which it was delivered."""

from collections.abc import Iterable, Mapping, Sequence

from schemas.records import ProfileField
from workers.errors import StoreLost
from workers.pipelines.activity_event import ActivityEvent
from workers.popularity import EVERYBODY, Addition, Popularity
from workers.ports import PopularChange, PopularTable

Accepted = tuple[ActivityEvent, tuple[ProfileField, ...]]
"""(an event that is new to its user's record, the user's profile just after it)"""

Spans = Mapping[int, tuple[int, int]]
"""partition -> from where on a batch holds all that there is of it, and the offset behind its last record"""


class PopularCounts:
    """Counts the events of batches. A batch that comes again, whole or in part, adds nothing."""

    def __init__(self, table: PopularTable, popularity: Popularity) -> None:
        self._table = table
        self._popularity = popularity

    async def add(
        self, batch: Sequence[ActivityEvent], accepted: Iterable[Accepted], spans: Spans | None = None
    ) -> int:
        """Count the accepted ones of a batch's events; how many were added. Raises the table's DependencyError.

        The batch's whole range of offsets is taken as counted, also where nothing in it counts: an event decides once,
        when it is first delivered. The offsets of a partition must rise. Without `spans`, that range begins at the
        first event. Raises StoreLost when a partition's counts end before it: what lies between would never count.
        """
        waiting = dict(_ranges(batch) if spans is None else spans)
        additions = self._additions(accepted)
        added = 0
        while waiting:
            changes = [
                _change(partition, first, end, additions.get(partition, ()))
                for partition, (first, end) in waiting.items()
            ]
            for change, expected in zip(changes, await self._table.add(changes), strict=True):
                del waiting[change.partition]
                counted = additions.get(change.partition, ())
                if expected == change.first_offset:
                    added += sum(offset >= change.first_offset for offset, _ in counted)
                elif expected < change.first_offset:
                    place = f"partition {change.partition} end at {expected}"
                    raise StoreLost(f"redis has lost writes: popular counts of {place}, and not {change.first_offset}")
                elif expected < change.end_offset:  # the events before it were counted by an earlier delivery
                    waiting[change.partition] = expected, change.end_offset
        return added

    def _additions(self, accepted: Iterable[Accepted]) -> dict[int, list[tuple[int, Addition]]]:
        """Partition -> offset and addition of each event that counts."""
        additions: dict[int, list[tuple[int, Addition]]] = {}
        for event, profile in accepted:
            if event.activity is None or event.offset < 0:
                continue
            addition = self._popularity.addition(event.activity, profile)
            if addition is not None:
                additions.setdefault(event.partition, []).append((event.offset, addition))
        return additions


def _ranges(batch: Sequence[ActivityEvent]) -> dict[int, tuple[int, int]]:
    """Partition -> first offset and the one after the last."""
    first: dict[int, int] = {}
    end: dict[int, int] = {}
    for event in batch:
        if event.offset >= 0:
            first.setdefault(event.partition, event.offset)
            end[event.partition] = event.offset + 1
    return {partition: (offset, end[partition]) for partition, offset in first.items()}


def _change(partition: int, first: int, end: int, additions: Sequence[tuple[int, Addition]]) -> PopularChange:
    """What the events from `first` on add: each to everybody's counts, and to its segment's if it has one."""
    sums: dict[tuple[int, str], dict[int, int]] = {}
    for offset, (epoch, segment, item, amount) in additions:
        if offset < first:
            continue
        for name in dict.fromkeys((EVERYBODY, segment)):
            counts = sums.setdefault((epoch, name), {})
            counts[item] = counts.get(item, 0) + amount
    return PopularChange(partition, first, end, sums)
