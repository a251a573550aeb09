"""One record of user-activity as its pipeline takes it."""

from dataclasses import dataclass
from typing import Any

from schemas import codec
from schemas.activity import UserActivity

NO_LOG = -1


@dataclass(frozen=True, slots=True)
class ActivityEvent:
    """A readable record: an activity, or None to forget the user. `taken_ms` is the broker's time.

    `partition` and `offset` say where it came from; what came from no log is not counted into popularity.
    """

    user_id: str
    activity: UserActivity | None
    taken_ms: int
    partition: int = NO_LOG
    offset: int = NO_LOG


def decode_activity(record: Any) -> ActivityEvent:
    """One record of user-activity; a null value forgets the user named by the key. Raises DecodeError."""
    if record.value is None:
        return ActivityEvent(codec.decode_key(record.key), None, record.timestamp, record.partition, record.offset)
    activity = codec.decode_activity(record.value, record_timestamp_ms=record.timestamp)
    return ActivityEvent(activity.user_id, activity, record.timestamp, record.partition, record.offset)
