"""Which records are being worked on: polls cut into batches, and the offset that may be committed. Pure.

A partition's committable offset is the longest finished prefix of what was polled from it, whatever the order in which
records finish. Offsets need not be consecutive: compaction leaves gaps.
"""

import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol, TypeVar


class Record(Protocol):
    """What is used of a Kafka record."""

    topic: str
    partition: int
    offset: int
    timestamp: int


R = TypeVar("R", bound=Record)
Partition = tuple[str, int]


def monotonic_ms() -> int:
    """A clock that nobody sets: one that jumps would commit too early, or not for hours."""
    return time.monotonic_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """How many records a poll takes at most, how many a batch, and how many batches are worked on at once."""

    max_poll_records: int = 1024
    max_batch: int = 64
    in_flight: int = 2
    max_span: int = sys.maxsize  # offsets of a partition from a batch's first record to its last
    max_held_back: int = 262_144  # records taken that may not be committed: each is known by its offset until then


class Backlog(Protocol):
    """Records that an agent works on apart from the batches they came in: it has a say in when more are polled."""

    @property
    def running(self) -> int:
        """Batches of its own making that are worked on now."""
        ...

    def wants_poll(self) -> bool:
        """Whether more would be of use now; asked at least every 50 ms while a poll waits for it."""
        ...


class _Run:
    """What one batch holds of one partition: offsets in order, finished together or one by one."""

    __slots__ = ("_finished", "_not_before_ms", "_offsets")

    def __init__(self, offsets: Iterable[int]) -> None:
        self._offsets = deque(offsets)
        self._not_before_ms: int | None = None  # of the whole; None = not all of it is finished
        self._finished: dict[int, int] = {}  # offset -> not before, of what was finished by itself

    def finish(self, offset: int, not_before_ms: int) -> bool:
        """One record's effect is confirmed; False when it was before."""
        new = offset not in self._finished
        self._finished[offset] = not_before_ms
        return new

    def finish_rest(self, held: Collection[int], not_before_ms: int) -> None:
        """The effects of all others are confirmed, but for those held."""
        if not held and not self._finished:
            self._not_before_ms = not_before_ms
            return
        for offset in self._offsets:
            if offset not in held:
                self._finished.setdefault(offset, not_before_ms)

    def take_finished(self, now_ms: int) -> int | None:
        """Drop the finished prefix; one past its last offset, None when there is none."""
        offsets, last = self._offsets, None
        if self._not_before_ms is not None and self._not_before_ms <= now_ms:
            last = offsets[-1]
            offsets.clear()
        while offsets and self._finished.get(offsets[0], now_ms + 1) <= now_ms:
            last = offsets.popleft()
        return None if last is None else last + 1

    @property
    def first(self) -> int:
        """The first offset that is not finished; there must be one."""
        return self._offsets[0]

    def __len__(self) -> int:
        return len(self._offsets)


