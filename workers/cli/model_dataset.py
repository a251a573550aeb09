"""`recall model dataset`: training samples as Parquet, from the topics, from files or from a data set."""

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from workers.cli.bundles import bundle_folder
from workers.cli.console import Working
from workers.cli.data_sets import DataSet
from workers.cli.running import run
from workers.cli.since import since_ms
from workers.errors import ConfigurationError, RecallError
from workers.local.discover import with_local_stack
from workers.settings import Settings, load_settings

if TYPE_CHECKING:
    from models.datasets import Dataset
    from workers.sampling import Job


def dataset(
    to: Annotated[Path, typer.Option("--to", help="The folder to write; it must not be there.")],
    data: Annotated[DataSet | None, typer.Option(help="A data set; it brings its own spec.")] = None,
    items: Annotated[Path | None, typer.Option(help="JSON lines of item updates, with --activity.")] = None,
    activity: Annotated[Path | None, typer.Option(help="JSON lines of user activity.")] = None,
    spec: Annotated[Path | None, typer.Option(help="A features.toml; codes are those of the events' values.")] = None,
    bundle: Annotated[
        str | None, typer.Option(help="A bundle, a folder or a version of <data_dir>/bundles: its spec and its codes.")
    ] = None,
    since: Annotated[str | None, typer.Option(help="Positives from then on: 7d, 12h, or 2026-11-25T18:00Z.")] = None,
    until: Annotated[str | None, typer.Option(help="Only what happened before then, written likewise.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Write training samples, made as a worker makes its inputs. Without --data or files: from the topics in Kafka."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is loaded
    now_ms = time.time_ns() // 1_000_000
    first_ms, end_ms = since_ms(since, now_ms), since_ms(until, now_ms, "--until")
    if first_ms is not None and end_ms is not None and first_ms >= end_ms:
        raise ConfigurationError("--since is not before --until")
    if data is not None and (items is not None or activity is not None):
        raise ConfigurationError("--data and --items/--activity exclude each other")
    if (items is None) != (activity is None):
        raise ConfigurationError("--items FILE and --activity FILE go together")
    if spec is not None and bundle is not None:
        raise ConfigurationError("--spec and --bundle exclude each other")
    if data is None and spec is None and bundle is None:
        raise ConfigurationError("what are the features? --spec FILE, or --bundle BUNDLE")
    settings = with_local_stack(load_settings())
    with Working("reading events") as working:
        from models import datasets

        try:
            found = None if data is None else datasets.load(data, working.say)
        except datasets.DatasetError as error:
            raise RecallError(str(error)) from error
        folder = None if bundle is None else bundle_folder(bundle, settings)
        job = _job(to, spec, folder, found, (first_ms, end_ms))
        files = None if items is None or activity is None else (items, activity)
        result = run(_write(settings, found or files, job, working))
    if as_json:
        print(orjson.dumps(result | {"path": str(to)}).decode())
        return
    print(f"{result['samples']:,} samples of {result['events']:,} events in {result['seconds']} s: {to}")
    print(f"{result['items']:,} items, {result['users']:,} users, {result['spec']} {result['spec_hash'][:12]}")
    left_out = {**result["left_out"], **{f"unreadable {name}": n for name, n in result["unreadable"].items()}}
    told = ", ".join(f"{count:,} {why.replace('_', ' ')}" for why, count in left_out.items() if count)
    print(f"left out: {told or 'nothing'}")


def _job(
    to: Path, spec: Path | None, bundle: Path | None, found: "Dataset | None", span: tuple[int | None, int | None]
) -> "Job":
    """Raises ConfigurationError."""
    from models.bundle import FEATURES, BundleError, load_bundle
    from models.spec import SpecError, builtin_spec, load_spec
    from workers.sampling import Job

    try:
        if bundle is not None:
            loaded = load_bundle(bundle)
            return Job(to, loaded.spec, (bundle / FEATURES).read_text(), loaded, *span)
        path = spec or builtin_spec(found.spec if found is not None else "")
        return Job(to, load_spec(path), path.read_text(), None, *span)
    except (BundleError, SpecError) as error:
        raise ConfigurationError(str(error)) from error


async def _write(
    settings: Settings, given: "Dataset | tuple[Path, Path] | None", job: "Job", working: Working
) -> dict[str, Any]:
    from models.extractors import ExtractorError
    from workers.event_sources import open_events
    from workers.extractors import resolve
    from workers.sampling import write_dataset

    job = replace(job, extractors=resolve(settings.extractors, job.spec))
    async with open_events(settings, given, job.until_ms) as events:
        try:
            return await write_dataset(events, job, working.update)
        except ExtractorError as error:
            raise RecallError(str(error)) from error
