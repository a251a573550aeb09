"""`recall bench`: what this machine does, measured on real servers of the benchmark's own."""

import os
import signal
from pathlib import Path
from typing import Annotated, NoReturn

import orjson
import typer

from workers.cli.console import Working
from workers.cli.output_file import expect_writable, writing
from workers.errors import ConfigurationError
from workers.settings import load_settings


def bench(
    parts: Annotated[
        list[str] | None,
        typer.Argument(help="transport, paced, activity, recall, waiting, overload, seen; all but seen when left out."),
    ] = None,
    items: Annotated[
        list[int] | None, typer.Option(help="Items of a catalogue for recall; may be repeated. 20000 and 100000.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the figures as tables to this file too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Measure throughput, latency and freshness. Takes minutes and both cores; everything it starts ends with it."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy is loaded
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from workers.bench import report
    from workers.bench.run import CATALOGUES, GENERATED, PARTS, run

    unknown = [part for part in parts or () if part not in PARTS]
    if unknown:
        raise ConfigurationError(f"{unknown[0]} is no part of the benchmark: {', '.join(PARTS)}")
    if any(count < 1000 for count in items or ()):
        raise ConfigurationError("--items: at least 1000")
    if markdown is not None:
        expect_writable("--markdown", markdown)
    settings = load_settings()
    if settings.index != "milvus":
        raise ConfigurationError(f"index = {settings.index!r}: the benchmark measures Milvus alone; leave `index` out")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    with Working("starting servers") as working:

        def say(what: str) -> None:
            working.update(what)
            working.say(what)

        found = run(settings, parts or GENERATED, items or CATALOGUES, say)
    tables = report.markdown(found)
    print(orjson.dumps(found).decode() if as_json else tables, flush=True)
    if markdown is not None:
        with writing(markdown):
            markdown.write_text(tables)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt
