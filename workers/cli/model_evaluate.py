"""`recall model evaluate`: bundles and baselines in one table, from one harness."""

import importlib.util
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson
import typer

from workers.cli.bundles import bundle_folder
from workers.cli.console import Working
from workers.cli.data_sets import DataSet
from workers.cli.output_file import expect_writable, writing
from workers.cli.since import DURATION, UNITS_MS
from workers.errors import ConfigurationError, ExtraMissing
from workers.settings import load_settings
from workers.signals import Stopping

if TYPE_CHECKING:
    from models.evaluation.timeline import Delay
    from workers.evaluating_live import IndexKind
    from workers.live.told import Told


class WindowName(StrEnum):
    """Which part of the events is asked for."""

    TEST = "test"
    VALIDATION = "validation"


class Through(StrEnum):
    """By which way the reference is asked as well."""

    STREAM = "stream"
    STREAM_HNSW = "stream-hnsw"


INDEXES: "dict[Through, IndexKind]" = {Through.STREAM: "FLAT", Through.STREAM_HNSW: "HNSW"}


class Protocol(StrEnum):
    """What is asked, and what may be known."""

    TEMPORAL = "temporal"
    LEAVE_ONE_OUT = "leave-one-out"


def evaluate(
    bundle: Annotated[list[str] | None, typer.Argument(help="Folders, or versions under <data_dir>/bundles.")] = None,
    data: Annotated[DataSet | None, typer.Option(help="A data set; it brings its own spec and windows.")] = None,
    items: Annotated[Path | None, typer.Option(help="JSON lines of item updates, with --activity and --spec.")] = None,
    activity: Annotated[Path | None, typer.Option(help="JSON lines of user activity.")] = None,
    spec: Annotated[Path | None, typer.Option(help="A features.toml; a data set brings its own.")] = None,
    window: Annotated[WindowName, typer.Option(help="Report on test, tune on validation.")] = WindowName.TEST,
    protocol: Annotated[Protocol, typer.Option(help="Temporal, or that of most papers.")] = Protocol.TEMPORAL,
    baselines: Annotated[str, typer.Option(help="all, none, or names with commas between them.")] = "all",
    reference: Annotated[str | None, typer.Option(help="What intervals compare with; the first bundle.")] = None,
    delay: Annotated[
        list[str] | None, typer.Option(help="Also the reference with features so late: 10s, 60s, 5m, nightly.")
    ] = None,
    through: Annotated[
        list[Through] | None,
        typer.Option(help="Also the reference over Kafka, in a stack of its own: a FLAT collection, or one of HNSW."),
    ] = None,
    resamples: Annotated[int, typer.Option(min=100, max=100_000, help="Draws of users for the intervals.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    chart: Annotated[Path | None, typer.Option(help="Also draw the table as a PNG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Rank the whole catalogue for every request of a window, by bundles and baselines, and compare them."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy is loaded
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if not _installed("scipy") or (chart is not None and not _installed("matplotlib")):
        raise ExtraMissing(f"`model evaluate{' --chart' if _installed('scipy') else ''}`", "evaluate")
    if chart is not None:
        expect_writable("--chart", chart)
    from models.evaluation.report import Resampling
    from workers.cli.model_evaluate_print import print_table
    from workers.evaluating import Question, evaluate
    from workers.fitting import read_source, with_extractors

    settings = load_settings()
    with Working("reading events") as working:
        names = _baselines(baselines, working)
        paths = [bundle_folder(each, settings) for each in bundle or ()]
        if not names and not paths:
            raise ConfigurationError("there is nothing to evaluate: neither a BUNDLE nor a baseline")
        question = Question(
            bundles=paths,
            baselines=names,
            reference=reference,
            validation=window is WindowName.VALIDATION,
            leave_one_out=protocol is Protocol.LEAVE_ONE_OUT,
            delays={each: _delay(each) for each in delay or ()},
            streams={each.value: INDEXES[each] for each in through or ()},
            resampling=Resampling(resamples, seed),
        )
        source = with_extractors(read_source(data, items, activity, spec, working.say), settings)
        told = _told(working, stack=bool(through))
        result = {"data": data or str(activity)} | evaluate(source, question, told, settings)
    if as_json:
        print(orjson.dumps(result).decode(), flush=True)
    else:
        print_table(result)
    if chart is not None:
        from models.evaluation.chart import draw

        with writing(chart):
            draw(result, chart)


def _told(working: Working, *, stack: bool) -> "Told":
    from workers.live.told import Told

    stopping = Stopping()
    if stack:
        stopping.interrupt()

    def progress(what: str, part: float | None) -> None:
        if stopping:
            raise KeyboardInterrupt
        working.update(what, part)

    return Told(progress, working.say, lambda: bool(stopping))


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _baselines(text: str, working: Working) -> list[str]:
    """Names that were asked for; of all of them, without those whose library is missing, which is said."""
    from workers.evaluating import NAMES

    if text == "none":
        return []
    names = list(NAMES) if text == "all" else text.split(",")
    for name in names:
        if name not in NAMES:
            raise ConfigurationError(f"--baselines: {name!r} is not one of all, none, {', '.join(NAMES)}")
    if "ials" in names and not _installed("implicit"):
        missing = ExtraMissing("the baseline ials", "evaluate")
        if text != "all":
            raise missing
        working.say(f"left out: {missing}")
        names.remove("ials")
    return names


def _delay(text: str) -> "Delay":
    from models.evaluation.timeline import Delay

    if text == "nightly":
        return Delay(nightly=True)
    duration = DURATION.fullmatch(text)
    if duration is None:
        raise ConfigurationError(f"--delay: {text!r} is neither a duration (10s, 60s, 5m) nor nightly")
    return Delay(int(duration[1]) * UNITS_MS[duration[2]])
