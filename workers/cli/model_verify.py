"""`recall model verify`: every check of a bundle, a line each."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from rich.text import Text

from workers.cli.bundles import existing_bundle
from workers.cli.console import Working, harmless, results
from workers.errors import RecallError
from workers.settings import load_settings

if TYPE_CHECKING:
    from models.event_log import Catalogue
    from workers.verifying import Report

COLOURS = {"ok": "green", "failed": "bold red", "skipped": "yellow"}
WIDTH = max(map(len, COLOURS))


def verify(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder, or its version among those of the data folder.")],
    items: Annotated[
        Path | None, typer.Option(help="JSON lines of item updates to try it on, in place of made-up items.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check files, towers, metric and a floor; exit code 1 when it must not be served."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy is loaded
    path = existing_bundle(bundle, load_settings())
    from workers.verifying import verify_bundle

    with Working("reading items") as working:
        catalogue = None if items is None else _read(items)
        report = verify_bundle(path, catalogue, working.update)
    if as_json:
        print(orjson.dumps(as_object(report, path)).decode())
    else:
        print_checks(report)
    if report.failed:
        names = ", ".join(each.check for each in report.failed)
        raise RecallError(f"{len(report.failed)} of {len(report.checks)} checks failed: {names}")
    if not as_json:
        print(f"all well: {len(report.checks)} checks")


def as_object(report: "Report", path: Path) -> dict[str, Any]:
    """What `--json` prints."""
    found: dict[str, Any] = {"ok": not report.failed, "path": str(path)}
    if report.bundle is not None:
        found |= {"version": report.bundle.version, "dim": report.bundle.dim, "metric": report.bundle.metric}
    return found | {"checks": [asdict(each) for each in report.checks], "latency_ms": report.latency_ms}


def print_checks(report: "Report") -> None:
    """A line each, in columns."""
    console = results()
    width = max(len(each.check) for each in report.checks)
    for each in report.checks:
        result = (each.result.ljust(WIDTH), COLOURS[each.result])
        console.print(Text.assemble(result, f"  {each.check:<{width}}  {harmless(each.line)}"), soft_wrap=True)


def _read(path: Path) -> "Catalogue":
    from models.event_log import Catalogue
    from models.jsonl import JsonLinesError, read_items

    try:
        catalogue = Catalogue.from_updates(read_items(path))
    except JsonLinesError as error:
        raise RecallError(str(error)) from error
    if not len(catalogue):
        raise RecallError(f"{path}: no items")
    return catalogue
