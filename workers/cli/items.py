"""`recall items load`: a catalogue as item updates."""

import time
from pathlib import Path
from typing import Annotated

import orjson
import typer

from models import datasets
from models.jsonl import JsonLinesError, read_items
from schemas.items import ItemUpdate
from workers.cli.console import Working
from workers.cli.data_sets import DataSet
from workers.cli.running import run
from workers.errors import ConfigurationError, RecallError
from workers.item_loading import item_messages, wait_for_items
from workers.kafka_client import produce
from workers.local.discover import with_local_stack
from workers.settings import Settings, load_settings


def load(
    file: Annotated[Path | None, typer.Argument(help="JSON lines of item updates.")] = None,
    data: Annotated[DataSet | None, typer.Option(help="A data set's catalogue.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Return when the active view has taken them all in.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Stream a catalogue in. Nothing is sent when a line is bad; it is named with its number."""
    if (file is None) == (data is None):
        raise ConfigurationError("either a FILE or --data NAME")
    settings = with_local_stack(load_settings())
    started = time.perf_counter()
    with Working("reading") as working:
        try:
            source = datasets.load(str(data), working.say).items() if file is None else read_items(file)
            updates = list(source)
        except (JsonLinesError, datasets.DatasetError) as error:
            raise RecallError(str(error)) from error
        sent = run(_send(settings, updates, wait, working))
    seconds = round(time.perf_counter() - started, 2)
    if as_json:
        print(orjson.dumps({"sent": sent, "seconds": seconds}).decode())
    else:
        print(f"{sent} item updates {'taken in' if wait else 'sent'} in {seconds} s")


async def _send(settings: Settings, updates: list[ItemUpdate], wait: bool, working: Working) -> int:
    taken = working.each(lambda count: f"sending, {count:,} of {len(updates):,} item updates", updates)
    sent = await produce(settings, settings.topic("item-updates"), item_messages(taken))
    if wait:
        await wait_for_items(settings, lambda lag: working.update(f"waiting, {lag:,} item updates are not taken in"))
    return sent
