"""Reads the dead-letter topic: the letters that Kafka still holds, and which of them were replayed already."""

from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple

from aiokafka import TopicPartition

from schemas import dead_letter_marks
from schemas.dead_letter import DeadLetter, from_message
from schemas.dead_letter_marks import Replayed
from workers.settings import Settings
from workers.topic_standing import open_standing, read_until


class Stored(NamedTuple):
    """A letter, and where it stands. `replays`: how often its event had been replayed before it failed as told here."""

    letter: DeadLetter
    partition: int
    offset: int
    written_ms: int
    replayed: bool
    replays: int
    replayed_from: str | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which letters are asked for; None = all."""

    topic: str | None = None
    code: str | None = None
    since_ms: int | None = None

    def matches(self, settings: Settings, letter: DeadLetter) -> bool:
        """Whether this is one; `since_ms` aside, which decides where reading begins. A topic goes by either name."""
        topics = (None, letter.topic)
        named = self.topic in topics or settings.topic(self.topic or "") == letter.topic
        return named and self.code in {None, letter.code}


class Marks:
    """Which letters were replayed, and whereto: one byte for each letter of the topic, and some for each run of them.

    Marks stand behind what they are about, so that all of them are known only once the topic was read: `complete`.
    """

    def __init__(self, spans: Mapping[int, range]) -> None:
        self.count = 0
        self.complete = False  # what is added from then on was added before
        self._spans = spans
        self._replayed = {partition: bytearray(len(span)) for partition, span in spans.items()}
        self._targets: defaultdict[tuple[str, int], list[tuple[int, int, Replayed]]] = defaultdict(list)

    def add(self, partition: int, run: Replayed) -> None:
        """Take in one run of a mark in this partition."""
        if self.complete:
            return
        span = self._spans[partition]
        start, stop = max(run.letter, span.start), min(run.letter + run.count, span.stop)
        if start < stop:
            self._replayed[partition][start - span.start : stop - span.start] = b"\1" * (stop - start)
        if run.topic:
            targets = self._targets[run.topic, run.partition]
            entry = (run.offset, partition, run)
            if targets and targets[-1][:2] >= entry[:2]:
                insort(targets, entry, key=lambda each: each[:2])
            else:
                targets.append(entry)
        self.count += 1

    def replayed(self, partition: int, offset: int) -> bool:
        """Whether the letter there was."""
        span = self._spans[partition]
        return offset in span and self._replayed[partition][offset - span.start] == 1

    def source(self, topic: str, partition: int, offset: int) -> tuple[str, int] | None:
        """The letter whose replay made this event, as partition:offset, and how often it was replayed; None: none."""
        targets = self._targets.get((topic, partition), [])
        position = bisect_right(targets, offset, key=lambda each: each[0]) - 1
        if position < 0:
            return None
        first, letters, run = targets[position]
        step = offset - first
        return (f"{letters}:{run.letter + step}", run.replays) if step < run.count else None


class DeadLetterTopic:
    """The topic as it stands when it is opened, and nothing later. `async with DeadLetterTopic(settings) as topic`."""

    def __init__(self, settings: Settings, since_ms: int | None = None) -> None:
        self._settings = settings
        self._since_ms = since_ms
        self._opened = AsyncExitStack()
        self._consumer: Any = None
        self.name = settings.topic("recall-dead-letters")
        self.spans: dict[int, range] = {}

    async def __aenter__(self) -> "DeadLetterTopic":
        """Connect and look where it begins and ends. Raises DependencyUnavailable, ConfigurationError."""
        opening = open_standing(self._settings, self.name, self._since_ms)
        self._consumer, spans = await self._opened.enter_async_context(opening)
        self.spans = {partition.partition: span for partition, span in spans.items()}
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._opened.__aexit__(kind, error, trace)

    async def letters(self, marks: Marks) -> AsyncIterator[Stored]:
        """All letters, partition by partition; what somebody else wrote there is left out.

        Marks that come are added to `marks`, which are complete in the end: read again when there were any, and every
        letter tells whether it was replayed. Raises DependencyTimeout, KafkaError.
        """
        for partition, span in self.spans.items():
            if not span:
                continue
            place = TopicPartition(self.name, partition)
            self._consumer.assign([place])
            self._consumer.seek(place, span.start)
            async for record in read_until(self._consumer, {place: span.stop}):
                if record.offset >= span.stop:
                    break
                if dead_letter_marks.is_mark(record.headers, dead_letter_marks.REPLAYED):
                    for run in dead_letter_marks.decode(record.value):
                        marks.add(partition, run)
                    continue
                try:
                    letter = from_message(record.key, record.value, record.headers)
                except ValueError:  # not one of ours
                    continue
                yield _stored(letter, record, marks)
        marks.complete = True


def _stored(letter: DeadLetter, record: Any, marks: Marks) -> Stored:
    source = marks.source(letter.topic, letter.partition, letter.offset)
    replayed_from, replays = source or (None, 0)
    replayed = marks.replayed(record.partition, record.offset)
    return Stored(letter, record.partition, record.offset, record.timestamp, replayed, replays, replayed_from)


async def read_dead_letters(settings: Settings) -> list[DeadLetter]:
    """All dead letters that Kafka still holds, replayed ones too, by partition and offset."""
    async with DeadLetterTopic(settings) as topic:
        return [stored.letter async for stored in topic.letters(Marks(topic.spans))]
