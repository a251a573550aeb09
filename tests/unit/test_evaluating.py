"""`recall model evaluate` without a shell: one table of towers and baselines, printed, drawn, refused in one line."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.bundle import load_bundle
from models.datasets.generated import generate
from models.evaluation import protocol
from models.evaluation.chart import draw
from models.evaluation.ranking import Asked
from models.evaluation.report import Resampling
from models.evaluation.timeline import Delay, Timeline
from models.evaluation.two_tower import TowerRanker
from models.evaluation.window import time_window
from models.spec import builtin_spec, load_spec
from models.tensors import Encoding, Inputs, Vocabularies
from tests.e2e.conftest import of_leave_one_out
from workers.cli import model_evaluate
from workers.cli.model_evaluate_print import print_table
from workers.errors import ConfigurationError, RecallError
from workers.evaluating import Question, evaluate
from workers.fitting import Job, Source, exact_ranks, fit_bundle, fitted_until, leave_out
from workers.live.told import Told
from workers.settings import Settings

DATA = generate(items=150, users=80, events=5000)
PATH = builtin_spec(DATA.spec)
SPEC = load_spec(PATH)
SOURCE = Source(DATA.log, DATA.catalogue, SPEC, PATH.read_text(), DATA.test_ms, DATA.validation_ms)
NONE = Vocabularies({}, [])
SETTINGS = Settings()
STREAM = {"stream": "FLAT"}
QUIET = Told(lambda *_: None, lambda _: None, lambda: False)


def question(**changes: Any) -> Question:
    asked = Question((), ("popularity", "closed-form"), None, False, False, {}, {}, Resampling(100))
    return replace(asked, **changes)


@cache
def result() -> dict[str, Any]:
    delays = {"60s": Delay(60_000), "nightly": Delay(nightly=True)}
    return {"data": "generated"} | evaluate(SOURCE, question(delays=delays), QUIET, SETTINGS)


def test_one_table_for_towers_and_baselines(tmp_path: Path) -> None:
    """The figures are those of the ranks that `model fit --evaluate` and the demo compute."""
    models = result()["models"]
    assert list(models) == ["popularity", "closed-form", "closed-form@60s", "closed-form@nightly"]
    job = Job(dim=64, polish=False, seed=0, until_ms=DATA.test_ms, evaluate=False)
    bundle = fit_bundle(SOURCE, job, tmp_path, lambda _: None)
    catalogue = DATA.catalogue()
    asked = protocol.window(DATA.log, catalogue, bundle.encoding, DATA.test_ms)
    ranks = exact_ranks(SOURCE, catalogue, bundle, asked, lambda _: None)
    assert protocol.metrics(ranks).items() <= models["closed-form"].items()
    assert (result()["targets"], result()["requests"]) == (len(asked.item), len(asked.requests.user))
    popular = protocol.popularity_ranks(DATA.log, catalogue, bundle.encoding, asked, DATA.test_ms)
    assert protocol.metrics(popular).items() <= models["popularity"].items()
    groups = models["closed-form"]["groups"]
    for name, rows in protocol.subsets(asked).items():
        assert groups[name]["targets"] == rows.sum()
        assert protocol.metrics(ranks[rows]).items() <= groups[name].items()
    given = evaluate(SOURCE, question(bundles=[bundle.path], baselines=("popularity",)), QUIET, SETTINGS)
    assert given["reference"] == bundle.version, "the first bundle, unless another is named"
    assert given["models"][bundle.version]["recall_at_100"] == models["closed-form"]["recall_at_100"]
    assert given["intervals"]["popularity"]["micro"]["recall_at_100"]["difference"] == pytest.approx(
        models["popularity"]["recall_at_100"] - models["closed-form"]["recall_at_100"]
    )


def test_stale_features_cost_and_only_the_reference_is_asked_with_them() -> None:
    models = result()["models"]
    assert models["closed-form"]["recall_at_10"] > models["closed-form@nightly"]["recall_at_10"]
    assert models["closed-form"]["recall_at_10"] > models["closed-form@60s"]["recall_at_10"]
    assert result()["reference"] == "closed-form"
    assert "closed-form@60s" in result()["intervals"]


def test_popular_items_are_shown_by_popularity_and_few_of_all() -> None:
    popular, towers = (result()["models"][name] for name in ("popularity", "closed-form"))
    counts = np.sort(Timeline(DATA.log.before(DATA.test_ms), DATA.catalogue(), Encoding(SPEC, NONE)).target_counts)
    assert popular["arp_at_100"] > towers["arp_at_100"]
    assert popular["arp_at_100"] <= counts[-100:].mean()
    assert 100 / 150 <= popular["coverage_at_100"] <= 1


def test_the_validation_window_ends_where_the_test_window_begins() -> None:
    found = evaluate(SOURCE, question(validation=True, baselines=("popularity",)), QUIET, SETTINGS)
    assert (found["begin_ms"], found["end_ms"]) == (DATA.validation_ms, DATA.test_ms)
    timeline = Timeline(DATA.log, DATA.catalogue(), Encoding(SPEC, NONE))
    assert found["targets"] == len(time_window(timeline, DATA.validation_ms, DATA.test_ms).item)


def test_events_of_ones_own_are_tested_on_their_last_tenth() -> None:
    own = replace(SOURCE, test_ms=None, validation_ms=None)
    found = evaluate(own, question(baselines=("popularity",)), QUIET, SETTINGS)
    before = (DATA.timestamp_ms < found["begin_ms"]).mean()
    assert before == pytest.approx(0.9, abs=0.01)


def test_leave_one_out_asks_once_for_every_user() -> None:
    found = evaluate(SOURCE, question(leave_one_out=True), QUIET, SETTINGS)
    enough = (np.bincount(DATA.user, minlength=80) >= 3).sum()
    assert found["requests"] == found["targets"] == found["users"] == enough
    assert found["models"]["closed-form"]["recall_at_100"] > 0


def test_the_metric_of_the_bundle_is_that_of_the_ranking() -> None:
    """Of the items (3, 0), (1, 1) and (4, 4), the user (1, 0.2) prefers another by each metric."""
    vectors = np.array([[3, 0], [1, 1], [4, 4]], dtype=np.float32)
    catalogue = replace(DATA.catalogue(), item_ids=["a", "b", "c"], attributes=[{}] * 3)
    catalogue = replace(catalogue, hashes=catalogue.hashes[:3])
    timeline = Timeline(DATA.log, catalogue, Encoding(SPEC, NONE))
    asked = Asked.of(timeline, time_window(timeline, 0).requests.piece(0, 1))

    def users(inputs: Inputs) -> np.ndarray:
        return np.repeat(np.array([[1, 0.2]], dtype=np.float32), len(inputs["gap_s"]), axis=0)

    best = {}
    for metric in ("IP", "COSINE", "L2"):
        towers = (users, lambda _: (vectors, np.zeros_like(vectors)))
        scores = TowerRanker(towers, Encoding(SPEC, NONE), metric, lambda _: None)(asked)(0, 1)
        best[metric] = int(scores[0].argmax())
    assert best == {"IP": 2, "COSINE": 0, "L2": 1}


def test_the_table_is_printed_whole(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(result())
    said = capsys.readouterr().out
    figure = result()["models"]["closed-form"]["recall_at_100"]
    bars = [line for line in said.splitlines() if "###" in line]
    assert len(bars) == 4
    assert bars[1].endswith(f"{figure:.4f}")
    assert max(bar.count("#") for bar in bars) == 40
    low = result()["intervals"]["popularity"]["micro"]["recall_at_10"]["low"]
    assert f"[{low:+.4f}," in said


def test_the_chart_is_a_png(tmp_path: Path) -> None:
    draw(result(), tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"streams": STREAM, "leave_one_out": True}, "needs --data and the temporal protocol"),
        ({"streams": STREAM, "reference": "popularity"}, "popularity has no towers to serve"),
        ({"delays": {"60s": Delay(60_000)}, "leave_one_out": True}, "--delay needs the temporal protocol"),
        ({"delays": {"nightly": Delay(nightly=True)}, "leave_one_out": True}, "--delay needs the temporal protocol"),
    ],
)
def test_only_a_window_of_time_is_asked_late_or_through_the_stream_and_that_only_of_towers(
    changes: dict[str, Any], line: str
) -> None:
    with pytest.raises(ConfigurationError, match=line):
        evaluate(replace(SOURCE, dataset=DATA), question(**changes), QUIET, SETTINGS)


def test_a_bundle_of_real_time_is_refused_where_time_is_a_place(tmp_path: Path) -> None:
    job = Job(dim=64, polish=False, seed=0, until_ms=DATA.test_ms, evaluate=False)
    bundle = fit_bundle(SOURCE, job, tmp_path, lambda _: None)
    with pytest.raises(ConfigurationError, match="was fitted on events up to"):
        evaluate(SOURCE, question(bundles=[bundle.path], leave_one_out=True), QUIET, SETTINGS)


def test_a_bundle_of_places_is_refused_where_time_is_real(tmp_path: Path) -> None:
    """Its newest event is no later than any window begins, whatever it was trained on: a place is a small number."""
    left, _ = leave_out(SOURCE, validation=True)
    job = Job(dim=64, polish=False, seed=0, until_ms=None, evaluate=False)
    path = of_leave_one_out(fit_bundle(left, job, tmp_path, lambda _: None).path)
    assert load_bundle(path).manifest.figures["newest_event_ms"] < DATA.timestamp_ms.min()
    for changes in ({}, {"validation": True}):
        with pytest.raises(ConfigurationError, match="was trained by leave-one-out"):
            evaluate(SOURCE, question(bundles=[path], baselines=(), **changes), QUIET, SETTINGS)
    found = evaluate(SOURCE, question(bundles=[path], baselines=(), leave_one_out=True), QUIET, SETTINGS)
    assert found["reference"] == path.name


def test_what_is_reported_on_is_not_fitted_on() -> None:
    assert fitted_until(SOURCE, None, evaluate=True) == DATA.test_ms
    assert fitted_until(SOURCE, DATA.validation_ms, evaluate=True) == DATA.validation_ms
    assert fitted_until(SOURCE, DATA.test_ms, evaluate=True) == DATA.test_ms
    with pytest.raises(ConfigurationError, match=f"--until-ms {DATA.test_ms + 1} is later than {DATA.test_ms}.*--eval"):
        fitted_until(SOURCE, DATA.test_ms + 1, evaluate=True)
    assert fitted_until(SOURCE, DATA.test_ms + 1, evaluate=False) == DATA.test_ms + 1
    assert fitted_until(SOURCE, None, evaluate=False) is None


def test_nothing_to_ask_is_an_error() -> None:
    late = replace(SOURCE, test_ms=int(DATA.timestamp_ms.max()) + 1)
    with pytest.raises(RecallError, match="no target event"):
        evaluate(late, question(), QUIET, SETTINGS)


@pytest.mark.parametrize(("missing", "baselines"), [("implicit", "ials"), ("scipy", "all")])
def test_a_missing_extra_is_one_line(missing: str, baselines: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_evaluate, "_installed", lambda module: module != missing)
    with pytest.raises(ConfigurationError, match=r"pip install '\.\[evaluate\]' in the checkout"):
        model_evaluate.evaluate(baselines=baselines)


def test_a_chart_without_matplotlib_is_refused_before_the_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(model_evaluate, "_installed", lambda module: module != "matplotlib")
    with pytest.raises(ConfigurationError, match="--chart` needs the extra `evaluate`"):
        model_evaluate.evaluate(chart=tmp_path / "chart.png")


def test_of_all_baselines_those_without_their_library_are_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(model_evaluate, "_installed", lambda module: module != "implicit")
    with model_evaluate.Working("x") as working:
        names = model_evaluate._baselines("all", working)
    assert "ials" not in names
    assert "closed-form" in names
    assert "left out: the baseline ials needs the extra `evaluate`" in capsys.readouterr().err
