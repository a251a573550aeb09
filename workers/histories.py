"""Users' records while activity is read in log order: what a request would have been answered from just before each.

Records are merged by the code that the activity worker merges by. Memory: two records for each user, at most about
5 KB and a profile; less for users of whom less is known.
"""

from dataclasses import dataclass

from models.spec import Spec
from schemas.activity import UserActivity
from schemas.records import UserRecord
from workers.merge import forget, merge

NOBODY = UserRecord()


@dataclass(slots=True)
class _User:
    """`now`, and `before`: as it stood when the newest step of time began of which something is known."""

    step: int = -1
    before: UserRecord = NOBODY
    now: UserRecord = NOBODY


class Histories:
    """The record of every user. Not thread-safe."""

    def __init__(self, spec: Spec) -> None:
        self._step_ms = spec.history.time_resolution_ms
        self._users: dict[str, _User] = {}
        self.outcomes = {"accepted": 0, "duplicate": 0, "too_late": 0, "forgotten": 0}

    def __len__(self) -> int:
        """How many users there are."""
        return len(self._users)

    def take(self, activity: UserActivity) -> UserRecord | None:
        """Merge an activity. The user's record from before its step of time; None when it was not accepted.

        For one that comes late the record as it stands: what is newer is cut off by whoever reads it as of its time.
        """
        user = self._users.get(activity.user_id)
        if user is None:
            user = self._users[activity.user_id] = _User()
        step = activity.timestamp_ms // self._step_ms
        if step > user.step:
            user.step, user.before = step, user.now
        before = user.before if step == user.step else user.now
        merged = merge(user.now, (activity,), frozenset())
        user.now = merged.record
        self.outcomes["duplicate"] += merged.duplicates
        self.outcomes["too_late"] += merged.too_late
        self.outcomes["forgotten"] += merged.forgotten
        self.outcomes["accepted"] += merged.accepted
        return before if merged.accepted else None

    def forget(self, user_id: str, taken_ms: int) -> None:
        """Take in a tombstone, which the broker took at `taken_ms`."""
        user = self._users.setdefault(user_id, _User())
        user.now = user.before = forget(user.now, taken_ms)
