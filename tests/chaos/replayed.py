"""MovieLens as traffic: what people rated, in its order, in place of what users `one-N` do; the rest is made up."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from models.datasets.dataset import Dataset
from schemas.activity import UserActivity
from tests.chaos.log import ACTIVITY
from tests.chaos.workload import Message, Workload

RECENT_USERS = 50


@dataclass
class Replayed(Workload):
    """Bad and repeated events, bursts, items and requests come as in any; after the last rating all is made up."""

    data: Dataset | None = None
    _recent: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        assert self.data is not None
        self._real = _in_order(self.data)
        self._next_real = next(self._real, None)

    def _acting(self) -> str:
        return super()._acting() if self._next_real is None else self._next_real.user_id

    def _asking(self) -> str:
        return self._random.choice(self._recent) if self._recent else super()._asking()

    def _act(self, user: str, now_ms: int) -> Message:
        if self._next_real is None:
            return super()._act(user, now_ms)
        value = msgspec.json.encode(self._next_real)
        self._next_real = next(self._real, None)
        self._recent = [*self._recent[1 - RECENT_USERS :], user]
        return Message(ACTIVITY, user.encode(), value)


def _in_order(data: Dataset) -> Iterator[UserActivity]:
    """Profiles and ratings by time."""
    profiles, due = sorted(data.profile_activities(), key=lambda activity: activity.timestamp_ms), 0
    for event in data.activities(range(len(data.user))):
        while due < len(profiles) and profiles[due].timestamp_ms < event.timestamp_ms:
            yield profiles[due]
            due += 1
        yield event
    yield from profiles[due:]
