"""Fitting as commands do it: where events come from, the fit, and its report."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from models import datasets, signature
from models.bundle import Bundle, BundleError, load_bundle, require_time
from models.datasets import Dataset
from models.evaluation import leave_one_out, protocol
from models.evaluation.leave_one_out import LeaveOneOut
from models.evaluation.protocol import Window
from models.evaluation.two_tower import EmbedItems, EmbedUsers
from models.event_log import Catalogue, EventLog
from models.extractors import Extract, ExtractorError
from models.fit import FitError, FitOptions, fit
from models.jsonl import JsonLinesError, read_activities, read_items
from models.spec import Spec, SpecError, builtin_spec, load_spec
from models.tensors import Inputs
from workers.clock import SystemClock
from workers.errors import ConfigurationError, RecallError
from workers.extractors import resolve, with_code
from workers.ports import Float32
from workers.settings import Settings
from workers.towers.onnx import open_tower

Say = Callable[[str], None]
TOWER_TIMEOUT_MS = 60_000


@dataclass(frozen=True)
class Source:
    """Events to fit on. `known_until` gives the catalogue as of a time; `test_ms` is None for events of one's own."""

    log: EventLog
    known_until: Callable[[int | None], Catalogue]
    spec: Spec
    features: str
    test_ms: int | None
    validation_ms: int | None = None
    dataset: Dataset | None = None  # what it was read from, when it is one with a name
    extractors: Mapping[str, Extract] = field(default_factory=dict)  # the code of those that the spec names

    def log_until(self, until_ms: int | None) -> EventLog:
        """What happened before then; all of it for None."""
        return self.log if until_ms is None else self.log.before(until_ms)


@dataclass(frozen=True)
class Job:
    """What to fit."""

    dim: int
    polish: bool | None
    seed: int
    until_ms: int | None
    evaluate: bool


def read_source(data: str | None, items: Path | None, activity: Path | None, spec: Path | None, say: Say) -> Source:
    """A data set by name, or two files and a spec. Raises ConfigurationError, RecallError with one line."""
    try:
        if data is not None:
            if items is not None or activity is not None:
                raise ConfigurationError("--data and --items/--activity exclude each other")
            dataset = datasets.load(data, say)
            path = spec or builtin_spec(dataset.spec)
            return Source(
                dataset.log,
                dataset.catalogue,
                load_spec(path),
                path.read_text(),
                dataset.test_ms,
                dataset.validation_ms,
                dataset,
            )
        if items is None or activity is None or spec is None:
            raise ConfigurationError("either --data NAME, or all of --items FILE, --activity FILE and --spec FILE")
        catalogue = Catalogue.from_updates(read_items(items))
        log = EventLog.from_activities(read_activities(activity, SystemClock().now_ms))
        return Source(log, lambda _: catalogue, load_spec(spec), spec.read_text(), None)
    except SpecError as error:
        raise ConfigurationError(str(error)) from error
    except (datasets.DatasetError, JsonLinesError) as error:
        raise RecallError(str(error)) from error


def with_extractors(source: Source, settings: Settings) -> Source:
    """With the code of the spec's extractors. Raises ConfigurationError."""
    return replace(source, extractors=resolve(settings.extractors, source.spec))


def fitted_until(source: Source, until_ms: int | None, *, evaluate: bool) -> int | None:
    """What is fitted on happened before that time, by `--until-ms` and `--evaluate`; None = it is everything.

    Raises ConfigurationError when the report of `--evaluate` would be on what was fitted on.
    """
    if not evaluate or source.test_ms is None:
        return until_ms
    if until_ms is not None and until_ms > source.test_ms:
        begins = f"--until-ms {until_ms} is later than {source.test_ms}, where the test window of --evaluate begins"
        raise ConfigurationError(f"{begins}: it would report on what was fitted on")
    return source.test_ms if until_ms is None else until_ms


def leave_out(source: Source, *, validation: bool) -> tuple[Source, LeaveOneOut]:
    """What leave-one-out fits on, any value a target, and its split. Raises ConfigurationError."""
    try:
        spec, features = leave_one_out.any_value(source.spec, source.features)
    except SpecError as error:
        raise ConfigurationError(str(error)) from error
    split = leave_one_out.leave_one_out(source.log, source.known_until(None), spec, validation=validation)
    return replace(source, log=split.training, spec=spec, features=features), split


