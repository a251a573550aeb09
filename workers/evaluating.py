"""Evaluation as a command does it: what is asked, which models answer, and the one table of them all."""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models.bundle import Bundle
from models.evaluation import leave_one_out, report
from models.evaluation.baselines import BASELINES
from models.evaluation.ranking import Progress, Ranker, Ranking, RankingError, rank
from models.evaluation.timeline import AT_ONCE, Delay, Timeline
from models.evaluation.two_tower import TowerRanker
from models.evaluation.window import Window, time_window
from models.event_log import Catalogue
from models.extractors import ExtractorError
from models.tensors import Encoding, Vocabularies
from workers.errors import ConfigurationError, RecallError
from workers.fitting import Job, Source, embedders, fit_bundle, leave_out, load_before
from workers.live.told import Told
from workers.settings import Settings

if TYPE_CHECKING:
    from workers.evaluating_live import IndexKind

CLOSED_FORMS = {"closed-form": False, "closed-form-polished": True}  # name -> with the softmax epoch
NAMES = (*BASELINES, *CLOSED_FORMS)
SHARE_OF_WINDOW = 0.1  # of the events of one's own: the last tenth is tested on, the one before it is for validation


@dataclass(frozen=True)
class Question:
    """What to evaluate. `delays` are told apart by name; a bundle's name in the table is its version."""

    bundles: Sequence[Path]
    baselines: Sequence[str]
    reference: str | None
    validation: bool
    leave_one_out: bool
    delays: Mapping[str, Delay]
    streams: Mapping[str, "IndexKind"]  # the reference is also asked over Kafka, with each of these indexes
    resampling: report.Resampling


@dataclass(frozen=True)
class Setting:
    """What may be fitted on, what is visible, and what is asked."""

    source: Source  # its log is what may be fitted on
    training: Timeline
    visible: Timeline
    window: Window
    known: Catalogue  # what had appeared when the fit ends
    begin_ms: int  # of the window; 0 = it has no time
    described: dict[str, Any]


@dataclass(frozen=True)
class Model:
    """One row of the table to be: towers have a bundle."""

    name: str
    ranker: Ranker
    fit_s: float
    bundle: Bundle | None = None


def evaluate(source: Source, question: Question, told: Told, settings: Settings) -> dict[str, Any]:
    """Every model of the question in one table. Raises RecallError, ConfigurationError with one line."""
    setting = _leave_one_out(source, question) if question.leave_one_out else _temporal(source, question)
    if not len(setting.window.item):
        raise RecallError("the window holds no target event: there is nothing to evaluate")
    newest_ms = int(setting.training.log.timestamp_ms.max(initial=0))
    bundles = [
        load_before(path, newest_ms, settings, leave_one_out=question.leave_one_out) for path in question.bundles
    ]
    reference = _reference(question, [bundle.version for bundle in bundles])
    _check_ways(source, question, reference)
    rankings: dict[str, Ranking] = {}
    seconds: dict[str, dict[str, float]] = {}
    streams: dict[str, dict[str, Any]] = {}

    def add(name: str, model: Model, delay: Delay = AT_ONCE, fit_s: float = 0.0) -> None:
        rankings[name], rank_s = _ranked(name, model.ranker, setting, delay, told)
        seconds[name] = {"fit_s": round(fit_s, 2), "rank_s": round(rank_s, 2)}
        told.done(f"{name}: fitted in {fit_s:.1f} s, ranked in {rank_s:.1f} s")

    for model in _models(bundles, question.baselines, setting, told):
        add(model.name, model, fit_s=model.fit_s)
        if model.name != reference:
            continue
        for late, delay in question.delays.items():
            add(f"{model.name}@{late}", model, delay)
        if question.streams and model.bundle is not None and source.dataset is not None:
            from workers.evaluating_live import Live, ask_stream  # clients of Kafka, Redis and Milvus take a second

            live = Live(model.bundle, source.dataset, setting.visible.catalogue, setting.window, setting.begin_ms)
            for way, index in question.streams.items():
                name, started = f"{model.name}@{way}", time.perf_counter()
                rankings[name], streams[name] = ask_stream(live, index, settings, told)
                seconds[name] = {"fit_s": 0.0, "rank_s": round(time.perf_counter() - started, 2)}
    told.progress("resampling users", None)
    found = report.table(rankings, setting.window, setting.training.target_counts, reference, question.resampling)
    for name, figures in found["models"].items():
        figures |= seconds[name]
    return setting.described | found | ({"streams": streams} if streams else {})