class Batch:
    """Records in log order, from all partitions. Every one must be finished with `done`, now or later.

    A record that waits for something, or for its turn, is held: `hold` at once, `start` when work on it begins, `done`.
    """

    __slots__ = (
        "_apart", "_done_apart", "_flight", "_held_or_done", "_rest_done", "_runs", "records", "spans", "started",
    )  # fmt: skip

    def __init__(
        self, flight: "InFlight", records: Sequence[Record], starts: Mapping[Partition, int] | None = None
    ) -> None:
        """`starts`: from where on these are all records of a partition; where it does not say, the first one."""
        self.records = records
        self.started = False
        self._flight = flight
        self._apart: dict[Partition, set[int]] = {}  # finished by themselves, or held
        self._held_or_done = 0  # records in it
        self._done_apart = 0  # of these, finished
        self._rest_done = False
        starts = starts or {}
        offsets: defaultdict[Partition, list[int]] = defaultdict(list)
        for record in records:
            offsets[record.topic, record.partition].append(record.offset)
        self.spans = {p: (starts.get(p, found[0]), found[-1] + 1) for p, found in offsets.items()}
        self._runs = {partition: flight.new_run(partition, found) for partition, found in offsets.items()}

    def done(self, record: Record | None = None, *, settles_in_ms: int = 0) -> None:
        """Finish one record, or all that are neither finished nor held; commit it no earlier than so long from now.

        A batch of an earlier assignment is without effect: its records belong to another worker by now.
        """
        not_before_ms = self._flight.settles(settles_in_ms)
        if record is None:
            for partition, run in self._runs.items():
                run.finish_rest(self._apart.get(partition, ()), not_before_ms)
            self._rest_done = True
            self._settle()
            return
        if self._runs[record.topic, record.partition].finish(record.offset, not_before_ms):
            self._done_apart += 1
        self.hold(record)
        self._flight.finish(record)

    def repeats(self, record: Record) -> bool:
        """Whether a record was committed before: it is read again for its effects, and is no dead letter once more."""
        return record.offset < self._flight.repeats_before.get((record.topic, record.partition), 0)

    @property
    def given_up(self) -> bool:
        """Whether a drain has begun: what nobody has started of it will be polled again."""
        return self._flight.given_up

    @property
    def over(self) -> bool:
        """Whether its assignment is over: whatever is not committed of it will be polled again, here or elsewhere."""
        return self._flight.over

    @property
    def void(self) -> bool:
        """Whether it was given up before anybody started it: its records will be polled again, here or elsewhere."""
        return not self._flight.is_running(self)

    def hold(self, record: Record) -> None:
        """Keep one record unfinished without keeping the batch's slot; finish it later with `done(record)`."""
        apart = self._apart.setdefault((record.topic, record.partition), set())
        if record.offset not in apart:
            apart.add(record.offset)
            self._held_or_done += 1
        self._settle()

    def start(self, record: Record) -> bool:
        """Begin work on a held record; a drain waits for it from now on. Idempotent.

        False when it was given up: it will be polled again, here or elsewhere, and is to be left alone.
        """
        return self._flight.start(record)

    def owe(self, record: Record) -> None:
        """What was made of a started record waits for its partition, which may be long: a drain waits a moment only."""
        self._flight.owe(record)

    def keep(self, records: Sequence[Record]) -> None:
        """Once the rest is done: let go of all records but these, so that one that is held keeps no poll in memory."""
        self.records = records

    def _settle(self) -> None:
        if self._rest_done or self._held_or_done == len(self.records):
            self._flight.release(self, all_done=self._done_apart == self._held_or_done)


