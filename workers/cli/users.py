"""`recall users forget USER...` and `recall users load FILE`."""

import asyncio
import codecs
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from schemas import codec
from schemas.activity import MAX_ID_BYTES
from workers import forgetting, views
from workers.activity_files import STDIN, open_activities
from workers.cli.console import Working
from workers.cli.running import run
from workers.clock import SystemClock
from workers.doctor import start
from workers.errors import ConfigurationError, InvalidInput, RecallError
from workers.loading import UserLoad
from workers.local.discover import with_local_stack
from workers.pipelines.activity import OUTCOMES, ActivityPipeline
from workers.settings import Settings, load_settings
from workers.stores.connect import close, connect, ping
from workers.stores.markers_redis import RedisMarkers
from workers.stores.user_redis import GROUP, RedisUserTable

EARLY = "redis does not have all that kafka retains yet: events that this load brings first never count as popular"


def forget(
    users: Annotated[list[str] | None, typer.Argument(metavar="[USER]...", help="Ids of users.")] = None,
    file: Annotated[Path | None, typer.Option(help="More of them, one a line; - is standard input.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Return when every record says that it is done.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Forget users: their records and seen items go, and copies of what they did before stay out."""
    if not users and file is None:
        raise ConfigurationError("whom? USER..., or --file FILE with one id a line")
    user_ids = _named(users or [])
    if file is not None:
        user_ids += _listed(file)
    settings = with_local_stack(load_settings())
    started = time.perf_counter()
    with Working("sending") as working:
        sent = run(_forget(settings, user_ids, wait, working))
    seconds = round(time.perf_counter() - started, 2)
    if as_json:
        print(orjson.dumps({"sent": sent, "forgotten": sent if wait else None, "seconds": seconds}).decode())
    elif wait:
        print(f"{_counted(sent, 'user', 'users')} forgotten in {seconds} s")
    else:
        print(f"{_counted(sent, 'user', 'users')} to forget: sent to {settings.topic('user-activity')}")


def _counted(count: int, one: str, more: str) -> str:
    return f"{count:,} {one if count == 1 else more}"


def _named(users: Sequence[str]) -> list[str]:
    try:
        return [_id(user.encode(), "USER") for user in users]
    except UnicodeEncodeError as error:
        raise ConfigurationError("an argument is not UTF-8 text") from error
    except InvalidInput as error:
        raise ConfigurationError(str(error)) from error


def _listed(file: Path) -> list[str]:
    """One id a line, as it stands there; empty lines are none."""
    name = "standard input" if file == STDIN else str(file)
    try:
        with ExitStack() as opened:
            stream = sys.stdin.buffer if file == STDIN else opened.enter_context(file.open("rb"))
            keys = [line.rstrip(b"\r\n") for line in stream]
            keys[:1] = [key.removeprefix(codecs.BOM_UTF8) for key in keys[:1]]  # else nobody would be forgotten for it
            return [_id(key, f"{name}:{number}") for number, key in enumerate(keys, 1) if key]
    except OSError as error:
        raise RecallError(f"{name}: {error.strerror}") from error


def _id(key: bytes, where: str) -> str:
    try:
        return codec.decode_key(key)
    except codec.DecodeError as error:
        what = "not UTF-8" if 0 < len(key) <= MAX_ID_BYTES else f"{len(key)} bytes, 1 to {MAX_ID_BYTES} are an id"
        raise InvalidInput(error.code, f"{where}: {what}; nothing was sent") from error


async def _forget(settings: Settings, user_ids: Sequence[str], wait: bool, working: Working) -> int:
    if not wait:
        return len(await forgetting.forget(settings, user_ids))
    client = connect(settings)
    table = RedisUserTable(client, settings)
    try:
        await ping(client)  # before anything is sent
        sent = await forgetting.forget(settings, user_ids)
        await forgetting.wait_forgotten(
            table, sent, lambda left: working.update(f"waiting, {left:,} users are not forgotten yet")
        )
    finally:
        await table.close()
    return len(sent)


def load(
    file: Annotated[
        Path, typer.Argument(help="JSON lines of activities, or Parquet by its ending; - is standard input.")
    ],
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Go on past lines that are no activity.")] = False,
    allow_unsafe: Annotated[
        bool, typer.Option("--allow-unsafe", help="Load although `recall doctor` says that Redis may lose it.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Build user records from history, beside the live stream. What is loaded again changes nothing."""
    settings = with_local_stack(load_settings())
    if allow_unsafe:
        settings = settings.model_copy(update={"allow_unsafe": True})
    started = time.perf_counter()
    # Reading blocks, and Ctrl-C must reach it: so the loop runs only while a window is taken in.
    with Working("loading") as working, open_activities(file, SystemClock()) as source, asyncio.Runner() as runner:
        table, pipeline = runner.run(_open(settings))
        try:
            loading = UserLoad(pipeline, source, skip_bad, working.say)
            for number, window in enumerate(loading.windows()):
                if number == 0 and runner.run(_is_early(settings)):
                    working.say(EARLY)
                runner.run(loading.take(window))
                working.update(f"loading, {loading.loaded.events:,} activities are taken in", source.part())
        finally:
            runner.run(table.close())
    seconds = time.perf_counter() - started
    _print(_figures(loading, seconds), as_json)


async def _open(settings: Settings) -> tuple[RedisUserTable, ActivityPipeline]:
    """The pipeline of an activity worker, by the active bundle's spec. Raises ConfigurationError, DependencyError."""
    await start.check_redis(settings)
    view = await views.read_active(settings)
    if view is None:
        line = "no bundle is active, and its spec says which actions count as seen; make one: recall model fit"
        raise ConfigurationError(line)
    spec = views.load(view).spec
    table = RedisUserTable(connect(settings), settings)
    return table, ActivityPipeline(table, spec.seen_actions, spec.actions)


async def _is_early(settings: Settings) -> bool:
    """Whether activity workers have still to take in what Kafka retains. Raises DependencyError."""
    client = connect(settings)
    try:
        return not await RedisMarkers(client, settings, GROUP).whole()
    finally:
        await close(client)


def _print(figures: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(orjson.dumps(figures).decode())
        return
    came_of_them = ", ".join(f"{figures[name]:,} {name}" for name in (*OUTCOMES, "unknown_action") if figures[name])
    events = _counted(figures["events"], "activity", "activities")
    users = _counted(figures["users"], "user", "users")
    print(f"{events} of {users} taken in: {came_of_them or 'nothing to do'}")
    print(f"{figures['skipped']:,} skipped; {figures['seconds']} s, {figures['events_per_s']:,} a second")


def _figures(loading: UserLoad, seconds: float) -> dict[str, Any]:
    loaded = loading.loaded
    counted = {name: loaded.outcomes.get(name, 0) for name in (*OUTCOMES, "unknown_action")}
    rate = round(loaded.events / seconds)
    speed = {"seconds": round(seconds, 2), "events_per_s": rate}
    return {"users": loading.users.count(), "events": loaded.events, **counted, "skipped": loaded.skipped, **speed}
