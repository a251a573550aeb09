"""From activities to user records: one read, a pure merge, one compare-and-set per user."""

import asyncio
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from schemas.activity import UserActivity
from schemas.codec import ErrorCode
from schemas.records import MAX_SEEN_ITEMS, SEEN_ENTRY, TOKEN_BYTES, RecordFormatError, UserRecord, compact_seen
from workers.errors import DependencyUnavailable, InvalidInput
from workers.merge import Merged, forget, merge
from workers.ports import UserChange, UserTable

MAX_TRIES = 8
COMPACT_ABOVE_BYTES = 2 * MAX_SEEN_ITEMS * SEEN_ENTRY.itemsize


@dataclass(frozen=True, slots=True)
class ActivityEvent:
    """One readable record of the topic: an activity, or None to forget the user. `taken_ms` is the broker's time."""

    user_id: str
    activity: UserActivity | None
    taken_ms: int


@dataclass(slots=True)
class ActivityResult:
    """Per event of the batch, in order: None, or why it is a dead letter. Counts by outcome."""

    errors: list[InvalidInput | None]
    outcomes: dict[str, int] = field(default_factory=dict)

    def count(self, outcome: str, events: int) -> None:
        """Add to the count of an outcome."""
        if events:
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + events


class ActivityPipeline:
    """Takes batches of activities into the user table. Running a batch again changes nothing."""

    def __init__(self, users: UserTable, seen_actions: frozenset[str]) -> None:
        self._users = users
        self._seen_actions = seen_actions

    async def run(self, batch: Sequence[ActivityEvent]) -> ActivityResult:
        """Raises DependencyError when the table fails, or when other writers keep getting in the way."""
        result = ActivityResult(errors=[None] * len(batch))
        waiting: dict[str, list[int]] = {}
        for position, event in enumerate(batch):
            waiting.setdefault(event.user_id, []).append(position)
        for attempt in range(MAX_TRIES):
            if not waiting:
                return result
            if attempt:  # somebody else wrote in between: read again, a little apart from them
                await asyncio.sleep(random.uniform(0, 0.01 * 2**attempt))  # noqa: S311  # jitter
            waiting = await self._try(batch, waiting, result)
        raise DependencyUnavailable("redis", f"{len(waiting)} users are written by others all the time")

    async def _try(
        self, batch: Sequence[ActivityEvent], waiting: dict[str, list[int]], result: ActivityResult
    ) -> dict[str, list[int]]:
        """One round over these users; returns those whose record changed meanwhile."""
        # 1. records
        user_ids = list(waiting)
        stored = await self._users.records(user_ids)

        # 2. merge
        merges: dict[str, Merged] = {}
        changes: list[UserChange] = []
        for user_id, data in zip(user_ids, stored, strict=True):
            try:
                record = UserRecord() if data is None else UserRecord.decode(data)
            except RecordFormatError as error:  # never overwritten: it may be a newer version's
                for position in waiting[user_id]:
                    result.errors[position] = InvalidInput(ErrorCode.RECORD_UNREADABLE, str(error))
                continue
            merged, emptied = self._merge(record, [batch[position] for position in waiting[user_id]])
            merges[user_id] = merged
            if merged.changed:
                new = merged.record.with_token(os.urandom(TOKEN_BYTES)).encode()
                token = b"" if data is None else record.token
                changes.append(UserChange(user_id, token, new, merged.seen, replace_seen=emptied))

        # 3. compare and set
        applied = await self._users.write(changes)
        lost = {change.user_id for change, done in zip(changes, applied, strict=True) if not done.written}

        # 4. compact the seen sets that have grown
        for change, done in zip(changes, applied, strict=True):
            if done.written and done.seen_bytes > COMPACT_ABOVE_BYTES:
                await self._compact(change.user_id)
        for user_id, merged in merges.items():
            if user_id not in lost:
                result.count("accepted", merged.accepted)
                result.count("duplicate", merged.duplicates)
                result.count("too_late", merged.too_late)
                result.count("forgotten", merged.forgotten)
        return {user_id: positions for user_id, positions in waiting.items() if user_id in lost}

    def _merge(self, record: UserRecord, events: Sequence[ActivityEvent]) -> tuple[Merged, bool]:
        """The record after the events in their order, and whether the stored seen set is to be replaced."""
        last_forget = max((n for n, event in enumerate(events) if event.activity is None), default=-1)
        before = [event.activity for event in events[: last_forget + 1] if event.activity is not None]
        after = [event.activity for event in events[last_forget + 1 :] if event.activity is not None]
        if last_forget < 0:
            return merge(record, after, self._seen_actions), False
        emptied = forget(merge(record, before, self._seen_actions).record, events[last_forget].taken_ms)
        merged = merge(emptied, after, self._seen_actions)
        changed = merged.changed or emptied != record
        return (
            Merged(
                record=merged.record,
                seen=merged.seen,
                changed=changed,
                accepted=merged.accepted,
                duplicates=merged.duplicates,
                too_late=merged.too_late,
                forgotten=merged.forgotten + len(before) + 1,
            ),
            True,
        )

    async def _compact(self, user_id: str) -> None:
        """Rewrite a seen set without repeats; when the record changes meanwhile, a later batch will do it."""
        (user,) = await self._users.read([user_id])
        if user.record is None:
            return
        record = UserRecord.decode(user.record)
        new = record.with_token(os.urandom(TOKEN_BYTES)).encode()
        await self._users.write([UserChange(user_id, record.token, new, compact_seen(user.seen), replace_seen=True)])