def _check_ways(source: Source, question: Question, reference: str) -> None:
    """Whether the reference can be asked in the other ways too. Raises ConfigurationError."""
    if question.delays and question.leave_one_out:
        line = "--delay needs the temporal protocol: leave-one-out has places, and no time to be late by"
        raise ConfigurationError(line)
    if question.streams and (source.dataset is None or question.leave_one_out):
        raise ConfigurationError("--through stream needs --data and the temporal protocol: it replays a data set")
    if question.streams and reference in BASELINES:
        raise ConfigurationError(f"--through stream asks the reference, and {reference} has no towers to serve")


def _reference(question: Question, versions: Sequence[str]) -> str:
    names = [*versions, *question.baselines]
    if question.reference is None:
        return names[0] if versions or "closed-form" not in names else "closed-form"
    if question.reference not in names:
        raise ConfigurationError(f"--reference: {question.reference!r} is not one of {', '.join(names)}")
    return question.reference


def _temporal(source: Source, question: Question) -> Setting:
    begin_ms, end_ms = _bounds(source, question.validation)
    catalogue = source.known_until(None)
    protocol = Encoding(source.spec, Vocabularies({}, []))  # a protocol asks the spec alone
    visible = Timeline(source.log, catalogue, protocol)
    before = source.log.before(begin_ms)
    return Setting(
        replace(source, log=before),
        Timeline(before, catalogue, protocol),
        visible,
        time_window(visible, begin_ms, end_ms),
        source.known_until(begin_ms),
        begin_ms,
        {"protocol": "temporal", "window": "validation" if question.validation else "test"}
        | {"begin_ms": begin_ms, "end_ms": end_ms},
    )


def _bounds(source: Source, validation: bool) -> tuple[int, int | None]:
    if source.test_ms is not None and source.validation_ms is not None:
        validation_ms, test_ms = source.validation_ms, source.test_ms
    elif len(source.log):
        shares = [1 - 2 * SHARE_OF_WINDOW, 1 - SHARE_OF_WINDOW]
        validation_ms, test_ms = (int(time_ms) for time_ms in np.quantile(source.log.timestamp_ms, shares))
    else:
        raise RecallError("there is no activity to evaluate on")
    return (validation_ms, test_ms) if validation else (test_ms, None)


def _leave_one_out(source: Source, question: Question) -> Setting:
    source, split = leave_out(source, validation=question.validation)
    catalogue = source.known_until(None)
    protocol = Encoding(source.spec, Vocabularies({}, []))
    visible = Timeline(split.visible, catalogue, protocol)
    return Setting(
        source,
        Timeline(split.training, catalogue, protocol),
        visible,
        leave_one_out.window(split, visible),
        catalogue,
        0,
        {"protocol": "leave-one-out", "window": "validation" if question.validation else "test"},
    )


def _models(bundles: Sequence[Bundle], baselines: Sequence[str], setting: Setting, told: Told) -> Iterator[Model]:
    """One at a time: only one is held in memory."""
    for bundle in bundles:
        yield Model(bundle.version, _towers(bundle.version, bundle, told), 0.0, bundle)
    for name in baselines:
        told.progress(f"fitting {name}", None)
        started = time.perf_counter()
        if name in BASELINES:
            ranker = BASELINES[name](setting.training)
            yield Model(name, ranker, time.perf_counter() - started)
        else:
            with _closed_form(setting, CLOSED_FORMS[name], told) as bundle:
                yield Model(name, _towers(name, bundle, told), time.perf_counter() - started, bundle)


@contextmanager
def _closed_form(setting: Setting, polish: bool, told: Told) -> Iterator[Bundle]:
    with tempfile.TemporaryDirectory(prefix="recall-evaluate-") as folder:
        source = replace(setting.source, known_until=lambda _: setting.known)
        job = Job(dim=64, polish=polish, seed=0, until_ms=None, evaluate=False)
        yield fit_bundle(source, job, Path(folder), lambda what: told.progress(f"closed form: {what}", None))


def _towers(name: str, bundle: Bundle, told: Told) -> Ranker:
    progress = _progress(told, f"{name}: embedding users")
    return TowerRanker(embedders(bundle), bundle.encoding, bundle.metric, progress)


def _ranked(name: str, ranker: Ranker, setting: Setting, delay: Delay, told: Told) -> tuple[Ranking, float]:
    started = time.perf_counter()
    try:
        ranking = rank(ranker, setting.visible, setting.window, _progress(told, f"{name}: ranking"), delay)
    except (RankingError, ExtractorError) as error:
        raise RecallError(f"{name}: {error}") from error
    return ranking, time.perf_counter() - started


def _progress(told: Told, what: str) -> Progress:
    return lambda part: told.progress(what, part)
