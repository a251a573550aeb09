"""Situations of docs/cli.md of `recall users`: what makes them true, and the commands. See `test_cli_table.py`."""

import asyncio
import signal
import socket
import time
from collections.abc import Callable

import pyarrow as pa
from pyarrow import parquet

from tests.e2e.cli import Done, Place, case
from tests.e2e.cli_cases import EVENT
from tests.e2e.cli_cases_live import Ready, closed
from workers import views
from workers.local.process import free_ports
from workers.local.redis import Redis
from workers.settings import load_settings
from workers.stores.connect import connect
from workers.stores.markers_redis import RedisMarkers
from workers.stores.user_redis import GROUP

ROW = {"event_id": "e", "user_id": "u", "action": "rate", "timestamp_ms": 1}


def without_redis(place: Place, *command: str) -> list[Done]:
    """A Redis that is not there, and one that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent_url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        return [
            place.with_(RECALL_REDIS_URL=closed("redis://")).recall(*command),
            place.with_(RECALL_REDIS_URL=silent_url, RECALL_STORE_TIMEOUT_MS="1000").recall(*command),
        ]


def piped(place: Place, text: str, *command: str) -> Done:
    """A command with this on standard input."""
    running = place.start(*command)
    assert running.process.stdin is not None
    running.process.stdin.write(text)
    return running.done()


# load


@case("`users load`", "a bad line")
def _(ready: Ready) -> list[Done]:
    return ready.place.each(["users", "load", "bad.jsonl"], ["users", "load", "bad.jsonl", "--json"])


@case("`users load --skip-bad`", "a bad line")
def _(ready: Ready) -> list[Done]:
    return ready.place.each(["users", "load", "bad.jsonl", "--skip-bad"])


@case("`users load`", "an activity more than 5 minutes ahead")
def _(ready: Ready) -> list[Done]:
    ahead_ms = time.time_ns() // 1_000_000 + 400_000
    (ready.place.folder / "future.jsonl").write_bytes(EVENT.replace(b":1}", b":%d}" % ahead_ms))
    return ready.place.each(["users", "load", "future.jsonl"])


@case("`users load`", "a file that is no Parquet")
def _(idle: Place) -> list[Done]:
    (idle.folder / "rubbish.parquet").write_bytes(b"rubbish")
    return idle.each(["users", "load", "rubbish.parquet"])


@case("`users load`", "a column is missing")
def _(idle: Place) -> list[Done]:
    some = {name: [value] for name, value in ROW.items() if name != "user_id"}
    parquet.write_table(pa.table(some), idle.folder / "some.parquet")
    return idle.each(["users", "load", "some.parquet"])


@case("`users load`", "Parquet without the extra")
def _(idle: Place) -> list[Done]:
    hidden = idle.folder / "hidden" / "pyarrow"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('no pyarrow')")
    return idle.with_(PYTHONPATH=f"{hidden.parent}").each(["users", "load", "some.parquet"])


@case("`users load`", "an empty file")
def _(ready: Ready) -> list[Done]:
    (ready.place.folder / "empty.jsonl").touch()
    empty = pa.table({name: pa.array([], type=pa.scalar(value).type) for name, value in ROW.items()})
    parquet.write_table(empty, ready.place.folder / "empty.parquet")
    return ready.place.each(["users", "load", "empty.jsonl"], ["users", "load", "empty.parquet"])


@case("`users load`", "standard input")
def _(ready: Ready) -> list[Done]:
    return [piped(ready.place, f"{EVENT.decode()}\n{EVENT.decode()}", "users", "load", "-")]


@case("`users load`", "activity workers have not taken in yet all that Kafka retains")
def _(ready: Ready) -> list[Done]:
    found = ready.place.each(["users", "load", "events.jsonl"], ["users", "load", "events.jsonl", "--json"])

    async def taken_in() -> None:
        client = connect(ready.settings)
        markers = RedisMarkers(client, ready.settings, GROUP)
        await markers.open(1)
        assert await markers.mark(0, "")
        await client.aclose()

    asyncio.run(taken_in())
    after = ready.place.recall("users", "load", "events.jsonl")
    assert (after.code, after.err) == (0, ""), after
    return found


@case("`users load`", "what was loaded before")
def _(ready: Ready) -> list[Done]:
    first = ready.place.recall("users", "load", "activity.jsonl")
    assert first.out.startswith("160 activities of 40 users taken in: 160 accepted\n"), first
    return [ready.place.recall("users", "load", "activity.jsonl")]


@case("`users load`", "Redis does not answer")
def _(idle: Place) -> list[Done]:
    return without_redis(idle, "users", "load", "events.jsonl")


def on_an_evicting_redis(ready: Ready, work: Callable[[Place], list[Done]]) -> list[Done]:
    """A server of the case's own, with an active bundle, that would let records go when it is full."""
    folder = ready.place.folder / "redis"
    server = Redis(folder / "data", folder / "log", folder / "cache")
    server.ports = free_ports(1)
    server.start()
    try:
        server.wait_ready()
        settings = load_settings(redis_url=server.address, namespace=ready.settings.namespace)

        async def prepare() -> None:
            await views.activate(settings, ready.bundle.path, ready.bundle.version)
            client = connect(settings)
            await client.config_set("maxmemory", 10**9)
            await client.config_set("maxmemory-policy", "allkeys-lru")
            await client.aclose()

        asyncio.run(prepare())
        return work(ready.place.with_(RECALL_REDIS_URL=server.address))
    finally:
        server.stop()


