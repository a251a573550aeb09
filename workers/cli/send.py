"""`recall send activity|requests|items [FILE]`: JSON lines to a topic, each checked before it is sent."""

import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, BinaryIO

import orjson
import typer

from schemas import codec
from workers.cli.console import Working
from workers.cli.running import run
from workers.clock import SystemClock
from workers.errors import InvalidInput, RecallError
from workers.kafka_client import Message, produce
from workers.local.discover import with_local_stack
from workers.settings import load_settings


class Kind(StrEnum):
    """What the lines are."""

    ACTIVITY = "activity"
    REQUESTS = "requests"
    ITEMS = "items"


TOPICS = {Kind.ACTIVITY: "user-activity", Kind.REQUESTS: "recall-requests", Kind.ITEMS: "item-updates"}
KEYS = {Kind.ACTIVITY: "user_id", Kind.REQUESTS: "user_id", Kind.ITEMS: "item_id"}


def send(
    kind: Annotated[Kind, typer.Argument(help="Which topic.")],
    file: Annotated[Path | None, typer.Argument(help="JSON lines; standard input when left out.")] = None,
    unchecked: Annotated[bool, typer.Option("--unchecked", help="Send lines as they are, also bad ones.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Send JSON lines as events. Nothing is sent when a line is bad; the first bad one is named with its number."""
    settings = with_local_stack(load_settings())
    with Working("reading") as working:
        lines = _read(file)
        checked = working.each(lambda count: f"checking, {count:,} of {len(lines):,} lines", lines)
        messages: list[Message] = [(_key(kind, line, number, unchecked), line, ()) for number, line in checked]
        taken = working.each(lambda count: f"sending, {count:,} of {len(lines):,} events", messages)
        sent = run(produce(settings, settings.topic(TOPICS[kind]), taken))
    if as_json:
        print(orjson.dumps({"sent": sent, "topic": settings.topic(TOPICS[kind])}).decode())
    else:
        print(f"{sent} {'event' if sent == 1 else 'events'} sent to {settings.topic(TOPICS[kind])}")


def _read(file: Path | None) -> list[tuple[int, bytes]]:
    def lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield number, line.strip()

    if file is None:
        return list(lines(sys.stdin.buffer))
    try:
        with file.open("rb") as stream:
            return list(lines(stream))
    except OSError as error:
        raise RecallError(f"{file}: {error.strerror}") from error


def _key(kind: Kind, line: bytes, number: int, unchecked: bool) -> bytes | None:
    """The message key of one line, which is checked as a worker will check it."""
    try:
        if not unchecked:
            _check(kind, line)
        key = orjson.loads(line)[KEYS[kind]]
        return key.encode() if isinstance(key, str) else None
    except codec.DecodeError as error:
        raise InvalidInput(error.code, f"line {number}: {error}; nothing was sent") from error
    except (ValueError, KeyError, TypeError):
        return None  # only an unchecked line gets here


def _check(kind: Kind, line: bytes) -> None:
    if kind is Kind.ACTIVITY:
        codec.decode_activity(line, record_timestamp_ms=SystemClock().now_ms())
    elif kind is Kind.REQUESTS:
        codec.decode_request(line)
    else:
        codec.decode_item(line, None)
