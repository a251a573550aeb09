"""From activities to user records: one read, a pure merge, one compare-and-set per user; popularity on the way.

Popularity is counted before the users are written. A worker that dies in between has not committed: the events come
again, the records accept them again, and the offsets say that they were counted.
"""

import asyncio
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby

from schemas.codec import ErrorCode
from schemas.records import MAX_SEEN_ITEMS, SEEN_ENTRY, TOKEN_BYTES, RecordFormatError, UserRecord, compact_seen
from workers.errors import DependencyUnavailable, InvalidInput
from workers.merge import Merged, forget, merge
from workers.pipelines.activity_event import ActivityEvent
from workers.pipelines.popular_counts import Accepted, PopularCounts, Spans
from workers.ports import UserChange, UserTable
from workers.stopwatch import Observe, Stopwatch, unobserved

__all__ = ["ActivityEvent", "ActivityPipeline", "ActivityResult"]

MAX_TRIES = 8
OUTCOMES = ("accepted", "duplicate", "too_late", "forgotten")
COMPACT_ABOVE_BYTES = 2 * MAX_SEEN_ITEMS * SEEN_ENTRY.itemsize


@dataclass(slots=True)
class ActivityResult:
    """Per event of the batch, in order: None, or why it is a dead letter. Counts of the others by outcome.

    Outcomes: accepted, duplicate, too_late, forgotten (a tombstone, or an event that one has ended). Beside them stands
    unknown_action: how many activities, whatever came of them, have an action that the spec does not name; and counted:
    how many were added to popularity.
    """

    errors: list[InvalidInput | None]
    outcomes: dict[str, int] = field(default_factory=dict)

    def count(self, outcome: str, events: int) -> None:
        """Add to the count of an outcome."""
        if events:
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + events

    def refuse(self, positions: Sequence[int], why: str) -> None:
        """Give up the events of a user whose stored record cannot be read."""
        for position in positions:
            self.errors[position] = InvalidInput(ErrorCode.RECORD_UNREADABLE, why)


@dataclass(slots=True)
class _Taken:
    """One user after some events: the record, and what is appended to the seen set, or takes its place if `emptied`."""

    record: UserRecord
    seen: bytes = b""
    emptied: bool = False
    changed: bool = False
    merges: list[tuple[Sequence[ActivityEvent], Merged]] = field(default_factory=list)
    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))

    def merge(self, events: Sequence[ActivityEvent], seen_actions: frozenset[str]) -> None:
        """Take activities in."""
        merged = merge(self.record, [each.activity for each in events if each.activity is not None], seen_actions)
        self.merges.append((events, merged))
        self.record, self.seen, self.changed = merged.record, self.seen + merged.seen, self.changed or merged.changed
        self.outcomes["accepted"] += merged.accepted
        self.outcomes["duplicate"] += merged.duplicates
        self.outcomes["too_late"] += merged.too_late
        self.outcomes["forgotten"] += merged.forgotten

    def accepted(self) -> Iterator[Accepted]:
        """What is new to the record."""
        for events, merged in self.merges:
            for position, profile in zip(merged.entered, merged.profiles, strict=True):
                yield events[position], profile

    def forget(self, taken_ms: int) -> None:
        """Take a tombstone in."""
        record = forget(self.record, taken_ms)
        if record is self.record:
            self.outcomes["duplicate"] += 1
        else:
            self.record, self.seen, self.emptied, self.changed = record, b"", True, True
            self.outcomes["forgotten"] += 1

    def change(self, user_id: str, expected_token: bytes) -> UserChange:
        """The write that stores it, under a new token."""
        return UserChange(user_id, expected_token, _renewed(self.record), self.seen, replace_seen=self.emptied)


