"""From a record that cannot be processed to a message for the dead-letter topic: the original bytes, untouched."""

from typing import Any

from schemas.dead_letter import DeadLetter, to_headers
from workers.publisher import Outgoing
from workers.transport import MAX_REQUEST_BYTES


def dead_letter(record: Any, *, stage: str, code: str, message: str, now_ms: int) -> Outgoing:
    """The message for one Kafka record; a value that would not fit is left out and its place told by the headers."""
    letter = DeadLetter(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        stage=stage,
        code=code,
        message=message,
        timestamp_ms=now_ms,
        key=record.key,
        value=record.value,
        headers=tuple(record.headers),
        record_timestamp_ms=record.timestamp,
    )
    outgoing = Outgoing(key=letter.key, value=letter.value, headers=to_headers(letter))
    if outgoing.size_bytes() <= MAX_REQUEST_BYTES:
        return outgoing
    omitted = DeadLetter(
        topic=letter.topic,
        partition=letter.partition,
        offset=letter.offset,
        stage=letter.stage,
        code=letter.code,
        message=letter.message,
        timestamp_ms=letter.timestamp_ms,
        key=None if letter.key is not None and len(letter.key) > MAX_REQUEST_BYTES // 4 else letter.key,
        value=None,
        value_omitted=True,
        record_timestamp_ms=letter.record_timestamp_ms,
    )
    return Outgoing(key=omitted.key, value=None, headers=to_headers(omitted))