class InFlight:
    """The records of one assignment between poll and commit. `changed` is called when a slot or a record is done."""

    def __init__(
        self,
        policy: BatchPolicy,
        changed: Callable[[], None] = lambda: None,
        now_ms: Callable[[], int] = monotonic_ms,
    ) -> None:
        self._policy = policy
        self._changed = changed
        self._now_ms = now_ms
        self._settled_ms = now_ms()  # from then on, all that is finished may be committed
        self.repeats_before: dict[Partition, int] = {}  # what stands before this offset was committed once
        self._order: dict[Partition, deque[_Run]] = {}
        self._held_back = 0  # records in it
        self._next: dict[Partition, int] = {}
        self._confirmed: dict[Partition, int] = {}
        self._waiting: deque[Batch] = deque()
        self._running: set[Batch] = set()  # those with a slot
        self._unfinished: dict[Batch, None] = {}  # those polled of which a record is not finished, in order
        self._started: set[tuple[str, int, int]] = set()  # held records that are worked on
        self._owed: set[tuple[str, int, int]] = set()  # those done but for what a late partition has yet to take
        self.given_up = False  # what nobody has started
        self.over = False  # all of it

    def add(self, polled: Mapping[Partition, Sequence[R]], starts: Mapping[Partition, int] | None = None) -> None:
        """Cut a poll into waiting batches, in log order. `starts`: the positions from which partitions were polled."""
        parts = [records for records in polled.values() if records]
        wide = any(part[-1].offset - part[0].offset >= self._policy.max_span for part in parts)
        at, batches = dict(starts or {}), []
        for cut in _cuts(_in_log_order(parts), self._policy, wide=wide):
            batch = Batch(self, cut, at)
            at |= {partition: end for partition, (_, end) in batch.spans.items()}
            batches.append(batch)
        self._waiting.extend(batches)
        self._unfinished.update(dict.fromkeys(batches))

    def take(self) -> Batch | None:
        """The next waiting batch, when a slot is free for it."""
        if not self._waiting or self.given_up or not self.has_slot():
            return None
        batch = self._waiting.popleft()
        self._running.add(batch)
        return batch

    def has_slot(self) -> bool:
        """Whether another batch may be worked on."""
        return len(self._running) < self._policy.in_flight

    def wants_poll(self) -> bool:
        """Whether it is time for the next poll: a slot is free, no cut batch waits, not too much is held back."""
        if self._held_back > self._policy.max_held_back:
            self.committable()
        return not self._waiting and self.has_slot() and self._held_back <= self._policy.max_held_back

    def drop_waiting(self) -> None:
        """Give up what nobody has started, and whatever is polled from now on; it will be polled again."""
        self.given_up = True
        self._waiting.clear()
        self._running = {batch for batch in self._running if batch.started}

    def end(self) -> None:
        """The assignment is over."""
        self.drop_waiting()
        self.over = True

    def is_running(self, batch: Batch) -> bool:
        """Whether a batch has a slot."""
        return batch in self._running

    def unfinished(self, *, owed: bool = True) -> bool:
        """Whether batches, or held records, are being worked on; those owed too, unless they do not count."""
        return bool(self._running or self._started or (owed and self._owed))

    def start(self, record: Record) -> bool:
        """See Batch.start."""
        key = (record.topic, record.partition, record.offset)
        if self.given_up and key not in self._started and key not in self._owed:
            return False
        self._started.add(key)
        return True

    def owe(self, record: Record) -> None:
        """See Batch.owe."""
        key = (record.topic, record.partition, record.offset)
        if key in self._started:
            self._started.discard(key)
            self._owed.add(key)

    def finish(self, record: Record) -> None:
        """Work on a held record, if it was one, has ended."""
        key = (record.topic, record.partition, record.offset)
        self._started.discard(key)
        self._owed.discard(key)
        self._changed()

    def new_run(self, partition: Partition, offsets: Iterable[int]) -> _Run:
        """A place for the next records of a partition, behind all earlier ones."""
        run = _Run(offsets)
        self._held_back += len(run)
        self._order.setdefault(partition, deque()).append(run)
        return run

    def release(self, batch: Batch, *, all_done: bool) -> None:
        """A batch needs its slot no longer; `all_done`: nor is a record of it held."""
        if all_done:
            self._unfinished.pop(batch, None)
        if batch in self._running:
            self._running.discard(batch)
            self._changed()

    def settles(self, in_ms: int) -> int:
        """When something may be committed that is finished now and is to settle for so long."""
        settled_ms = self._now_ms() + in_ms
        self._settled_ms = max(self._settled_ms, settled_ms)
        return settled_ms

    def unsettled_s(self) -> float:
        """How long it takes until all that is finished now may be committed."""
        return max(0, self._settled_ms - self._now_ms()) / 1000

    def committable(self) -> dict[Partition, int]:
        """Partition -> one past its finished prefix, where that moved since the last confirmation."""
        now_ms = self._now_ms()
        for partition, order in self._order.items():
            while order:
                held_back = len(order[0])
                if (offset := order[0].take_finished(now_ms)) is None:
                    break
                self._next[partition] = offset
                self._held_back -= held_back - len(order[0])
                if order[0]:
                    break
                order.popleft()
        return {
            partition: offset
            for partition, offset in self._next.items()
            if self._confirmed.get(partition) != offset > self.repeats_before.get(partition, 0)
        }

    def unfinished_from(self, partition: Partition) -> int | None:
        """The first offset that was polled of a partition and may not be committed yet; None where there is none."""
        self.committable()
        order = self._order.get(partition)
        return order[0].first if order else None

    def confirm(self, committed: Mapping[Partition, int]) -> None:
        """The broker has taken these offsets."""
        self._confirmed.update(committed)

    def oldest_ms(self) -> int | None:
        """The log time of the oldest record that was polled and belongs to an unfinished batch; None without one."""
        return min((batch.records[0].timestamp for batch in self._unfinished), default=None)

    def oldest(self) -> Batch | None:
        """The first batch polled of which a record is not finished; None without one."""
        return next(iter(self._unfinished), None)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Batches running, batches waiting, records not committable yet."""
        return len(self._running), len(self._waiting), self._held_back


def _cuts(records: Sequence[R], policy: BatchPolicy, *, wide: bool) -> Iterator[Sequence[R]]:
    """Batches of at most so many records; where offsets are `wide` apart, of at most so many of each partition too."""
    size, start, first = policy.max_batch, 0, dict[Partition, int]()
    for n, record in enumerate(records if wide else ()):
        place = record.topic, record.partition
        if n - start == size or record.offset - first.setdefault(place, record.offset) >= policy.max_span:
            yield records[start:n]
            start, first = n, {place: record.offset}
    for at in range(start, len(records), size):
        yield records[at : at + size]


def _in_log_order(parts: Sequence[Sequence[R]]) -> Sequence[R]:
    """Records of several partitions by log time, equal times in the order of the parts.

    Each partition keeps its own order even where its timestamps jump back: a record counts as no older than the one
    before it.
    """
    if len(parts) == 1:
        return parts[0]
    records = [record for part in parts for record in part]
    times = [time_ms for part in parts for time_ms in accumulate((record.timestamp for record in part), max)]
    return [records[n] for n in sorted(range(len(records)), key=times.__getitem__)]
