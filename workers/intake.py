"""The queue between polls and the recall pipeline: whose turn it is, who cannot be in time any more. Pure.

As long as everybody can be in time, the oldest are taken first, in log order. A request that cannot be is shed as soon
as that is known, if more wait than fit into one batch, or if others were shed a moment ago and a batch is under way:
some are always tried, so that a wrong idea of how long a batch takes corrects itself. For a second after a request was
shed the newest are taken first, and polls go on while others wait: those that come now are in time, instead of
everybody being a little too late.

While no batch ends, because a backend hangs, nobody can be tried: whoever is about to be late is shed, and polls go on,
so that those who have little time hear in time. When that is so does not depend on how long batches take: those that
hang would make it come later each time. Where they are merely slow, nobody is shed either who could be answered in
time in full: whoever is has no more than the margin left.
"""

import heapq
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from workers.inflight import Batch, Record
from workers.pipelines.admission import ANSWER_MARGIN_MS, Incoming
from workers.ports import Clock


class Entry(NamedTuple):
    """One request: its record, the batch in which that was polled and in which it is to be finished, and itself."""

    record: Record
    batch: Batch
    incoming: Incoming
    size_bytes: int = 0  # of its record


@dataclass(frozen=True, slots=True)
class IntakePolicy:
    """Sizes and times of an intake. A poll brings at most `poll` requests."""

    max_batch: int = 64
    batches_at_once: int = 2
    capacity: int = 16_384  # requests that may wait
    capacity_bytes: int = 32_000_000  # of records of those that wait, before no more are polled
    max_overtaken: int = 65_536  # by so many that came later: what is finished behind it cannot be committed
    poll: int = 1024
    poll_every_ms: int = 20  # in overload, after a small one: a poll for one or two costs as much as one for many
    overloaded_for_ms: int = 1000  # after a request was shed
    margin_ms: int = ANSWER_MARGIN_MS  # the pipeline keeps it free before a deadline
    recent_batches: int = 8  # weigh most in the mean service time
    stalled_ms: int = 100  # all slots taken, and none free for so long


class Intake:
    """Requests that wait for a batch. Nothing here waits by itself; `take` and `shed` give each request out once."""

    def __init__(self, clock: Clock, policy: IntakePolicy = IntakePolicy()) -> None:
        self.policy = policy
        self.running = 0  # batches taken and not finished
        self.service_ms = 0.0  # from taking a batch to its acknowledgement, mean of recent batches
        self._clock = clock
        self._next = 0
        self._waiting: OrderedDict[int, Entry] = OrderedDict()  # by number, in the order in which they came
        self._deadlines: list[tuple[int, int]] = []  # heap of (deadline, number); also of some that wait no longer
        self._displaced: list[Entry] = []
        self._refusing = 0
        self._next_poll_ms = 0  # in overload
        self._taken_ms = 0  # when a slot was taken last
        self._waiting_bytes = 0
        self._shed_ms: int | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def has_slot(self) -> bool:
        """Whether another batch may be taken."""
        return self.running < self.policy.batches_at_once

    @property
    def overloaded(self) -> bool:
        """Whether a request was shed within the last second."""
        if self._shed_ms is None:
            return False
        return 0 <= self._clock.now_ms() - self._shed_ms < self.policy.overloaded_for_ms  # unless the clock was set

    @property
    def stalled(self) -> bool:
        """Whether batches under way hang."""
        return not self.has_slot and self._clock.now_ms() - self._taken_ms > self.policy.stalled_ms

    def latest_start_ms(self, deadline_ms: int, batches: int = 1) -> float:
        """When so many batches must begin, one after another, for the last of them to be in time for this deadline."""
        return deadline_ms - self.policy.margin_ms - batches * self.service_ms

    def put(self, entries: Sequence[Entry]) -> None:
        """They wait from now on, behind all others. Whoever is displaced by them is the next to be shed."""
        for entry in entries:
            self._waiting[self._next] = entry
            self._waiting_bytes += entry.size_bytes
            heapq.heappush(self._deadlines, (entry.incoming.deadline_ms, self._next))
            self._next += 1
        while self._waiting and self._displaces():
            self._displaced.append(self._out(self._waiting.popitem(last=False)[1]))
        many = len(entries) >= self.policy.max_batch  # there may be more where these came from
        self._next_poll_ms = 0 if many else self._clock.now_ms() + self.policy.poll_every_ms

    def shed(self) -> list[Entry]:
        """Those that cannot be in time any more, and those displaced: to be refused. Tell `refused` when they are."""
        found, self._displaced = self._displaced, []
        now_ms = self._clock.now_ms()
        deadlines = self._deadlines
        tried = 0 if self.overloaded and self.running else self.policy.max_batch
        stalled, overloaded = self.stalled, bool(found)
        while self._waiting:
            too_many, deadline_ms = len(self._waiting) > tried, deadlines[0][0]
            late = stalled and self.latest_start_ms(deadline_ms, batches=0) < now_ms
            if not late and not (too_many and self.latest_start_ms(deadline_ms) < now_ms):
                break
            entry = self._waiting.pop(heapq.heappop(deadlines)[1], None)
            if entry is not None:
                found.append(self._out(entry))
                overloaded = overloaded or too_many
        if len(deadlines) > 2 * len(self._waiting) + self.policy.poll:
            self._deadlines = [(entry.incoming.deadline_ms, n) for n, entry in self._waiting.items()]
            heapq.heapify(self._deadlines)
        if overloaded:
            self._shed_ms = now_ms
        self._refusing += len(found)
        return found

    def refused(self, count: int) -> None:
        """So many of those shed have been answered."""
        self._refusing -= count

    def take(self) -> list[Entry]:
        """The next batch in log order, which takes a slot; empty when nobody waits. Tell `finished` when it is."""
        newest_first = self.overloaded
        size = min(len(self._waiting), self.policy.max_batch)
        entries = [self._out(self._waiting.popitem(last=newest_first)[1]) for _ in range(size)]
        if entries:
            self.running += 1
            self._taken_ms = self._clock.now_ms()
        return entries[::-1] if newest_first else entries

    def finished(self, elapsed_ms: float | None) -> None:
        """A batch has given its slot back; None = nothing of it was worked on."""
        self.running -= 1
        if elapsed_ms is not None:
            weight = 1 / self.policy.recent_batches if self.service_ms else 1.0
            self.service_ms += (elapsed_ms - self.service_ms) * weight

    def wants_poll(self) -> bool:
        """Whether there is a slot and nobody waits for it; now and then in overload, and while batches hang."""
        if not self._waiting and self.has_slot:
            return True
        policy, early_ms = self.policy, self._next_poll_ms - self._clock.now_ms()
        if policy.capacity - len(self._waiting) - self._refusing < policy.poll:
            return False
        if self._waiting_bytes > policy.capacity_bytes or 0 < early_ms <= policy.poll_every_ms:
            return False
        return self.stalled or (self.overloaded and bool(self._waiting))

    def _out(self, entry: Entry) -> Entry:
        """One that waits no longer."""
        self._waiting_bytes -= entry.size_bytes
        return entry

    def _displaces(self) -> bool:
        """Whether the oldest has to go: too many wait, or too many have overtaken it."""
        oldest = next(iter(self._waiting))
        return len(self._waiting) > self.policy.capacity or self._next - oldest > self.policy.max_overtaken
