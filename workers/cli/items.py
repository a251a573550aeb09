"""`recall items load`: a catalogue as item updates."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console

from models import datasets
from models.jsonl import JsonLinesError, read_items
from schemas import codec
from schemas.items import ItemUpdate
from workers import views
from workers.errors import ConfigurationError, RecallError
from workers.kafka_client import Message, group_lag, produce
from workers.local.discover import with_local_stack
from workers.settings import Settings, load_settings


def load(
    file: Annotated[Path | None, typer.Argument(help="JSON lines of item updates.")] = None,
    data: Annotated[str | None, typer.Option(help="movielens-1m, movielens-100k, generated or marketplace.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Return when the active view has taken them all in.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Stream a catalogue in. Nothing is sent when a line is bad; it is named with its number."""
    if (file is None) == (data is None):
        raise ConfigurationError("either a FILE or --data NAME")
    settings = with_local_stack(load_settings())
    console = Console(stderr=True)
    started = time.perf_counter()
    try:
        updates = list(read_items(file)) if file is not None else list(datasets.load(str(data), console.print).items())
    except (JsonLinesError, datasets.DatasetError) as error:
        raise RecallError(str(error)) from error
    with console.status(f"sending {len(updates)} item updates"):
        sent = asyncio.run(_send(settings, updates, wait))
    seconds = round(time.perf_counter() - started, 2)
    if as_json:
        print(orjson.dumps({"sent": sent, "seconds": seconds}).decode())
    else:
        print(f"{sent} item updates {'taken in' if wait else 'sent'} in {seconds} s")


async def _send(settings: Settings, updates: list[ItemUpdate], wait: bool) -> int:
    sent = await produce(settings, settings.topic("item-updates"), item_messages(updates))
    if wait:
        await wait_for_items(settings)
    return sent


def item_messages(updates: list[ItemUpdate]) -> Iterator[Message]:
    """Item updates as Kafka messages, keyed by item id."""
    for update in updates:
        yield update.item_id.encode(), codec.encode_event(update), ()


async def wait_for_items(settings: Settings, within_s: float = 300.0) -> None:
    """Wait until the active view has taken in all item updates. Raises RecallError when it does not get there."""
    view = await views.read_active(settings)
    if view is None:
        raise ConfigurationError("no bundle is active, so nobody takes items in; make one: recall model fit")
    end = time.monotonic() + within_s
    group = settings.group(f"recall-items.{view.collection}")
    while lag := await group_lag(settings, group, settings.topic("item-updates")):
        if time.monotonic() > end:
            raise RecallError(f"{lag} item updates are still waiting; is an items worker running? (`recall status`)")
        await asyncio.sleep(0.2)
