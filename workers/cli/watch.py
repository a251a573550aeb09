"""`recall watch`: candidate lists as they come."""

import asyncio
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError

from schemas import codec
from schemas.recall import CandidateList, Status
from workers.cli.console import harmless, reader_gone, stop_printing
from workers.cli.running import run
from workers.errors import ConfigurationError
from workers.kafka_client import ANSWERS_WITHIN_S, connected, require_topics
from workers.kafka_login import connection
from workers.local.discover import with_local_stack
from workers.settings import Settings, load_settings

QUIET_S = 1.0  # without a record for so long, the broker is asked whether it is there
HEAD = 3  # how many items of a list a person is shown


def watch(
    user: Annotated[list[str] | None, typer.Option(help="Only this user's; may be repeated.")] = None,
    status: Annotated[list[Status] | None, typer.Option(help="Only with this status; may be repeated.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="End after so many.")] = None,
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="First those that Kafka still holds.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print each answer as it stands in the topic.")] = False,
) -> None:
    """Print candidate lists as they come, until Ctrl-C. Lists that came before are left out."""
    try:
        users = frozenset(each.encode() for each in user or [])
    except UnicodeEncodeError as error:
        raise ConfigurationError("an argument is not UTF-8 text") from error
    watching = Watching(users, frozenset(status or []), limit, _print_json if as_json else _print_line)
    try:
        run(_watch(with_local_stack(load_settings()), watching, from_beginning))
    except BrokenPipeError:
        stop_printing()
    finally:
        if watching.unreadable:
            _say(f"{watching.unreadable} records were no candidate lists")


@dataclass
class Watching:
    """What is wanted (nothing named = everything), and what was seen of it."""

    users: frozenset[bytes]
    statuses: frozenset[Status]
    limit: int | None
    show: Callable[[Any, CandidateList], None]
    shown: int = 0
    unreadable: int = 0

    def take(self, record: Any) -> None:
        """Show a record when it is wanted. The key tells the user, so that most need not be decoded."""
        if self.done() or (self.users and record.key not in self.users):
            return
        try:
            answer = codec.decode_candidates(record.value or b"")
        except codec.DecodeError:
            self.unreadable += 1
            return
        if not self.statuses or answer.status in self.statuses:
            self.show(record, answer)
            self.shown += 1

    def done(self) -> bool:
        """Whether as many were shown as were wanted."""
        return self.limit is not None and self.shown >= self.limit


async def _watch(settings: Settings, watching: Watching, from_beginning: bool) -> None:
    """Read until enough was shown, or until a signal. Raises DependencyUnavailable, ConfigurationError."""
    topic = settings.topic("recall-candidates")
    await require_topics(settings, topic)
    consumer = AIOKafkaConsumer(
        topic,
        **connection(settings),
        group_id=None,  # every partition
        auto_offset_reset="earliest" if from_beginning else "latest",
        enable_auto_commit=False,
    )
    async with connected(settings, consumer):
        for partition in consumer.assignment():
            await consumer.position(partition)  # known from here on: nothing is missed
        reading = asyncio.create_task(_read(settings, consumer, watching))
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, reading.cancel)
        _say(f"listening to {topic} at {settings.kafka_bootstrap}; Ctrl-C ends it")
        with suppress(asyncio.CancelledError):
            await reading


async def _read(settings: Settings, consumer: Any, watching: Watching) -> None:
    """Read on through outages; the client connects again by itself."""
    here = True
    while not (watching.done() or reader_gone()):
        found = await consumer.getmany(timeout_ms=int(QUIET_S * 1000))
        for record in sorted((r for records in found.values() for r in records), key=lambda r: r.timestamp):
            watching.take(record)
        before, here = here, bool(found) or await _answers(consumer)
        if here != before:
            address = settings.kafka_bootstrap
            _say(f"kafka: {address} is back" if here else f"kafka: {address} does not answer; waiting for it")


async def _answers(consumer: Any) -> bool:
    try:
        async with asyncio.timeout(ANSWERS_WITHIN_S):
            await consumer.topics()
    except (KafkaError, TimeoutError):
        return False
    return True


def _print_json(record: Any, _: CandidateList) -> None:
    sys.stdout.buffer.write(record.value.replace(b"\n", b" ") + b"\n")
    sys.stdout.buffer.flush()


def _print_line(record: Any, answer: CandidateList) -> None:
    reasons = f" ({', '.join(answer.reasons)})" if answer.reasons else ""
    field = f" field {answer.error_field}" if answer.error_field else ""
    more = ", ..." if len(answer.item_ids) > HEAD else ""
    parts = (
        datetime.fromtimestamp(record.timestamp / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M:%S"),
        answer.user_id,
        f"{answer.status}{reasons}{field}",
        f"{len(answer.item_ids)} candidates",
        f"{answer.timings_ms.total:.1f} ms",
        answer.model_version or "no model",
        ", ".join(answer.item_ids[:HEAD]) + more,
    )
    print(harmless("  ".join(parts).rstrip()), flush=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
