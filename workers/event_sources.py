"""Where events to make training samples of come from: the topics, files of JSON lines, or a data set.

Each is read in log order, and as often as it is asked to: events come some thousands at a time, never all at once.
"""

import asyncio
import heapq
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Protocol

from models.datasets import Dataset
from models.event_log import Catalogue
from models.jsonl import JsonLinesError, read_activities, read_items
from schemas.activity import UserActivity
from schemas.codec import DecodeError
from schemas.items import ItemUpdate
from workers.clock import SystemClock
from workers.errors import RecallError
from workers.pipelines.activity_event import ActivityEvent, decode_activity
from workers.pipelines.item_order import decode_item
from workers.settings import Settings
from workers.topic_log import TopicLog

AT_ONCE = 4096


class Events(Protocol):
    """Activity in log order, and the catalogue behind it. `unreadable`: records left out by the last readings."""

    name: str
    unreadable: dict[str, int]

    async def catalogue(self) -> Catalogue:
        """The items. Raises RecallError."""
        ...

    def activity(self) -> AsyncIterator[Sequence[ActivityEvent]]:
        """All of it, from the beginning. Raises RecallError."""
        ...

    def part(self) -> float | None:
        """How much of it the reading that goes on has read, 0 to 1, where that is known."""
        ...


@asynccontextmanager
async def open_events(
    settings: Settings, given: Dataset | tuple[Path, Path] | None, until_ms: int | None
) -> AsyncIterator[Events]:
    """Of a data set, of two files (items, activity), or of the topics as they stand now.

    Of the items a data set alone knows which there were at `until_ms`.

    Raises DependencyError, ConfigurationError.
    """
    if isinstance(given, Dataset):
        yield DatasetEvents(given, until_ms)
    elif given is not None:
        yield FileEvents(*given)
    else:
        async with (
            TopicLog(settings, "item-updates") as items,
            TopicLog(settings, "user-activity") as activity,
        ):
            yield TopicEvents(items, activity)


class TopicEvents:
    """What Kafka holds of both topics. What a worker could not read is left out and counted."""

    def __init__(self, items: TopicLog, activity: TopicLog) -> None:
        self.name = f"{items.name} {activity.name}"
        self.unreadable: dict[str, int] = {}
        self._items = items
        self._activity = activity

    async def catalogue(self) -> Catalogue:
        """The items as they stand at the end of the topic, which keeps no earlier state: the last update of each."""
        newest: dict[str, ItemUpdate] = {}
        bad = 0
        async for records in self._items.records():
            for record in records:
                try:
                    event = decode_item(record)
                except DecodeError:
                    bad += 1
                    continue
                newest.pop(event.item_id, None)
                if not event.deletes and event.update is not None:
                    newest[event.item_id] = event.update
        self.unreadable["items"] = bad
        return Catalogue.from_updates(newest.values())

    async def activity(self) -> AsyncIterator[Sequence[ActivityEvent]]:
        """Activities and tombstones."""
        bad = 0
        async for records in self._activity.records():
            events = []
            for record in records:
                try:
                    events.append(decode_activity(record))
                except DecodeError:
                    bad += 1
            yield events
        self.unreadable["activity"] = bad

    def part(self) -> float | None:
        """Of the activity."""
        return self._activity.part()


class FileEvents:
    """Two files of JSON lines, read line by line; a bad line ends the reading with its number."""

    def __init__(self, items: Path, activity: Path) -> None:
        self.name = f"{items} {activity}"
        self.unreadable: dict[str, int] = {}
        self._items = items
        self._activity = activity

    async def catalogue(self) -> Catalogue:
        """The items as they are after the last line."""
        try:
            return Catalogue.from_updates(read_items(self._items))
        except JsonLinesError as error:
            raise RecallError(str(error)) from error

    async def activity(self) -> AsyncIterator[Sequence[ActivityEvent]]:
        """In the order of the lines."""
        try:
            for events in _batches(read_activities(self._activity, SystemClock().now_ms)):
                yield events
                await asyncio.sleep(0)  # Ctrl-C comes through
        except JsonLinesError as error:
            raise RecallError(str(error)) from error

    def part(self) -> float | None:
        """Not known: a file is read twice without a look at its length."""
        return None


class DatasetEvents:
    """A data set that comes with the package, by time."""

    def __init__(self, dataset: Dataset, until_ms: int | None) -> None:
        self.name = dataset.name
        self._until_ms = until_ms
        self.unreadable: dict[str, int] = {}
        self._dataset = dataset
        self._read = 0

    async def catalogue(self) -> Catalogue:
        """The items that had appeared by then."""
        return self._dataset.catalogue(self._until_ms)

    async def activity(self) -> AsyncIterator[Sequence[ActivityEvent]]:
        """Profiles among it, each when it was set."""
        dataset, time_ms = self._dataset, attrgetter("timestamp_ms")
        profiles = sorted(dataset.profile_activities(), key=time_ms)
        self._read = 0
        for events in _batches(heapq.merge(profiles, dataset.activities(range(len(dataset.user))), key=time_ms)):
            self._read += len(events)
            yield events
            await asyncio.sleep(0)

    def part(self) -> float | None:
        """Of its events."""
        return self._read / (len(self._dataset.user) + len(self._dataset.profiles))


def _batches(activities: Iterable[UserActivity]) -> Iterator[list[ActivityEvent]]:
    rest = iter(activities)
    while batch := list(islice(rest, AT_ONCE)):
        yield [ActivityEvent(each.user_id, each, each.timestamp_ms) for each in batch]
