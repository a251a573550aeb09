"""Replays dead letters: each event goes back to its topic as it came, and is marked as replayed once it is there.

A letter is judged first: what must not be replayed, and what would be of no use, is left out and counted. Letters go in
chunks: produced, acknowledged, marked. After a crash between the last two a chunk goes again, which effects once bears.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from schemas import codec, dead_letter_marks
from schemas.codec import ErrorCode
from schemas.dead_letter import DeadLetter
from schemas.dead_letter_marks import Replayed
from schemas.recall import MAX_TIMEOUT_MS
from workers.dead_letter_topic import DeadLetterTopic, Marks, Stored, Wanted
from workers.kafka_client import connected, producer_client, require_topics
from workers.newer_items import NewerItems
from workers.ports import Clock
from workers.settings import Settings
from workers.topics import DELETE_RETENTION_MS

CHUNK_LETTERS = 500
CHUNK_BYTES = 8_000_000
REMEMBERED = 200_000  # events, so that a second letter of one is known for a copy
SAY_EVERY = 10_000


class Verdict(StrEnum):
    """What becomes of a letter."""

    REPLAY = "replay"
    REPLAYED = "replayed"  # before
    COPY = "copy"  # of a letter that is, or was, replayed
    OMITTED = "omitted"  # its value was too large to be carried
    OTHER_TOPIC = "other_topic"  # it came from none of the three that workers read
    NO_KEY = "no_key"  # neither key nor value; an item's without a key, which a compacted topic refuses
    SUPERSEDED = "superseded"  # an item's later update stands
    TOO_OLD = "too_old"  # an item's: a later tombstone may be gone from the topic already
    AHEAD = "ahead"  # an activity from after its own record: it would pass by a tombstone that came in between
    EXPIRED = "expired"  # a request whose asker waits no longer
    ANSWERED = "answered"  # a request that was, without its list
    BEYOND_LIMIT = "beyond_limit"


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """Which letters, at most how many (None = all), requests too late as well or not, and whether to do it at all."""

    wanted: Wanted
    limit: int | None = None
    expired: bool = False
    do: bool = False


@dataclass(slots=True)
class Report:
    """How many letters there are by (topic, code), and what becomes of them."""

    counts: Counter[tuple[str, str, Verdict]] = field(default_factory=Counter)

    def total(self, verdict: Verdict) -> int:
        """Letters of all topics and codes."""
        return sum(count for (_, _, each), count in self.counts.items() if each is verdict)


def judge(settings: Settings, letter: DeadLetter, now_ms: int, *, expired: bool) -> Verdict:
    """What can be said of a letter by itself."""
    items, requests = settings.topic("item-updates"), settings.topic("recall-requests")
    if letter.topic not in {items, requests, settings.topic("user-activity")}:
        return Verdict.OTHER_TOPIC
    if letter.value_omitted:
        return Verdict.OMITTED
    if letter.key is None and (letter.value is None or letter.topic == items):
        return Verdict.NO_KEY
    if letter.topic == items:
        return Verdict.TOO_OLD if now_ms - letter.record_timestamp_ms > DELETE_RETENTION_MS else Verdict.REPLAY
    if letter.topic == requests:
        if letter.code == ErrorCode.ANSWER_TOO_LARGE:
            return Verdict.ANSWERED
        late = now_ms > letter.record_timestamp_ms + _timeout_ms(letter.value)
        return Verdict.EXPIRED if late and not expired else Verdict.REPLAY
    return Verdict.AHEAD if letter.code == ErrorCode.FUTURE_TIMESTAMP else Verdict.REPLAY


def _timeout_ms(value: bytes | None) -> int:
    """How long its asker waits; the longest allowed where the request cannot be read by this version either."""
    try:
        return codec.decode_request(value).timeout_ms
    except codec.DecodeError:
        return MAX_TIMEOUT_MS


async def replay(
    settings: Settings, options: ReplayOptions, clock: Clock, said: Callable[[str], None] = lambda _: None
) -> Report:
    """Judge all letters, oldest first in each partition, and replay those that may be; `said` is told how far it is.

    Raises ConfigurationError for a missing topic, DependencyError; what is done by then is marked.
    """
    sources = [settings.topic(name) for name in ("user-activity", "item-updates", "recall-requests")]
    await require_topics(settings, *sources)
    async with AsyncExitStack() as opened:
        topic = await opened.enter_async_context(DeadLetterTopic(settings, options.wanted.since_ms))
        newer = await opened.enter_async_context(NewerItems(settings))
        producer = producer_client(settings) if options.do else None
        if producer is not None:
            await opened.enter_async_context(connected(settings, producer))
        marks, read = Marks(topic.spans), 0
        async for stored in topic.letters(marks):
            read += 1
            if read % SAY_EVERY == 0:
                said(f"reading, {read:,} dead letters")
            letter = stored.letter
            wanted = _is_item(stored, newer) and options.wanted.matches(settings, letter)
            if wanted and judge(settings, letter, clock.now_ms(), expired=False) is Verdict.REPLAY:
                newer.watch(letter)
        await newer.look()
        run, read = _Run(settings, options, clock, newer, producer), 0
        async for stored in topic.letters(marks):
            if options.wanted.matches(settings, stored.letter):
                await run.take(stored)
            read += 1
            if read % SAY_EVERY == 1:
                said(f"{'replaying' if options.do else 'judging'}, {read:,} dead letters")
        await run.finish()
        return run.report


def _is_item(stored: Stored, newer: NewerItems) -> bool:
    return stored.letter.topic == newer.topic


class _Run:
    """One run over the letters: those to be replayed gather in chunks of one partition each."""

    def __init__(
        self, settings: Settings, options: ReplayOptions, clock: Clock, newer: NewerItems, producer: Any | None
    ) -> None:
        self.report = Report()
        self._settings = settings
        self._options = options
        self._clock = clock
        self._newer = newer
        self._producer: Any = producer  # None: nothing is sent
        self._events: dict[int, None] = {}  # those that are, or were, replayed; the last of them
        self._chosen = 0
        self._chunk: list[tuple[Stored, Verdict]] = []
        self._chunk_bytes = 0

    async def take(self, stored: Stored) -> None:
        """Judge one; a full chunk is replayed."""
        verdict = self._judge(stored)
        if verdict not in {Verdict.REPLAY, Verdict.COPY}:
            self._count(stored, verdict)
            return
        if self._chunk and self._chunk[0][0].partition != stored.partition:
            await self.finish()
        self._chosen += verdict is Verdict.REPLAY
        self._chunk.append((stored, verdict))
        self._chunk_bytes += len(stored.letter.key or b"") + len(stored.letter.value or b"")
        if len(self._chunk) >= CHUNK_LETTERS or self._chunk_bytes >= CHUNK_BYTES:
            await self.finish()

    def _judge(self, stored: Stored) -> Verdict:
        letter = stored.letter
        event = hash((letter.topic, letter.partition, letter.offset, letter.key, letter.value))
        if stored.replayed:
            self._remember(event)
            return Verdict.REPLAYED
        verdict = judge(self._settings, letter, self._clock.now_ms(), expired=self._options.expired)
        if verdict is not Verdict.REPLAY:
            return verdict
        if _is_item(stored, self._newer) and self._newer.newer_than(letter):
            return Verdict.SUPERSEDED
        if event in self._events:
            return Verdict.COPY
        if self._options.limit is not None and self._chosen >= self._options.limit:
            return Verdict.BEYOND_LIMIT
        self._remember(event)
        return Verdict.REPLAY

    def _remember(self, event: int) -> None:
        self._events[event] = None
        if len(self._events) > REMEMBERED:
            del self._events[next(iter(self._events))]

    async def finish(self) -> None:
        """Replay the chunk: what has come to `item-updates` meanwhile is looked at, events are sent, then the mark."""
        chunk, self._chunk, self._chunk_bytes = self._chunk, [], 0
        if self._producer is not None and any(_is_item(stored, self._newer) for stored, _ in chunk):
            await self._newer.look()
        going: list[tuple[Stored, Any]] = []  # with the delivery of its event; None for a copy
        for stored, verdict in chunk:
            if _is_item(stored, self._newer) and self._newer.newer_than(stored.letter):
                self._chosen -= verdict is Verdict.REPLAY
                self._count(stored, Verdict.SUPERSEDED)
                continue
            self._count(stored, verdict)
            if self._producer is not None:
                going.append((stored, await self._send(stored.letter) if verdict is Verdict.REPLAY else None))
        if going:
            await self._mark(going)

    async def _send(self, letter: DeadLetter) -> Any:
        """By its key, as every client would; an item's where it came from. Returns the delivery to wait for."""
        partition = await self._home(letter) if letter.topic == self._newer.topic else None
        return await self._producer.send(
            letter.topic, letter.value, letter.key, partition, headers=list(letter.headers)
        )

    async def _home(self, letter: DeadLetter) -> int | None:
        """The partition in which its producer updates this item; by its key (None) if that is wrong or is gone.

        An item that moved by a replay would refuse what its producer sends through another partition.
        """
        there = await self._producer.partitions_for(letter.topic)
        return letter.partition if letter.code != ErrorCode.WRONG_PARTITION and letter.partition in there else None

    async def _mark(self, going: Sequence[tuple[Stored, Any]]) -> None:
        """Once all events are acknowledged, say so behind their letters."""
        replayed = []
        for stored, delivery in going:
            if delivery is None:
                replayed.append(Replayed(stored.offset))
                continue
            sent = await delivery
            place = (stored.letter.topic, sent.partition, sent.offset)
            replayed.append(Replayed(stored.offset, 1, *place, stored.replays + 1))
        await self._producer.send_and_wait(
            self._settings.topic("recall-dead-letters"),
            value=dead_letter_marks.encode(replayed),
            partition=going[0][0].partition,
            headers=list(dead_letter_marks.headers(dead_letter_marks.REPLAYED, self._clock.now_ms())),
        )

    def _count(self, stored: Stored, verdict: Verdict) -> None:
        self.report.counts[stored.letter.topic, stored.letter.code, verdict] += 1
