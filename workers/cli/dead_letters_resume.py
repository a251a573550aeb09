"""`recall dead-letters resume`: workers that have paused at their cap of dead letters go on."""

from typing import Annotated

import orjson
import typer

from workers.cli.running import run
from workers.clock import SystemClock
from workers.local.discover import with_local_stack
from workers.pause import send_resume
from workers.settings import load_settings


def resume(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Let every worker of this namespace that has paused go on: it writes what it held, and reads on."""
    settings = with_local_stack(load_settings())
    run(send_resume(settings, SystemClock().now_ms()))
    if as_json:
        print(orjson.dumps({"resumed": True, "topic": settings.topic("recall-dead-letters")}).decode())
    else:
        print("workers that have paused go on")
