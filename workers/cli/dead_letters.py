"""`recall dead-letters list`: what could not be processed, and why."""

import asyncio
import base64
import contextlib
from datetime import UTC, datetime
from typing import Annotated, Any

import orjson
import typer
from aiokafka import AIOKafkaConsumer

from schemas.dead_letter import DeadLetter, from_message
from workers.cli.console import cells, columns, results
from workers.errors import DependencyTimeout
from workers.kafka_client import connected, require_topics
from workers.local.discover import with_local_stack
from workers.settings import Settings, load_settings

SHOWN_BYTES = 60
SILENCE_S = 10.0  # without a record for so long, reading is given up


def list_(
    limit: Annotated[int, typer.Option(min=1, help="How many of the newest.")] = 20,
    topic: Annotated[str | None, typer.Option(help="Only those that came from this topic.")] = None,
    code: Annotated[str | None, typer.Option(help="Only those with this error code.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the newest dead letters, oldest first."""
    settings = with_local_stack(load_settings())
    letters = [
        letter
        for letter in asyncio.run(read_dead_letters(settings))
        if (topic is None or letter.topic in {topic, settings.topic(topic)}) and (code is None or letter.code == code)
    ]
    shown = sorted(letters, key=lambda letter: letter.timestamp_ms)[-limit:]
    if as_json:
        print(orjson.dumps({"count": len(letters), "dead_letters": [_as_dict(letter) for letter in shown]}).decode())
        return
    if not letters:
        print("no dead letters")
        return
    table = columns("time", "topic", "offset", "code", "message", "key", "value")
    for letter in shown:
        time = datetime.fromtimestamp(letter.timestamp_ms / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")
        offset = f"{letter.partition}:{letter.offset}"
        event = (_shown(letter.key), _shown(letter.value))
        table.add_row(*cells(time, letter.topic, offset, letter.code, letter.message, *event))
    results().print(table)
    print(f"{len(shown)} of {len(letters)} dead letters")


async def read_dead_letters(settings: Settings) -> list[DeadLetter]:
    """All dead letters that Kafka still holds, by partition and offset; what somebody else wrote there is left out."""
    topic = settings.topic("recall-dead-letters")
    await require_topics(settings, topic)
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=settings.kafka_bootstrap,
        group_id=None,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    letters = []
    async with connected(settings, consumer):
        ends = await consumer.end_offsets(consumer.assignment())
        while any([await consumer.position(partition) < end for partition, end in ends.items()]):
            found = await consumer.getmany(timeout_ms=int(SILENCE_S * 1000))
            if not found:
                raise DependencyTimeout("kafka", f"{topic} gave nothing for {SILENCE_S:.0f} s")
            for record in (record for records in found.values() for record in records):
                with contextlib.suppress(ValueError):  # not one of ours
                    letters.append(from_message(record.key, record.value, record.headers))
    return letters


def _as_dict(letter: DeadLetter) -> dict[str, Any]:
    """Bytes as text where they are UTF-8, else in base64 under `..._base64`."""
    fields = {name: getattr(letter, name) for name in letter.__struct_fields__ if name not in {"key", "value"}}
    fields["headers"] = [[name, (value or b"").decode(errors="replace")] for name, value in letter.headers]
    for name, data in (("key", letter.key), ("value", letter.value)):
        try:
            fields[name] = None if data is None else data.decode()
        except UnicodeDecodeError:
            fields[f"{name}_base64"] = base64.b64encode(data or b"").decode()
    return fields


def _shown(data: bytes | None) -> str:
    if data is None:
        return "null"
    text = data[:SHOWN_BYTES].decode(errors="replace")
    return text + ("..." if len(data) > SHOWN_BYTES else "")
