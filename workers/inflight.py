"""Which records are being worked on: polls cut into batches, and the offset that may be committed. Pure.

A partition's committable offset is the longest finished prefix of what was polled from it, whatever the order in which
records finish. Offsets need not be consecutive: compaction leaves gaps.
"""

import time
from collections import deque
from collections.abc import Mapping, Sequence
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

HELD = "held"


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """How many records a poll takes at most, how many a batch, and how many batches are worked on at once."""

    max_poll_records: int = 1024
    max_batch: int = 64
    in_flight: int = 2


class Batch:
    """Records in log order, from all partitions. Every one must be finished with `done`, now or later."""

    __slots__ = ("_flight", "_open", "records", "started")

    def __init__(self, flight: "InFlight", records: Sequence[Record]) -> None:
        self.records = records
        self.started = False
        self._flight = flight
        self._open = {(record.topic, record.partition, record.offset) for record in records}

    def done(self, record: Record | None = None, *, not_before_ms: int = 0) -> None:
        """Finish one record, or all that are neither finished nor held; commit it no earlier than `not_before_ms`.

        A batch of an earlier assignment is ignored: its records belong to another worker by now.
        """
        if record is None:
            for topic, partition, offset in self._open:
                self._flight.finish((topic, partition), offset, not_before_ms)
            self._open.clear()
        else:
            self._open.discard((record.topic, record.partition, record.offset))
            self._flight.finish((record.topic, record.partition), record.offset, not_before_ms)
        if not self._open:
            self._flight.release(self)

    @property
    def void(self) -> bool:
        """Whether it was given up before anybody started it: its records will be polled again, here or elsewhere."""
        return not self._flight.is_running(self)

    def hold(self, record: Record) -> None:
        """Keep one record unfinished without keeping the batch's slot; finish it later with `done(record)`."""
        self._open.discard((record.topic, record.partition, record.offset))
        if not self._open:
            self._flight.release(self)


class InFlight:
    """The records of one assignment between poll and commit."""

    def __init__(self, policy: BatchPolicy) -> None:
        self._policy = policy
        self._order: dict[Partition, deque[int]] = {}
        self._finished: dict[Partition, dict[int, int]] = {}
        self._next: dict[Partition, int] = {}
        self._confirmed: dict[Partition, int] = {}
        self._running: set[Batch] = set()
        self._waiting: deque[Batch] = deque()

    def add(self, polled: Mapping[Partition, Sequence[R]]) -> None:
        """Cut a poll into waiting batches, in log order."""
        for partition, records in polled.items():
            self._order.setdefault(partition, deque()).extend(record.offset for record in records)
            self._finished.setdefault(partition, {})
        merged = _in_log_order([records for records in polled.values() if records])
        size = self._policy.max_batch
        self._waiting.extend(Batch(self, merged[start : start + size]) for start in range(0, len(merged), size))

    def take(self) -> Batch | None:
        """The next waiting batch, when a slot is free for it."""
        if not self._waiting or not self.has_slot():
            return None
        batch = self._waiting.popleft()
        self._running.add(batch)
        return batch

    def has_slot(self) -> bool:
        """Whether another batch may be worked on."""
        return len(self._running) < self._policy.in_flight

    def wants_poll(self) -> bool:
        """Whether it is time for the next poll: a slot is free and no cut batch waits for it."""
        return not self._waiting and self.has_slot()

    def drop_waiting(self) -> None:
        """Give up what nobody has started; it will be polled again."""
        self._waiting.clear()
        self._running = {batch for batch in self._running if batch.started}

    def is_running(self, batch: Batch) -> bool:
        """Whether a batch has a slot."""
        return batch in self._running

    def unfinished(self) -> bool:
        """Whether batches are being worked on."""
        return bool(self._running)

    def finish(self, partition: Partition, offset: int, not_before_ms: int) -> None:
        """One record's effect is confirmed."""
        finished = self._finished.get(partition)
        if finished is not None:
            finished[offset] = not_before_ms

    def release(self, batch: Batch) -> None:
        """A batch needs its slot no longer."""
        self._running.discard(batch)

    def committable(self, now_ms: int | None = None) -> dict[Partition, int]:
        """Partition -> one past its finished prefix, where that moved since the last confirmation."""
        now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
        for partition, order in self._order.items():
            finished = self._finished[partition]
            while order and finished.get(order[0], now_ms + 1) <= now_ms:
                offset = order.popleft()
                del finished[offset]
                self._next[partition] = offset + 1
        return {p: offset for p, offset in self._next.items() if self._confirmed.get(p) != offset}

    def confirm(self, committed: Mapping[Partition, int]) -> None:
        """The broker has taken these offsets."""
        self._confirmed.update(committed)

    def oldest_ms(self) -> int | None:
        """The log time of the oldest record that was polled and belongs to an unfinished batch; None without one."""
        return min((batch.records[0].timestamp for batch in (*self._running, *self._waiting)), default=None)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Batches running, batches waiting, records not committable yet."""
        return len(self._running), len(self._waiting), sum(len(order) for order in self._order.values())


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
