"""Users' profiles as of a time: as stored in records, or straight from a log, as records would have kept them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.event_log import EventLog
from models.spec import Spec
from schemas.records import MAX_PROFILE_FIELDS, ProfileField, encode_value, newest_fields, profile_keeps

_Change = tuple[int, bytes, str, Any]
"""(timestamp_ms, encoded value, field name, value)"""


def visible_profile(profile: Sequence[ProfileField], before_ms: int, spec: Spec) -> dict[str, Any]:
    """The fields of a stored profile that were set in a step of time before that of `before_ms`."""
    step_ms = spec.history.time_resolution_ms
    return {name: value for name, value, time_ms in profile if time_ms // step_ms < before_ms // step_ms}


def profiles_at(
    log: EventLog, user: NDArray[np.int64], limit_ms: NDArray[np.int64], spec: Spec
) -> list[dict[str, Any]]:
    """What the spec names of the profiles of R requests: `user` int64[R], `limit_ms` int64[R], before which it was set.

    Of each field the newest value; of equal times the greater encoded one. What a record does not keep is left out.
    """
    changes: dict[int, list[_Change]] = {}
    for who, time_ms, attributes in log.profiles:
        encoded = [(time_ms, encode_value(value), name, value) for name, value in attributes.items()]
        changes.setdefault(who, []).extend(change for change in encoded if profile_keeps(change[2], change[1]))
    for who, of_user in changes.items():
        of_user.sort(key=lambda change: change[:2])
        if len({name for _, _, name, _ in of_user}) <= MAX_PROFILE_FIELDS:  # others' fields push out none of the spec's
            changes[who] = [change for change in of_user if change[2] in spec.profile]
    return [_at(changes.get(who, ()), limit, spec) for who, limit in zip(user.tolist(), limit_ms.tolist(), strict=True)]


def _at(changes: Sequence[_Change], limit_ms: int, spec: Spec) -> dict[str, Any]:
    fields = {name: (time_ms, value) for time_ms, _, name, value in changes if time_ms < limit_ms}
    kept = newest_fields({name: time_ms for name, (time_ms, _) in fields.items()})
    return {name: fields[name][1] for name in kept if name in spec.profile}
