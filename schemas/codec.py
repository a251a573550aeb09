"""Bytes to events and back. Raises nothing but DecodeError, whatever the bytes.

Optional fields: null equals absent. Unknown fields are ignored. Objects of free form (attributes, context, a filter's
value) are bounded, so that whatever was accepted can be stored and written again.
"""

import re
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any, TypeVar

import msgspec
import numpy as np
import orjson

from schemas.activity import MAX_ID_BYTES, UserActivity
from schemas.items import ItemUpdate
from schemas.recall import CandidateList, RecallRequest

MAX_VALUE_BYTES = 1_000_000
MAX_DEPTH = 8
MAX_FUTURE_MS = 300_000
MAX_FLOAT32 = 3.4028235e38
MIN_INT64, MAX_INT64 = -(2**63), 2**63 - 1

_SURELY_FITS = MAX_ID_BYTES // 4  # characters: at most four bytes each
_PLAIN = frozenset({str, float, bool, type(None)})

Event = UserActivity | ItemUpdate | RecallRequest
E = TypeVar("E", UserActivity, ItemUpdate, RecallRequest)


class ErrorCode(StrEnum):
    """Why an event cannot be processed: the stable values of the header `dlq.error.code`."""

    NOT_JSON = "not_json"
    NOT_UTF8 = "not_utf8"
    TOO_DEEP = "too_deep"
    WRONG_TYPE = "wrong_type"
    MISSING_FIELD = "missing_field"
    INVALID_ID = "invalid_id"
    OUT_OF_RANGE = "out_of_range"
    UNKNOWN_OP = "unknown_op"
    VALUE_TOO_LARGE = "value_too_large"
    UNEXPECTED_NULL = "unexpected_null"
    FUTURE_TIMESTAMP = "future_timestamp"
    KEY_MISMATCH = "key_mismatch"
    INVALID_KEY = "invalid_key"
    # raised behind the codec, by the pipelines
    STALE_VERSION = "stale_version"
    WRONG_PARTITION = "wrong_partition"
    HASH_COLLISION = "hash_collision"
    INVALID_EMBEDDING = "invalid_embedding"
    TOWER_OUTPUT = "tower_output"
    INDEX_REFUSED = "index_refused"
    RECORD_UNREADABLE = "record_unreadable"
    ANSWER_TOO_LARGE = "answer_too_large"


