"""Which events can be read, as the table of bad inputs in docs/events.md says, with Python's own JSON."""

import json
from typing import Any

MAX_ID_BYTES = 256
FUTURE_MS = 5 * 60_000
REQUIRED: dict[str, dict[str, type]] = {
    "user-activity": {"event_id": str, "user_id": str, "action": str, "timestamp_ms": int},
    "item-updates": {"item_id": str, "op": str, "timestamp_ms": int},
    "recall-requests": {"request_id": str, "user_id": str},
}
OPTIONAL: dict[str, dict[str, tuple[type, ...]]] = {
    "user-activity": {"item_id": (str,), "value": (int, float), "attributes": (dict,), "context": (dict,)},
    "item-updates": {"attributes": (dict,), "version": (int,)},
    "recall-requests": {"k": (int,), "timeout_ms": (int,), "scene": (str,), "exclude_items": (list,)},
}
IDS = ("event_id", "user_id", "action", "item_id", "request_id", "scene")


class BadEventError(ValueError):
    """Its text is the code of the dead letter."""


def read(topic: str, value: bytes | None, taken_ms: int) -> dict[str, Any]:
    """The event without its nulls. Raises BadEventError."""
    event = parse(value)
    for name, kind in REQUIRED[topic].items():
        if event.get(name) is None:
            raise BadEventError("missing_field")
        _check(event[name], (kind,))
    for name, kinds in OPTIONAL[topic].items():
        if event.get(name) is not None:
            _check(event[name], kinds)
    for name in IDS:
        if name in event and event[name] is not None and not 0 < len(event[name].encode()) <= MAX_ID_BYTES:
            raise BadEventError("invalid_id")
    if topic == "item-updates" and event["op"] not in {"upsert", "delete"}:
        raise BadEventError("unknown_op")
    if topic == "user-activity" and event["timestamp_ms"] > taken_ms + FUTURE_MS:
        raise BadEventError("future_timestamp")
    if topic == "recall-requests" and not (
        1 <= event.get("k", 100) <= 1000 and 1 <= event.get("timeout_ms", 2000) <= 60_000
    ):
        raise BadEventError("out_of_range")
    return {name: found for name, found in event.items() if found is not None}


def identity(value: bytes | None) -> tuple[str, str] | None:
    """(request_id, user_id) where both can be read: such a request is answered, whatever else is wrong with it."""
    try:
        event = parse(value)
    except BadEventError:
        return None
    ids = event.get("request_id"), event.get("user_id")
    if not all(isinstance(each, str) and 0 < len(each.encode()) <= MAX_ID_BYTES for each in ids):
        return None
    return ids  # type: ignore[return-value]


def parse(value: bytes | None) -> dict[str, Any]:
    """A JSON object. Raises BadEventError."""
    if value is None:
        raise BadEventError("unexpected_null")
    try:
        event = json.loads(value.decode())
    except UnicodeDecodeError:
        raise BadEventError("not_utf8") from None
    except ValueError:
        raise BadEventError("not_json") from None
    if not isinstance(event, dict):
        raise BadEventError("wrong_type")
    return event


def _check(value: Any, kinds: tuple[type, ...]) -> None:
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise BadEventError("wrong_type")
