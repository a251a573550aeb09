"""`recall model fit`: a bundle in closed form, from a data set or from events of your own."""

import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from workers.cli.console import Working
from workers.cli.data_sets import DataSet
from workers.cli.running import run
from workers.errors import ConfigurationError, RecallError
from workers.settings import Settings, load_settings

ACTIVE = (
    "it is the active bundle now; `recall up` starts workers with it (restart those that run; where servers are up "
    "alone, `recall down` first)"
)
METRICS = ("recall_at_", "ndcg_at_")


def fit(
    data: Annotated[DataSet | None, typer.Option(help="A data set; it brings its own spec.")] = None,
    items: Annotated[Path | None, typer.Option(help="JSON lines of item updates, with --activity and --spec.")] = None,
    activity: Annotated[Path | None, typer.Option(help="JSON lines of user activity.")] = None,
    spec: Annotated[Path | None, typer.Option(help="A features.toml; a data set brings its own.")] = None,
    dim: Annotated[int, typer.Option(help="Dimension of the vectors: 32, 64, 128 or 256.")] = 64,
    polish: Annotated[
        bool | None, typer.Option("--polish/--no-polish", help="A softmax epoch on top; chosen by size when left out.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed and data give the same bundle.")] = 0,
    until_ms: Annotated[int | None, typer.Option(help="Use only what happened before this time (epoch ms).")] = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Fit on what is before the data set's test window and report on it.")
    ] = False,
    no_activate: Annotated[bool, typer.Option("--no-activate", help="Leave the active bundle as it is.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Fit both towers and make their bundle the active one."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy is loaded: one thread is as fast here, and repeatable
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from models.fit import DIMS
    from workers.fitting import Job, fitted_until, read_source, run_fit, with_extractors

    if dim not in DIMS:
        raise ConfigurationError(f"--dim: {dim} is not one of {', '.join(map(str, DIMS))}")
    if evaluate and data is None:
        raise ConfigurationError("--evaluate needs --data, whose test window is known")
    settings = load_settings()
    with Working("reading events") as working:
        started = time.perf_counter()
        source = with_extractors(read_source(data, items, activity, spec, working.say), settings)
        decode_s = time.perf_counter() - started
        cut_ms = fitted_until(source, until_ms, evaluate=evaluate)
        job = Job(dim=dim, polish=polish, seed=seed, until_ms=cut_ms, evaluate=evaluate)
        result = run_fit(source, job, settings, working.update)
    result = {"decode_s": round(decode_s, 2)} | result
    if not no_activate:
        activate(settings, result)
    if as_json:
        print(orjson.dumps(result).decode())
        return
    print_result(result, active=not no_activate)


def print_result(result: dict[str, Any], *, active: bool) -> None:
    """What was made, and its figures, line by line."""
    lists = {"all": result, **result.pop("subsets", {}), "most popular": result.pop("popular", {})}
    for name, value in result.items():
        if not name.startswith(METRICS):
            print(f"{name}: {value}")
    for name, figures in lists.items():
        shown = [f"{metric} {value:.4f}" for metric, value in figures.items() if metric.startswith(METRICS)]
        if shown:
            print(f"{name}: {', '.join(shown)}")
    if active:
        print(ACTIVE)


def _note(line: str) -> None:
    print(line, file=sys.stderr)


def activate(settings: Settings, result: dict[str, Any]) -> None:
    """Make a bundle, by its `path` and `version`, the active one. Raises RecallError: it is written all the same."""
    from workers import views
    from workers.local.discover import with_local_stack

    try:
        run(views.activate(with_local_stack(settings), Path(result["path"]), result["version"], _note))
    except RecallError as error:
        kind = ConfigurationError if isinstance(error, ConfigurationError) else RecallError
        raise kind(f"the bundle {result['version']} is written but not active: {error}") from error
