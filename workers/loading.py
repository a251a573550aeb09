"""User records from history in bulk: activities of a file through the activity worker's own pipeline.

A file is read in windows of bounded size. Within a window a user's activities are merged together, oldest first: one
read and one compare-and-set for all of them. Any number of loads and live workers may write at the same time, and
whatever is loaded again changes nothing.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from schemas.activity import UserActivity
from schemas.codec import DecodeError
from schemas.records import hash64_each
from workers.activity_files import ActivityFile
from workers.errors import DependencyError, RecallError
from workers.pipelines.activity import ActivityEvent, ActivityPipeline, ActivityResult

WINDOW_EVENTS = 65_536
WINDOW_BYTES = 64 * 2**20
BATCH_EVENTS = 2048
AT_ONCE = 2  # batches: one is merged here while Redis works on the other
SHOWN_BAD = 10
PATIENCE_S = 30.0
TRY_AGAIN_S = 0.5

_time = attrgetter("timestamp_ms")


@dataclass(slots=True)
class Loaded:
    """What came of a file. `skipped` are lines that are no activity, and activities of users that cannot be read."""

    events: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    skipped: int = 0


class DistinctUsers:
    """Counts users by hash, in 8 to 16 bytes for each."""

    def __init__(self) -> None:
        self._known: NDArray[np.uint64] = np.empty(0, dtype=np.uint64)
        self._new: list[NDArray[np.uint64]] = []

    def add(self, user_ids: Sequence[str]) -> None:
        """Take users in, known or not."""
        self._new.append(hash64_each(user_ids))
        if sum(map(len, self._new)) > len(self._known):  # rarely, as there are more of them
            self._merge()

    def count(self) -> int:
        """How many different ones there were."""
        self._merge()
        return len(self._known)

    def _merge(self) -> None:
        self._known = np.unique(np.concatenate([self._known, *self._new]))
        self._new.clear()


class UserLoad:
    """Takes windows of a file into the user table. `say` is told of lines that are skipped, the first of them."""

    def __init__(
        self,
        pipeline: ActivityPipeline,
        file: ActivityFile,
        skip_bad: bool,
        say: Callable[[str], None],
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._pipeline = pipeline
        self._file = file
        self._skip_bad = skip_bad
        self._say = say
        self._patience_s = patience_s
        self._shown = 0
        self.users = DistinctUsers()
        self.loaded = Loaded()

    def windows(self) -> Iterator[list[UserActivity]]:
        """The file's activities, so many at a time that memory is bounded. Reads, so it blocks.

        Raises RecallError at a bad line, before its window is handed on, unless those are skipped.
        """
        window: list[UserActivity] = []
        size_bytes = 0
        for line in self._file.lines:
            if isinstance(line.activity, DecodeError):
                self._bad(f"{self._file.name}:{line.number}: {line.activity.code}: {line.activity}")
                self.loaded.skipped += 1
                continue
            window.append(line.activity)
            size_bytes += line.size_bytes
            if len(window) == WINDOW_EVENTS or size_bytes >= WINDOW_BYTES:
                yield window
                window, size_bytes = [], 0
        if window:
            yield window

    async def take(self, window: Sequence[UserActivity]) -> None:
        """Take one window in. Idempotent.

        Raises RecallError when the table failed for `patience_s`, and when the record of a user cannot be read unless
        such are skipped; others of the window may have been taken in then.
        """
        by_user = _by_user(window)
        self.users.add(list(by_user))
        batches = _batches(by_user.values())

        async def work() -> None:
            for batch in batches:  # shared: each takes the next one
                self._count(batch, await self._patiently(batch))

        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(AT_ONCE):
                    tasks.create_task(work())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors

    async def _patiently(self, batch: Sequence[ActivityEvent]) -> ActivityResult:
        """One batch, tried again while the table fails, or while others write the same users all the time."""
        end_s = time.monotonic() + self._patience_s
        while True:
            try:
                return await self._pipeline.run(batch)
            except DependencyError as error:
                if time.monotonic() > end_s:
                    line = f"{error}; {self.loaded.events:,} activities are taken in, and count once when loaded again"
                    raise RecallError(line) from error
            await asyncio.sleep(TRY_AGAIN_S)

    def _count(self, batch: Sequence[ActivityEvent], result: ActivityResult) -> None:
        loaded = self.loaded
        for outcome, events in result.outcomes.items():
            loaded.outcomes[outcome] = loaded.outcomes.get(outcome, 0) + events
        refused = {event.user_id: why for event, why in zip(batch, result.errors, strict=True) if why is not None}
        for user_id, why in refused.items():
            self._bad(f"{self._file.name}: user {user_id!r}: {why.code}: {why}")
        skipped = sum(why is not None for why in result.errors)
        loaded.skipped += skipped
        loaded.events += len(batch) - skipped

    def _bad(self, line: str) -> None:
        """Skip what a line tells of, or raise RecallError."""
        if not self._skip_bad:
            raise RecallError(f"{line}; {self.loaded.events:,} activities are taken in; --skip-bad goes on without it")
        self._shown += 1
        if self._shown <= SHOWN_BAD:
            self._say(f"{line}; skipped")
        elif self._shown == SHOWN_BAD + 1:
            self._say("more is skipped")


def _by_user(window: Iterable[UserActivity]) -> dict[str, list[UserActivity]]:
    """Each user's activities, oldest first: then none is too late for the history because of another one here."""
    by_user: dict[str, list[UserActivity]] = {}
    for activity in window:
        by_user.setdefault(activity.user_id, []).append(activity)
    for activities in by_user.values():
        activities.sort(key=_time)
    return by_user


def _batches(of_users: Iterable[Sequence[UserActivity]]) -> Iterator[list[ActivityEvent]]:
    """Batches of BATCH_EVENTS or a little more: a user is in one of them as a whole."""
    batch: list[ActivityEvent] = []
    for activities in of_users:
        batch += [ActivityEvent(activity.user_id, activity, activity.timestamp_ms) for activity in activities]
        if len(batch) >= BATCH_EVENTS:
            yield batch
            batch = []
    if batch:
        yield batch
