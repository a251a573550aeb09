"""Read-your-click: where requests wait until an activity of their user is in the user's record.

One look is one read of the records of all who wait. It is made at once for those who come, then every 10 ms; less often
when nobody has come for a while, as an event that is late by 200 ms need not be seen within 10; less often also when
looks take long, so that they never take more than a fifth of the worker's time. Who waits holds back the commit of its
own partition, and nothing else.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from prometheus_client import Counter as Metric

from schemas.records import RecordFormatError, holds_event
from workers.cancelling import within
from workers.dependencies import Dependencies
from workers.errors import DependencyError
from workers.intake import Entry
from workers.ports import Clock, UserTable
from workers.runners import Runners

LOOK_EVERY_S = 0.01
PAUSE_PER_LOOK = 4.0  # a pause is at least so many times as long as the look before it,
PAUSE_PER_WAIT = 0.125  # and as this part of the time that the newest one has waited
LOOK_AT_LEAST_S = 0.05  # a read may take
SLEEP_AT_LEAST_S = 0.005
LEAVES_AT_LEAST_MS = 150.0  # of its time, to be answered in

Result = Literal["found", "timed_out", "full", "unavailable"]


class Waiter(NamedTuple):
    """One request that waits: for which event of which user, and until when, on a clock that is never set."""

    entry: Entry
    user_id: str
    event_id: str
    until_s: float


@dataclass(frozen=True, slots=True)
class WaitingPolicy:
    """How many may wait at most, and for how long."""

    wait_ms: int
    capacity: int = 1000
    capacity_bytes: int = 16_000_000  # of their records


class WaitingRoom:
    """Requests with `after_event_id` before they are put into the intake. All who enter go on to `runners` in the end.

    `users` gives the user table, None while requests cannot reach it: then nobody waits.
    """

    def __init__(
        self,
        policy: WaitingPolicy,
        users: Callable[[], UserTable | None],
        runners: Runners,
        clock: Clock,
        dependencies: Dependencies,
        results: Metric,
    ) -> None:
        self._policy = policy
        self._users = users
        self._runners = runners
        self._clock = clock
        self._dependencies = dependencies
        self._results = results
        self._waiting: list[Waiter] = []
        self._looked_at = 0  # by looks under way
        self._bytes = 0  # of records of all who wait, or are looked at
        self._looking = False
        self._newest_s = 0.0  # when somebody came last

    def enter(self, entries: Sequence[Entry]) -> None:
        """Let them wait, as long as there is room, until their event is known or their time is over."""
        table = self._users()
        if table is None:
            self._go("unavailable", entries)
            return
        room = self._room(entries)
        self._go("full", entries[room:])
        waiters = [self._waiter(entry) for entry in entries[:room] if entry.batch.start(entry.record)]
        if waiters:
            self._looked_at += len(waiters)
            self._bytes += sum(waiter.entry.size_bytes for waiter in waiters)
            self._newest_s = time.perf_counter()
            self._runners.spawn(self._enter(table, waiters))

    def _room(self, entries: Sequence[Entry]) -> int:
        """For how many of them, the first ones, there is room."""
        left, left_bytes = self._policy.capacity - len(self._waiting) - self._looked_at, self._policy.capacity_bytes
        left_bytes -= self._bytes
        room = 0
        while room < min(left, len(entries)) and left_bytes > 0:
            left_bytes -= entries[room].size_bytes
            room += 1
        return room

    async def _enter(self, table: UserTable, waiters: list[Waiter]) -> None:
        """A first look at once; whoever has to wait joins the others."""
        await self._look(table, waiters)
        if self._waiting and not self._looking:
            self._looking = True
            self._runners.spawn(self._keep_looking(table))

    async def _keep_looking(self, table: UserTable) -> None:
        """Look now and then; between looks, and while one is under way, let those go whose time is over."""
        next_look_s = time.perf_counter() + LOOK_EVERY_S
        while self._waiting:
            due_s = min(waiter.until_s for waiter in self._waiting) - time.perf_counter()
            await asyncio.sleep(max(SLEEP_AT_LEAST_S, min(due_s, next_look_s - time.perf_counter())))
            began_s = time.perf_counter()
            if began_s < next_look_s:
                self._release()
                continue
            look = self._runners.spawn(self._look(table, self._all()))
            while not look.done():
                await asyncio.wait({look}, timeout=LOOK_EVERY_S)
                self._release()  # those who came meanwhile
            ended_s = time.perf_counter()
            waited_s = ended_s - self._newest_s
            next_look_s = ended_s + max(LOOK_EVERY_S, PAUSE_PER_LOOK * (ended_s - began_s), PAUSE_PER_WAIT * waited_s)
        self._looking = False

    def _all(self) -> list[Waiter]:
        """Those who wait: to be looked at, and then sorted."""
        waiting, self._waiting = self._waiting, []
        self._looked_at += len(waiting)
        return waiting

    def _release(self) -> None:
        """Let those go whose time is over."""
        self._sort(self._all(), {})

    async def _look(self, table: UserTable, waiters: list[Waiter]) -> None:
        """One read of their records."""
        self._sort(waiters, await self._read(table, waiters))

    def _sort(self, waiters: list[Waiter], records: Mapping[str, bytes | None] | None) -> None:
        """Whoever need not wait any more goes on, the others wait for the next look."""
        now_s = time.perf_counter()
        self._looked_at -= len(waiters)
        going: dict[Result, list[Entry]] = {"found": [], "timed_out": [], "unavailable": []}
        for waiter in waiters:
            result = "unavailable" if records is None else _result(waiter, records, now_s)
            if result is None:
                self._waiting.append(waiter)
            else:
                going[result].append(waiter.entry)
                self._bytes -= waiter.entry.size_bytes
        for result, entries in going.items():
            self._go(result, entries)

    async def _read(self, table: UserTable, waiters: list[Waiter]) -> dict[str, bytes | None] | None:
        """Records by user; empty when somebody's time was over before they came, None when the table failed."""
        users = list(dict.fromkeys(waiter.user_id for waiter in waiters))
        left_s = min(waiter.until_s for waiter in waiters) - time.perf_counter()
        try:
            records = await within(max(LOOK_AT_LEAST_S, left_s), table.records(users))
            return dict(zip(users, records, strict=True))
        except DependencyError as error:
            self._dependencies.failed(error)
            return None
        except TimeoutError:
            return {}

    def _waiter(self, entry: Entry) -> Waiter:
        """It leaves in time for two batches: one that it may have to wait for, and its own.

        Its own is not to be one of the slowest: what others took over from each other may have made the mean short.
        """
        request, deadline_ms = entry.incoming.request, entry.incoming.deadline_ms
        latest_ms = self._runners.intake.latest_start_ms(deadline_ms, batches=2)
        left_ms = min(latest_ms, deadline_ms - LEAVES_AT_LEAST_MS) - self._clock.now_ms()
        until_s = time.perf_counter() + min(self._policy.wait_ms, left_ms) / 1000
        return Waiter(entry, request.user_id, request.after_event_id or "", until_s)

    def _go(self, result: Result, entries: Sequence[Entry]) -> None:
        if entries:
            self._results.labels(result).inc(len(entries))
            self._runners.put(entries)


def _result(waiter: Waiter, records: Mapping[str, bytes | None], now_s: float) -> Result | None:
    """What a look came to; None = wait on."""
    try:
        if holds_event(records.get(waiter.user_id), waiter.event_id):
            return "found"
    except RecordFormatError:
        return "unavailable"  # it will not become readable by waiting
    return "timed_out" if now_s >= waiter.until_s else None
