"""Situations of docs/cli.md of `recall dead-letters`: what makes them true, and the commands."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from schemas.dead_letter import DeadLetter, to_headers
from tests.e2e.cli import Done, Place, Running, case
from tests.e2e.cli_cases_live import Ready
from workers.clock import SystemClock
from workers.kafka_client import produce

CAP = 2


def with_letters(ready: Ready) -> Place:
    """Two letters: an activity, and an item's update that was too large to be carried."""
    now_ms = SystemClock().now_ms()
    letters = [
        DeadLetter(
            topic=ready.settings.topic(topic),
            partition=0,
            offset=0,
            stage="s",
            code="not_json",
            message="m",
            timestamp_ms=now_ms,
            record_timestamp_ms=now_ms,
            key=b"k",
            value=None if omitted else b"v",
            value_omitted=omitted,
        )
        for topic, omitted in (("user-activity", False), ("item-updates", True))
    ]
    messages = [(letter.key, letter.value, to_headers(letter)) for letter in letters]
    asyncio.run(produce(ready.settings, ready.settings.topic("recall-dead-letters"), messages))
    return ready.place


def replayed(ready: Ready) -> Place:
    """The same, after the one that may be replayed was."""
    place = with_letters(ready)
    done = place.recall("dead-letters", "replay", "--yes")
    assert done.code == 0, done
    return place


@contextmanager
def paused(ready: Ready) -> Iterator[Running]:
    """A worker that has more dead letters than its cap."""
    place = ready.place
    (place.folder / "rubbish.jsonl").write_bytes(b"rubbish\n" * (CAP + 1))
    sent = place.recall("send", "activity", "rubbish.jsonl", "--unchecked")
    assert sent.code == 0, sent
    worker = place.with_(RECALL_DEAD_LETTERS_PER_MINUTE=str(CAP)).start("worker", "activity")
    try:
        worker.until("dead letters paused")
        yield worker
    finally:
        worker.process.kill()


@case("`dead-letters list`, `dead-letters replay`", "`--since` is neither a duration nor a time")
def _(idle: Place) -> list[Done]:
    return idle.each(*(["dead-letters", command, "--since", "yesterday"] for command in ("list", "replay")))


@case("`dead-letters list`, `dead-letters replay`", "there are none")
def _(ready: Ready) -> list[Done]:
    return ready.place.each(["dead-letters", "list", "--since", "7d"], ["dead-letters", "replay", "--yes"])


@case("`dead-letters list`, `dead-letters list --full`", "there are some")
def _(ready: Ready) -> list[Done]:
    return with_letters(ready).each(["dead-letters", "list"], ["dead-letters", "list", "--full"])


@case("`dead-letters replay`", "there are some: nothing is sent")
def _(ready: Ready) -> list[Done]:
    place = with_letters(ready)
    return [place.recall("dead-letters", "replay") for _ in range(2)]


@case("`dead-letters replay --yes`", "there are some")
def _(ready: Ready) -> list[Done]:
    return with_letters(ready).each(["dead-letters", "replay", "--yes"])


@case("`dead-letters replay --yes`", "they were replayed before")
def _(ready: Ready) -> list[Done]:
    return replayed(ready).each(["dead-letters", "replay", "--yes"])


@case("`dead-letters list`", "some were replayed")
def _(ready: Ready) -> list[Done]:
    return replayed(ready).each(["dead-letters", "list"])


@case("`worker`", "more dead letters in a minute than its cap: pauses; at SIGTERM")
def _(ready: Ready) -> list[Done]:
    with paused(ready) as worker:
        return [worker.signal(signal.SIGTERM).done()]


@case("`dead-letters resume`", "a worker has paused")
def _(ready: Ready) -> list[Done]:
    with paused(ready) as worker:
        done = ready.place.recall("dead-letters", "resume")
        worker.until("dead letters resumed")
        worker.until("worker ready")
        ended = worker.signal(signal.SIGTERM).done()
        assert ended.code == 0, ended
        return [done]