class ActivityPipeline:
    """Takes batches of activities into the user table. Running a batch again changes nothing."""

    def __init__(
        self,
        users: UserTable,
        seen_actions: frozenset[str],
        known_actions: frozenset[str],
        observe: Observe = unobserved,
        popular: PopularCounts | None = None,
    ) -> None:
        """Without `popular`, nothing is counted."""
        self._users = users
        self._popular = popular
        self._seen_actions = seen_actions
        self._known_actions = known_actions
        self._observe = observe

    async def run(self, batch: Sequence[ActivityEvent], spans: Spans | None = None) -> ActivityResult:
        """Raises DependencyError when the table fails, or when other writers keep getting in the way.

        `spans` are the offsets that the batch covers, as PopularCounts takes them; StoreLost as there.
        Events of a user whose stored record cannot be read are dead letters (`record_unreadable`); the others go on.
        """
        result = ActivityResult(errors=[None] * len(batch))
        activities = [event.activity for event in batch if event.activity is not None]
        result.count("unknown_action", sum(activity.action not in self._known_actions for activity in activities))
        waiting: dict[str, list[int]] = {}
        for position, event in enumerate(batch):
            waiting.setdefault(event.user_id, []).append(position)
        for attempt in range(MAX_TRIES):
            if attempt:  # somebody else wrote in between: read again, a little apart from them
                await asyncio.sleep(random.uniform(0, 0.01 * 2**attempt))  # noqa: S311  # jitter
            waiting = await self._try(batch, waiting, result, spans, first=not attempt)
            if not waiting:
                return result
        raise DependencyUnavailable("redis", f"{len(waiting)} users are written by others all the time")

    async def _try(
        self,
        batch: Sequence[ActivityEvent],
        waiting: dict[str, list[int]],
        result: ActivityResult,
        spans: Spans | None,
        *,
        first: bool,
    ) -> dict[str, list[int]]:
        """One round over these users; returns those whose record changed meanwhile."""
        watch = Stopwatch(self._observe)
        # 1. records
        user_ids = list(waiting)
        stored = await self._users.records(user_ids)
        watch.lap_ms("records")

        # 2. merge
        merges: dict[str, _Taken] = {}
        changes: list[UserChange] = []
        for user_id, data in zip(user_ids, stored, strict=True):
            try:
                record = UserRecord() if data is None else UserRecord.decode(data)
            except RecordFormatError as error:  # never overwritten: it may be a newer version's
                result.refuse(waiting[user_id], str(error))
                continue
            taken = self._take(record, [batch[position] for position in waiting[user_id]])
            merges[user_id] = taken
            if taken.changed:
                changes.append(taken.change(user_id, b"" if data is None else record.token))

        watch.lap_ms("merge")

        # 3. popularity, once for the whole batch
        if self._popular is not None and first:
            accepted = chain.from_iterable(taken.accepted() for taken in merges.values())
            result.count("counted", await self._popular.add(batch, accepted, spans))
            watch.lap_ms("popular")

        # 4. compare and set
        applied = await self._users.write(changes)
        watch.lap_ms("write")
        lost: dict[str, list[int]] = {}
        for change, done in zip(changes, applied, strict=True):
            if done.refused:
                del merges[change.user_id]
                result.refuse(waiting[change.user_id], "what is stored in the user's place is no user record")
            elif not done.written:
                del merges[change.user_id]
                lost[change.user_id] = waiting[change.user_id]
        for taken in merges.values():
            for outcome, events in taken.outcomes.items():
                result.count(outcome, events)

        # 5. compact the seen sets that have grown
        for change, done in zip(changes, applied, strict=True):
            if done.seen_bytes > COMPACT_ABOVE_BYTES:
                await self._compact(change.user_id)
        return lost

    def _take(self, record: UserRecord, events: Sequence[ActivityEvent]) -> _Taken:
        """The user after the events in their order: activities are merged, a tombstone ends what came before it."""
        taken = _Taken(record)
        for of_tombstones, run in groupby(events, key=lambda event: event.activity is None):
            if of_tombstones:
                for event in run:
                    taken.forget(event.taken_ms)
            else:
                taken.merge(list(run), self._seen_actions)
        return taken

    async def _compact(self, user_id: str) -> None:
        """Rewrite a seen set without repeats; when the record changes meanwhile, a later batch will do it."""
        (user,) = await self._users.read([user_id])
        if user.record is None:
            return
        try:
            record = UserRecord.decode(user.record)
        except RecordFormatError:  # written by a newer version since: it compacts for itself
            return
        change = UserChange(user_id, record.token, _renewed(record), compact_seen(user.seen), replace_seen=True)
        await self._users.write([change])


def _renewed(record: UserRecord) -> bytes:
    return record.with_token(os.urandom(TOKEN_BYTES)).encode()
