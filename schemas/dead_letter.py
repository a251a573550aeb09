"""A dead letter: the original key, value and headers of an event that cannot be processed, and why, as headers."""

from collections.abc import Iterable, Sequence

from msgspec import Struct

Headers = tuple[tuple[str, bytes], ...]

TOPIC = "dlq.topic"
PARTITION = "dlq.partition"
OFFSET = "dlq.offset"
STAGE = "dlq.stage"
ERROR_CODE = "dlq.error.code"
ERROR_MESSAGE = "dlq.error.message"
TIMESTAMP_MS = "dlq.timestamp_ms"
RECORD_TIMESTAMP_MS = "dlq.record_timestamp_ms"
VALUE_OMITTED = "dlq.value_omitted"
PREFIX = "dlq."

MAX_MESSAGE_BYTES = 1024


class DeadLetter(Struct, frozen=True, kw_only=True):
    """One event and its error. `stage` is the agent that gave it up; `value_omitted` = it was too large to carry.

    `timestamp_ms` is when it was given up, `record_timestamp_ms` when the broker took the event (0 = not known).
    """

    topic: str
    partition: int
    offset: int
    stage: str
    code: str
    message: str
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    value_omitted: bool = False
    record_timestamp_ms: int = 0


def to_headers(letter: DeadLetter) -> Headers:
    """The original headers, then ours."""
    own = {
        TOPIC: letter.topic,
        PARTITION: str(letter.partition),
        OFFSET: str(letter.offset),
        STAGE: letter.stage,
        ERROR_CODE: letter.code,
        ERROR_MESSAGE: _one_line(letter.message),
        TIMESTAMP_MS: str(letter.timestamp_ms),
    }
    if letter.record_timestamp_ms:
        own[RECORD_TIMESTAMP_MS] = str(letter.record_timestamp_ms)
    if letter.value_omitted:
        own[VALUE_OMITTED] = "true"
    kept = tuple((name, value) for name, value in letter.headers if not name.startswith(PREFIX))
    return kept + tuple((name, text.encode()) for name, text in own.items())


def from_message(key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]]) -> DeadLetter:
    """Read a record of the dead-letter topic. Raises ValueError when its headers are not ours."""
    own = {name: (text or b"").decode(errors="replace") for name, text in headers if name.startswith(PREFIX)}
    try:
        return DeadLetter(
            topic=own[TOPIC],
            partition=int(own[PARTITION]),
            offset=int(own[OFFSET]),
            stage=own[STAGE],
            code=own[ERROR_CODE],
            message=own[ERROR_MESSAGE],
            timestamp_ms=int(own[TIMESTAMP_MS]),
            key=key,
            value=value,
            headers=_without_own(headers),
            value_omitted=VALUE_OMITTED in own,
            record_timestamp_ms=int(own.get(RECORD_TIMESTAMP_MS, 0)),
        )
    except (KeyError, ValueError) as error:
        raise ValueError(f"not a dead letter: header {error} is missing or wrong") from error


def _without_own(headers: Iterable[tuple[str, bytes]]) -> Headers:
    return tuple((name, value) for name, value in headers if not name.startswith(PREFIX))


def _one_line(message: str) -> str:
    """At most MAX_MESSAGE_BYTES of UTF-8 in one line."""
    return " ".join(message.split()).encode(errors="replace")[:MAX_MESSAGE_BYTES].decode(errors="ignore")
