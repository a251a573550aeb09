"""`recall dead-letters list`: what could not be processed, and why."""

import base64
import heapq
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

import orjson
import typer

from workers.cli.console import Working, cells, columns, harmless, results
from workers.cli.running import run
from workers.cli.since import since_ms
from workers.clock import SystemClock
from workers.dead_letter_topic import DeadLetterTopic, Marks, Stored, Wanted
from workers.local.discover import with_local_stack
from workers.settings import Settings, load_settings

SHOWN_BYTES = 60
COUNT_EVERY = 10_000

Topic = Annotated[str | None, typer.Option(help="Only those that came from this topic.")]
Reason = Annotated[str | None, typer.Option("--reason", "--code", help="Only those with this error code.")]
Since = Annotated[str | None, typer.Option(help="Only those written since then: 90s, 10m, 2h, 7d, or a time.")]


def list_(
    limit: Annotated[int, typer.Option(min=1, help="How many of the newest.")] = 20,
    topic: Topic = None,
    reason: Reason = None,
    since: Since = None,
    full: Annotated[bool, typer.Option("--full", help="Each with its whole key, headers and value.")] = False,
    replayed: Annotated[bool, typer.Option("--replayed", help="Also those that were replayed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the newest dead letters, oldest first; those that were replayed are left out."""
    wanted = Wanted(topic, reason, since_ms(since, SystemClock().now_ms()))
    settings = with_local_stack(load_settings())
    with Working("reading") as working:
        found = run(_newest(settings, wanted, limit, working, with_replayed=replayed))
    if as_json:
        letters = [as_dict(stored) for stored in found.newest]
        print(orjson.dumps({"count": found.count, "replayed": found.replayed, "dead_letters": letters}).decode())
    elif not found.count:
        print("no dead letters" + _left_out(found))
    else:
        _print_full(found.newest) if full else _print_table(found.newest)
        print(f"{len(found.newest)} of {found.count} dead letters" + _left_out(found))


class _Found:
    """What one reading of the topic has found: how many there are, and the newest of them."""

    def __init__(self, limit: int) -> None:
        self.count = 0
        self.replayed = 0  # and left out
        self._limit = limit
        self._heap: list[tuple[int, int, int, Stored]] = []

    def take(self, stored: Stored) -> None:
        """One that is to be shown, if it is among the newest."""
        self.count += 1
        entry = (stored.written_ms, stored.partition, stored.offset, stored)
        if len(self._heap) < self._limit:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)

    @property
    def newest(self) -> list[Stored]:
        """Oldest first, by the broker's time."""
        return [entry[-1] for entry in sorted(self._heap)]


async def _newest(settings: Settings, wanted: Wanted, limit: int, working: Working, *, with_replayed: bool) -> _Found:
    """Read the topic; once more when there were marks, as they stand behind their letters. `limit` bounds memory."""
    async with DeadLetterTopic(settings, wanted.since_ms) as topic:
        marks = Marks(topic.spans)
        while True:
            known, read, found = marks.complete, 0, _Found(limit)
            async for stored in topic.letters(marks):
                read += 1
                if read % COUNT_EVERY == 0:
                    working.update(f"reading, {read:,} dead letters")
                if not wanted.matches(settings, stored.letter):
                    continue
                if stored.replayed and not with_replayed:
                    found.replayed += 1
                else:
                    found.take(stored)
            if known or not marks.count:
                return found


def _left_out(found: _Found) -> str:
    return f"; {found.replayed} more were replayed (--replayed)" if found.replayed else ""


def as_dict(stored: Stored) -> dict[str, Any]:
    """Bytes as text where they are UTF-8, else in base64 under `..._base64`."""
    letter = stored.letter
    fields = {name: getattr(letter, name) for name in letter.__struct_fields__ if name not in {"key", "value"}}
    fields["headers"] = [[name, (value or b"").decode(errors="replace")] for name, value in letter.headers]
    if any(_text(value) is None for _, value in letter.headers):
        fields["headers_base64"] = [[name, _base64(value)] for name, value in letter.headers]
    for name, data in (("key", letter.key), ("value", letter.value)):
        text = _text(data)
        if data is None or text is not None:
            fields[name] = text
        else:
            fields[f"{name}_base64"] = _base64(data)
    place = {"partition": stored.partition, "offset": stored.offset, "written_ms": stored.written_ms}
    history = {"replayed": stored.replayed, "replays": stored.replays, "replayed_from": stored.replayed_from}
    return fields | {"letter": place} | history


def _text(data: bytes | None) -> str | None:
    try:
        return None if data is None else data.decode()
    except UnicodeDecodeError:
        return None


def _base64(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def _print_table(letters: list[Stored]) -> None:
    table = columns("time", "topic", "offset", "code", "replays", "message", "key", "value")
    for stored in letters:
        letter = stored.letter
        event = (_shown(letter.key), _shown(letter.value))
        table.add_row(*cells(*_place(stored), letter.code, _replays(stored), letter.message, *event))
    results().print(table)


def _print_full(letters: list[Stored]) -> None:
    """One line per part of a letter, nothing cut. Control characters are replaced; --json has every byte."""
    for stored in letters:
        for line in _lines(stored):
            print(harmless(line))
        print()


def _lines(stored: Stored) -> Iterator[str]:
    letter = stored.letter
    yield "  ".join((*_place(stored), letter.code, letter.message))
    if stored.replays:
        yield f"replays  {_replays(stored)}, the last time from dead letter {stored.replayed_from}"
    if stored.replayed:
        yield "replayed"
    yield f"key      {_whole(letter.key)}"
    for name, value in letter.headers:
        yield f"header   {name}: {_whole(value)}"
    yield "value    " + ("too large to be carried" if letter.value_omitted else _whole(letter.value))


def _place(stored: Stored) -> tuple[str, str, str]:
    letter = stored.letter
    time = datetime.fromtimestamp(stored.written_ms / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")
    return time, letter.topic, f"{letter.partition}:{letter.offset}"


def _replays(stored: Stored) -> str:
    return str(stored.replays) if stored.replays else ""


def _whole(data: bytes | None) -> str:
    text = _text(data)
    return "null" if data is None else f"base64 {_base64(data)}" if text is None else text


def _shown(data: bytes | None) -> str:
    if data is None:
        return "null"
    text = data[:SHOWN_BYTES].decode(errors="replace")
    return text + ("..." if len(data) > SHOWN_BYTES else "")