def bundles_folder(settings: Settings) -> Path:
    """Where bundles are written; known to be there before the work is done. Raises ConfigurationError."""
    folder = settings.data_dir / "bundles"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be written: {error.strerror}") from error
    return folder


def run_fit(source: Source, job: Job, settings: Settings, say: Say) -> dict[str, Any]:
    """Fit, and evaluate when that is asked for. Raises RecallError, ConfigurationError."""
    folder = bundles_folder(settings)
    bundle = fit_bundle(source, job, folder, say)
    result: dict[str, Any] = {"version": bundle.version, "path": str(bundle.path), "dim": bundle.dim}
    result |= {name: bundle.manifest.figures[name] for name in ("fit_s", "requests", "positives", "items", "polished")}
    if job.evaluate and source.test_ms is not None:
        result |= report(source, bundle, source.test_ms, say)
    return result


def report(source: Source, bundle: Bundle, test_ms: int, say: Say) -> dict[str, Any]:
    """Figures over what happened from `test_ms` on: through the bundle's own towers, exact, full catalogue."""
    say("evaluating")
    catalogue = source.known_until(None)
    asked = protocol.window(source.log, catalogue, bundle.encoding, test_ms)
    ranks = exact_ranks(source, catalogue, bundle, asked, lambda part: say(f"evaluating {part:.0%}"))
    popular = protocol.popularity_ranks(source.log, catalogue, bundle.encoding, asked, test_ms)
    subsets = {name: protocol.metrics(ranks[rows]) for name, rows in protocol.subsets(asked).items()}
    return protocol.metrics(ranks) | {"subsets": subsets, "popular": protocol.metrics(popular)}


def fit_bundle(source: Source, job: Job, folder: Path, say: Say) -> Bundle:
    """Fit on what happened before `job.until_ms`."""
    options = FitOptions(dim=job.dim, polish=job.polish, seed=job.seed, extractors=source.extractors)
    try:
        return fit(
            source.log_until(job.until_ms),
            source.known_until(job.until_ms),
            source.spec,
            source.features,
            folder,
            options,
            lambda what, part: say(f"{what} {part:.0%}"),
        )
    except (FitError, BundleError) as error:
        raise RecallError(str(error)) from error


def load_before(path: Path, newest_ms: int, settings: Settings, *, leave_one_out: bool = False) -> Bundle:
    """A bundle that was fitted on nothing later than that, as far as it says so. Raises ConfigurationError.

    `leave_one_out`: the window has places and no times.
    """
    try:
        bundle = with_code(load_bundle(path), settings)
        if not leave_one_out:
            require_time(bundle)
    except BundleError as error:
        raise ConfigurationError(str(error)) from error
    fitted_until = bundle.manifest.figures.get("newest_event_ms")
    if isinstance(fitted_until, int) and fitted_until > newest_ms:
        raise ConfigurationError(
            f"{bundle.version} was fitted on events up to {fitted_until}, "
            f"the window asks for what comes after {newest_ms}: "
            "fit it with --until-ms, or with --evaluate"
        )
    return bundle


def exact_ranks(
    source: Source, catalogue: Catalogue, bundle: Bundle, asked: Window, progress: Callable[[float], None]
) -> Any:
    """float64[P]: exact ranks through the bundle's own ONNX towers, end to end."""
    towers = embedders(bundle)
    try:
        return protocol.exact_ranks(source.log, catalogue, bundle.encoding, asked, towers, progress, bundle.metric)
    except ExtractorError as error:
        raise RecallError(str(error)) from error


def embedders(bundle: Bundle) -> tuple[EmbedUsers, EmbedItems]:
    """What runs the bundle's user and item tower. Raises ConfigurationError when they are not what it says."""
    users, items = (open_tower(bundle, side, TOWER_TIMEOUT_MS) for side in ("user", "item"))

    def embed_users(inputs: Inputs) -> Float32:
        return users.run(inputs)[signature.USER_EMBEDDING]

    def embed_items(inputs: Inputs) -> tuple[Float32, Float32]:
        outputs = items.run(inputs)
        return outputs[signature.ITEM_EMBEDDING], outputs[signature.HISTORY_EMBEDDING]

    return embed_users, embed_items
