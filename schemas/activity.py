"""The event of topic `user-activity`: one thing a user did, or a change of the user's profile."""

from typing import Annotated, Any

from msgspec import Meta, Struct

MAX_ID_BYTES = 256
MAX_TIMESTAMP_MS = 253_402_300_799_999  # the end of the year 9999

# The length in bytes is checked by the codec: msgspec's max_length counts characters.
Id = Annotated[str, Meta(min_length=1, max_length=MAX_ID_BYTES)]
TimestampMs = Annotated[int, Meta(ge=0, le=MAX_TIMESTAMP_MS)]


class UserActivity(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One activity. `event_id` is unique per user for ever; `timestamp_ms` is the event time, epoch ms UTC."""

    event_id: Id
    user_id: Id
    action: Id
    timestamp_ms: TimestampMs
    item_id: Id | None = None
    value: float | None = None  # rating, dwell seconds, ...
    attributes: dict[str, Any] | None = None  # profile values to merge, the newest time of each wins
    context: dict[str, Any] | None = None
