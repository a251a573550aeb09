"""`recall model pack`: a verified bundle from two ONNX files and a spec."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import orjson
import typer

from workers.cli.console import Working, notes
from workers.cli.model import ACTIVE, activate
from workers.cli.model_verify import as_object, print_checks
from workers.settings import load_settings


class Metric(StrEnum):
    """How user and item vectors are compared."""

    IP = "IP"
    COSINE = "COSINE"
    L2 = "L2"


def pack(
    user_tower: Annotated[Path, typer.Option(help="ONNX file that gives user_embedding.")],
    item_tower: Annotated[Path, typer.Option(help="ONNX file that gives item_embedding, and history_embedding.")],
    spec: Annotated[Path, typer.Option(help="The features.toml that says what both are given.")],
    vocabularies: Annotated[
        Path | None, typer.Option(help="JSON of the values of categories, and of item ids, in order of their codes.")
    ] = None,
    metric: Annotated[Metric, typer.Option(help="How their vectors are to be compared.")] = Metric.IP,
    no_floor: Annotated[bool, typer.Option("--no-floor", help="Pack what does not reach the floor, too.")] = False,
    no_activate: Annotated[bool, typer.Option("--no-activate", help="Leave the active bundle as it is.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Make a bundle from towers that were trained elsewhere, verify it, and make it the active one."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy is loaded
    from workers.packing import Job, run_pack

    settings = load_settings()
    job = Job(user_tower, item_tower, spec, vocabularies, metric.value, floor=not no_floor)
    with Working("packing") as working:
        packed = run_pack(job, settings.data_dir / "bundles", working.update)
    bundle = packed.bundle
    result = as_object(packed.report, bundle.path) | {"notes": packed.notes}
    if not no_activate:
        activate(settings, result)
    if as_json:
        print(orjson.dumps(result).decode())
        return
    print_checks(packed.report)
    for line in packed.notes:
        notes().print(f"note: {line}")
    print(f"version: {bundle.version}\npath: {bundle.path}")
    if not no_activate:
        print(ACTIVE)