class DecodeError(ValueError):
    """An event that cannot be read. `code` is stable; `field` is the path of the guilty field, when there is one."""

    def __init__(self, code: ErrorCode, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.field = field


class _Identity(msgspec.Struct):
    request_id: Any = None
    user_id: Any = None


_decode_activity = msgspec.json.Decoder(UserActivity).decode
_decode_item = msgspec.json.Decoder(ItemUpdate).decode
_decode_request = msgspec.json.Decoder(RecallRequest).decode
_decode_identity = msgspec.json.Decoder(_Identity).decode
_decode_answer = msgspec.json.Decoder(CandidateList).decode
_encode_event = msgspec.json.Encoder().encode

_ABSENT = (b"", b"null")
_decode_fields: dict[type, Callable[[bytes], Any]] = {
    kind: msgspec.json.Decoder(
        msgspec.defstruct(kind.__name__, [(name, msgspec.Raw, msgspec.Raw()) for name in kind.__struct_fields__])
    ).decode
    for kind in (UserActivity, ItemUpdate, RecallRequest)
}
"""Each event with its fields as the bytes they are written in."""

_PATH = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")
_MISSING = re.compile(r"missing required field `(?P<name>[^`]*)`")


def decode_activity(
    value: bytes | None, *, record_timestamp_ms: int, max_future_ms: int = MAX_FUTURE_MS
) -> UserActivity:
    """Read an activity; one that happened more than `max_future_ms` after its record was taken is refused."""
    event = _decode(_decode_activity, UserActivity, value)
    _check_ids(event_id=event.event_id, user_id=event.user_id, action=event.action, item_id=event.item_id)
    if event.timestamp_ms > record_timestamp_ms + max_future_ms:
        ahead_ms = event.timestamp_ms - record_timestamp_ms
        raise DecodeError(ErrorCode.FUTURE_TIMESTAMP, f"timestamp_ms is {ahead_ms} ms in the future", "timestamp_ms")
    if event.value is not None and abs(event.value) > MAX_FLOAT32:
        raise DecodeError(ErrorCode.OUT_OF_RANGE, "value does not fit into 32 bits", "value")
    _check_object("attributes", event.attributes)
    _check_object("context", event.context)
    return event


def decode_item(value: bytes | None, key: bytes | None = None) -> ItemUpdate:
    """Read an item update; with `key` given, it must be the item's id."""
    event = _decode(_decode_item, ItemUpdate, value)
    _check_ids(item_id=event.item_id, embedding_model=event.embedding_model)
    if key is not None and key != event.item_id.encode():
        raise DecodeError(ErrorCode.KEY_MISMATCH, "the message key is not the item_id", "item_id")
    _check_object("attributes", event.attributes)
    return event


def decode_request(value: bytes | None) -> RecallRequest:
    """Read a recall request."""
    event = _decode(_decode_request, RecallRequest, value)
    _check_ids(
        request_id=event.request_id, user_id=event.user_id, scene=event.scene, after_event_id=event.after_event_id
    )
    for name, item_ids in (("exclude_items", event.exclude_items), ("anchor_items", event.anchor_items)):
        for position, item_id in enumerate(item_ids):
            _check_ids(**{f"{name}[{position}]": item_id})
    for position, clause in enumerate(event.filter):
        _check_ids(**{f"filter[{position}].field": clause.field})
        _check_object(f"filter[{position}].value", [clause.value], depth=0)
    _check_object("context", event.context)
    return event


def identify_request(value: bytes | None) -> tuple[str, str] | None:
    """(request_id, user_id) of a request that cannot be read otherwise, so that it is answered; None without them."""
    try:
        identity = _decode_identity(value or b"")
        if not isinstance(identity.request_id, str) or not isinstance(identity.user_id, str):
            return None
        _check_ids(request_id=identity.request_id, user_id=identity.user_id)
    except (DecodeError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return identity.request_id, identity.user_id


def decode_key(key: bytes | None) -> str:
    """The id in a message key: what a null value is about."""
    try:
        text = (key or b"").decode()
    except UnicodeDecodeError as error:
        raise DecodeError(ErrorCode.INVALID_KEY, "the message key is not UTF-8") from error
    if not 0 < len(key or b"") <= MAX_ID_BYTES:
        raise DecodeError(ErrorCode.INVALID_KEY, f"the message key has {len(key or b'')} bytes, 1 to 256 are an id")
    return text


def decode_candidates(value: bytes) -> CandidateList:
    """Read an answer; scores come as a list of float."""
    try:
        answer = _decode_answer(value)
        return msgspec.structs.replace(answer, scores=msgspec.convert(answer.scores, list[float]))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(ErrorCode.NOT_JSON, f"not a candidate list: {error}") from error


def encode_event(event: Event) -> bytes:
    """Write an event; fields at their default are left out."""
    return _encode_event(event)


def encode_candidates(answer: CandidateList) -> bytes:
    """Write an answer, scores straight from their float32 array. Raises ValueError for a score that is not finite."""
    scores = np.ascontiguousarray(answer.scores, dtype=np.float32)
    if not np.isfinite(scores).all():  # orjson would write null in silence
        raise ValueError(f"answer to {answer.request_id} has a score that is not finite")
    removed, timings = answer.removed, answer.timings_ms
    return orjson.dumps(
        {
            "request_id": answer.request_id,
            "user_id": answer.user_id,
            "scene": answer.scene,
            "status": answer.status,
            "reasons": answer.reasons,
            "error_field": answer.error_field,
            "item_ids": answer.item_ids,
            "scores": scores,
            "sources": answer.sources,
            "model_version": answer.model_version,
            "collection": answer.collection,
            "feature_age_ms": answer.feature_age_ms,
            "removed": {
                "seen": removed.seen,
                "excluded": removed.excluded,
                "deleted": removed.deleted,
                "duplicate": removed.duplicate,
            },
            "timings_ms": {
                "queue": timings.queue,
                "features": timings.features,
                "tower": timings.tower,
                "search": timings.search,
                "total": timings.total,
                "reused": timings.reused,
            },
            "timestamp_ms": answer.timestamp_ms,
        },
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


def _decode(decode: Callable[[bytes], E], kind: type[E], value: bytes | None) -> E:
    if value is None:
        raise DecodeError(ErrorCode.UNEXPECTED_NULL, "a null value has no meaning here")
    if len(value) > MAX_VALUE_BYTES:
        raise DecodeError(ErrorCode.VALUE_TOO_LARGE, f"{len(value)} bytes, at most {MAX_VALUE_BYTES} are allowed")
    try:
        try:
            return decode(value)
        except msgspec.ValidationError as error:
            if "got `null`" not in str(error):
                raise
            return decode(_without_nulls(value, kind))  # null equals absent
    except msgspec.ValidationError as error:
        raise _translate(str(error)) from error
    except RecursionError as error:
        raise DecodeError(ErrorCode.TOO_DEEP, "nested too deeply") from error
    except UnicodeDecodeError as error:
        raise DecodeError(ErrorCode.NOT_UTF8, f"not UTF-8 at byte {error.start}") from error
    except msgspec.DecodeError as error:
        code = ErrorCode.NOT_UTF8 if "utf-8" in str(error).lower() else ErrorCode.NOT_JSON
        raise DecodeError(code, str(error)) from error


def _without_nulls(value: bytes, kind: type[E]) -> bytes:
    """The same object without fields that are null; unknown fields go too, unread as everywhere."""
    fields = _decode_fields[kind](value)
    texts = ((name, bytes(getattr(fields, name))) for name in kind.__struct_fields__)
    return b"{" + b",".join(b'"%b":%b' % (name.encode(), text) for name, text in texts if text not in _ABSENT) + b"}"


def _translate(message: str) -> DecodeError:
    """msgspec's message as a DecodeError with code and field."""
    at = _PATH.search(message)
    path = at["path"].partition("[...]")[0] if at else ""  # inside an object of free form: the object is guilty
    missing = _MISSING.search(message)
    if missing:
        field = f"{path}.{missing['name']}" if path else missing["name"]
        return DecodeError(ErrorCode.MISSING_FIELD, message, field)
    field = path or None
    if "got `null`" in message:
        return DecodeError(ErrorCode.UNEXPECTED_NULL, message, field)
    if "Invalid enum value" in message:
        return DecodeError(ErrorCode.UNKNOWN_OP, message, field)
    if "`str` of length" in message:
        return DecodeError(ErrorCode.INVALID_ID, message, field)
    if re.search(r"`\w+` (<|>|of length)|out of range", message):
        return DecodeError(ErrorCode.OUT_OF_RANGE, message, field)
    return DecodeError(ErrorCode.WRONG_TYPE, message, field)


def _check_ids(**ids: str | None) -> None:
    """Bounds in bytes, which msgspec does not count; text that cannot be written as UTF-8 is refused."""
    for name, value in ids.items():
        if value is None or 0 < len(value) <= _SURELY_FITS:
            continue
        if not value:
            raise DecodeError(ErrorCode.INVALID_ID, f"{name} is empty", name)
        try:
            length = len(value.encode())
        except UnicodeEncodeError as error:
            raise DecodeError(ErrorCode.INVALID_ID, f"{name} is not UTF-8 text", name) from error
        if length > MAX_ID_BYTES:
            raise DecodeError(ErrorCode.INVALID_ID, f"{name} has {length} bytes, at most 256 are allowed", name)


def _check_object(name: str, value: dict[str, Any] | list[Any] | None, depth: int = 1) -> None:
    """A value of free form: bounded in depth, integers of at most 64 bits."""
    if value is None:
        return
    if depth > MAX_DEPTH:
        raise DecodeError(ErrorCode.TOO_DEEP, f"{name} is nested more than {MAX_DEPTH} deep", name)
    elements: Iterable[Any] = value.values() if isinstance(value, dict) else value
    for element in elements:
        kind = type(element)
        if kind in _PLAIN:
            continue
        if kind is not int:
            _check_object(name, element, depth + 1)
        elif not MIN_INT64 <= element <= MAX_INT64:
            raise DecodeError(ErrorCode.OUT_OF_RANGE, f"{name}: an integer does not fit into 64 bits", name)