@case("`users load`", "Redis would lose records")
def _(ready: Ready) -> list[Done]:
    return on_an_evicting_redis(ready, lambda place: place.each(["users", "load", "events.jsonl"]))


@case("`users load --allow-unsafe`", "Redis would lose records")
def _(ready: Ready) -> list[Done]:
    command = ["users", "load", "events.jsonl", "--allow-unsafe"]
    return on_an_evicting_redis(ready, lambda place: place.each(command))


@case("`users load`", "no bundle is active")
def _(ready: Ready) -> list[Done]:
    return ready.fresh().each(["users", "load", "events.jsonl"])


# forget


@case("`users forget`", "nobody is named")
def _(idle: Place) -> list[Done]:
    return idle.each(["users", "forget"], ["users", "forget", "--wait"])


@case("`users forget`", "an id that is empty, or too long")
def _(idle: Place) -> list[Done]:
    return idle.each(["users", "forget", "u", ""], ["users", "forget", "ü" * 129])


@case("`users forget`", "a bad line")
def _(idle: Place) -> list[Done]:
    found = []
    for line in (b"\xff", b"x" * 257):
        (idle.folder / "ids").write_bytes(b"u\n" + line + b"\n")
        found.append(idle.recall("users", "forget", "--file", "ids"))
    return found


@case("`users forget`", "an empty file")
def _(ready: Ready) -> list[Done]:
    (ready.place.folder / "ids").write_bytes(b"\n\n")
    return ready.place.each(["users", "forget", "--file", "ids"])


@case("`users forget`", "they are named")
def _(ready: Ready) -> list[Done]:
    return ready.place.each(["users", "forget", "u", "v", "u"])


@case("`users forget --wait`", "they are named")
def _(ready: Ready) -> list[Done]:
    worker = ready.place.start("worker", "activity")
    try:
        return [ready.place.recall("users", "forget", "u", "v", "--wait")]
    finally:
        ended = worker.signal(signal.SIGTERM).done()
        assert ended.code == 0, ended


@case("`users forget --wait`", "no activity worker runs")
def _(ready: Ready) -> list[Done]:
    return ready.place.each(["users", "forget", "u", "--wait"])


@case("`users forget --wait`", "Redis does not answer")
def _(ready: Ready) -> list[Done]:
    return without_redis(ready.place, "users", "forget", "u", "--wait")
