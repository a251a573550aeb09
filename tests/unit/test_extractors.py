"""Extractors: what they give is held to the spec, is the same in serving and in training, and is found by its name."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import probes, signature, tensors
from models.bundle import Bundle
from models.columns import RequestColumns, UserFeatures
from models.datasets.generated import generate
from models.event_log import EventLog
from models.extractors import ExtractorError
from models.fit import FitError, FitOptions, fit
from models.spec import builtin_spec, parse_spec
from models.tensors import EVERYTHING_MS, Encoding, Vocabularies
from models.training.samples import HISTORY_VECTORS, training_set
from schemas.records import UserRecord
from tests.moods import fit_moody
from workers.errors import ConfigurationError
from workers.extractors import resolve, with_code
from workers.fitting import embedders
from workers.merge import merge
from workers.metrics import Metrics
from workers.pipelines.inputs import user_inputs
from workers.settings import load_settings

EXAMPLE = Path(__file__).parents[2] / "docs/examples/own_extractor"
DECLARED = '[extractors.clock]\nversion = "1"\noutputs.phase = 4\noutputs.recency = 3\n'
TEXT = f"{builtin_spec('movielens').read_text()}\n{DECLARED}"
SPEC = parse_spec(TEXT)
NONE = Vocabularies({}, [])


def clock() -> Callable[..., Mapping[str, Any]]:
    """That of the example, imported from its file."""
    if str(EXAMPLE) not in sys.path:
        sys.path.insert(0, str(EXAMPLE))
    import recall_clock

    return recall_clock.clock


def nobody(rows: int, encoding: Encoding) -> UserFeatures:
    return tensors.user_features([None] * rows, np.full(rows, EVERYTHING_MS), encoding)


def inputs(encoding: Encoding, contexts: list[dict[str, Any]]) -> tuple[tensors.Inputs, list[int]]:
    rows = len(contexts)
    vectors = np.zeros((rows, encoding.spec.history.length, 2), dtype=np.float32)
    found, failed = user_inputs(nobody(rows, encoding), vectors, np.arange(rows) * 1000, contexts, encoding)
    return found, list(failed)


def test_its_columns_are_inputs_of_the_user_tower() -> None:
    encoding = Encoding(SPEC, NONE, {"clock": clock()})
    found, failed = inputs(encoding, [{}, {}])
    assert failed == []
    declared = signature.user_inputs(encoding, 2)
    assert {name: (values.dtype.name, values.shape[1:]) for name, values in found.items()} == {
        name: (array.type, array.shape) for name, array in declared.items()
    }
    drawn = probes.users(encoding, np.zeros((3, 2), dtype=np.float32), 5, numbers=True)
    assert drawn.keys() == declared.keys()


@pytest.mark.parametrize(
    ("outputs", "line"),
    [
        (lambda _: None, "extractor clock: gives NoneType, the spec declares ['phase', 'recency']"),
        (lambda good: {"phase": good["phase"]}, "gives ['phase'], the spec declares ['phase', 'recency']"),
        (lambda good: good | {"more": good["phase"]}, "gives ['more', 'phase', 'recency']"),
        (
            lambda good: good | {"phase": good["phase"].astype(np.float64)},
            "phase is float64[2, 4], must be float32[2, 4]",
        ),
        (lambda good: good | {"phase": good["phase"][:, :3]}, "phase is float32[2, 3], must be float32[2, 4]"),
        (lambda good: good | {"phase": good["phase"][:1]}, "phase is float32[1, 4], must be float32[2, 4]"),
        (lambda good: good | {"phase": good["phase"].tolist()}, "phase is list, must be float32[2, 4]"),
        (lambda good: good | {"phase": good["phase"] * np.float32(np.nan)}, "phase is not finite"),
        (lambda good: 1 / 0, "extractor clock: ZeroDivisionError: division by zero"),
    ],
)
def test_what_it_gives_is_held_to_the_spec(outputs: Callable[[Any], Any], line: str) -> None:
    good = clock()
    encoding = Encoding(SPEC, NONE, {"clock": lambda users, requests: outputs(dict(good(users, requests)))})
    with pytest.raises(ExtractorError) as raised:
        tensors.user_inputs(nobody(2, encoding), np.zeros((2, 50, 2)), np.zeros(2, np.int64), [None] * 2, encoding)
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


def test_without_its_code_there_are_no_inputs() -> None:
    encoding = Encoding(SPEC, NONE)
    with pytest.raises(ExtractorError, match="extractor clock: no code is given for it"):
        tensors.user_inputs(nobody(1, encoding), np.zeros((1, 50, 2)), np.zeros(1, np.int64), [None], encoding)


def test_a_row_that_it_fails_on_does_not_spoil_the_others() -> None:
    good = clock()

    def picky(users: UserFeatures, requests: RequestColumns) -> Mapping[str, Any]:
        assert not any(context.get("bad") for context in requests.contexts)
        return good(users, requests)

    encoding = Encoding(SPEC, NONE, {"clock": picky})
    contexts: list[dict[str, Any]] = [{}, {"bad": True}, {}]
    found, failed = inputs(encoding, contexts)
    whole, _ = inputs(Encoding(SPEC, NONE, {"clock": good}), [{}, {}, {}])
    assert failed == [1]
    for name, values in found.items():
        expected = whole[name].copy()
        if name.startswith("clock_"):
            expected[1] = 0
        np.testing.assert_array_equal(values, expected, err_msg=name)


def test_a_sample_of_training_is_what_serving_gives() -> None:
    dataset = generate(100, 30, 1500)
    catalogue = dataset.catalogue()
    words = tensors.build_vocabularies(dataset.log, catalogue.item_ids, catalogue.attributes, SPEC)
    encoding = Encoding(SPEC, words, {"clock": clock()})
    samples = training_set(dataset.log, catalogue, encoding)
    rows = np.arange(0, len(samples), 11)
    stored = []
    for user, as_of_ms in zip(samples.user[rows].tolist(), samples.as_of_ms[rows].tolist(), strict=True):
        earlier = np.flatnonzero((dataset.user == user) & (dataset.timestamp_ms // 1000 < as_of_ms // 1000))
        events = [each for each in dataset.profile_activities() if each.user_id == dataset.user_ids[user]]
        stored.append(
            merge(UserRecord(), [*events, *dataset.activities(earlier.tolist())], frozenset()).record.encode()
        )
    as_of_ms = samples.as_of_ms[rows]
    features = tensors.user_features(stored, as_of_ms, encoding)
    vectors = np.zeros((len(rows), SPEC.history.length, 1), dtype=np.float32)
    served, _ = user_inputs(features, vectors, as_of_ms, [None] * len(rows), encoding)
    found = samples.batch(rows)
    assert found.keys() | {HISTORY_VECTORS} == served.keys()
    for name, values in found.items():
        assert values.tobytes() == served[name].tobytes(), name
    assert np.unique(found["clock_recency"], axis=0).shape[0] > 5


def test_the_closed_form_goes_by_it(tmp_path: Path) -> None:
    """Its number says in which mood a user is; nothing else does. Its unit does not matter."""
    dataset = generate(items=60, users=60, events=2500)
    declared = '[extractors.feel]\nversion = "1"\noutputs.sign = 1\n'
    for unit in (1.0, 1000.0):

        def feel(_: UserFeatures, requests: RequestColumns, unit: float = unit) -> Mapping[str, Any]:
            signs = [unit if context.get("mood") == "even" else -unit for context in requests.contexts]
            return {"sign": np.array(signs, dtype=np.float32)[:, None]}

        for polish in (False, True):
            bundle = fit_moody(dataset, tmp_path / f"{unit}{polish}", declared, {"feel": feel}, polish=polish)
            assert bundle.encoding.extractors == {"feel": feel}
            users, items = embedders(bundle)
            moods: list[dict[str, Any]] = [{"mood": "even"}, {"mood": "odd"}]
            vectors = np.zeros((2, 50, bundle.dim), dtype=np.float32)
            two = nobody(2, bundle.encoding)
            made = tensors.user_inputs(two, vectors, np.zeros(2, np.int64), moods, bundle.encoding)
            indexed, _ = items(tensors.item_inputs(dataset.item_ids, dataset.attributes, bundle.encoding))
            scores = users(made) @ indexed.T
            better = scores[0] > scores[1]
            assert better[::2].mean() > 0.9
            assert better[1::2].mean() < 0.1


def test_one_that_fails_is_an_error_of_the_fit(tmp_path: Path) -> None:
    dataset = generate(items=60, users=60, events=2500)
    log: EventLog = dataset.log
    options = FitOptions(dim=32, extractors={"clock": lambda *_: {}})
    with pytest.raises(FitError, match="extractor clock: gives"):
        fit(log, dataset.catalogue(), SPEC, TEXT, tmp_path, options, lambda *_: None)
    with pytest.raises(FitError, match="no code is given"):
        fit(log, dataset.catalogue(), SPEC, TEXT, tmp_path, replace(options, extractors={}), lambda *_: None)


def test_its_code_is_found_by_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    settings = load_settings(extractors={"clock": "recall_clock:clock"})
    assert resolve(settings.extractors, SPEC)["clock"].__name__ == "clock"
    monkeypatch.setenv("RECALL_EXTRACTORS", settings.text("extractors"))
    assert load_settings().extractors == settings.extractors


@pytest.mark.parametrize(
    ("places", "text", "line"),
    [
        ({}, TEXT, "the spec has an extractor 'clock', and there is no code for it: install the package that has it"),
        ({"clock": "recall_clock:nothing"}, TEXT, "cannot be loaded: AttributeError: module 'recall_clock' has no"),
        (
            {"clock": "no_such_module:f"},
            TEXT,
            "cannot be loaded: ModuleNotFoundError: No module named",
        ),
        ({"clock": "recall_clock:HOUR_MS"}, TEXT, "extractors.clock: 3600000 cannot be called"),
        (
            {"clock": "recall_clock:clock"},
            TEXT.replace('version = "1"', 'version = "2"'),
            "extractors.clock: its code is version 1, the spec needs 2",
        ),
    ],
)
def test_code_that_cannot_be_had_is_one_line(
    monkeypatch: pytest.MonkeyPatch, places: dict[str, str], text: str, line: str
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    with pytest.raises(ConfigurationError) as raised:
        resolve(places, parse_spec(text))
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_package_that_is_installed_is_found_by_its_entry_point(tmp_path: Path) -> None:
    """The example as somebody else's package: installed, and not named in any setting."""
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for file in EXAMPLE.iterdir():
        if file.is_file():
            (source / file.name).write_bytes(file.read_bytes())
    pip = [sys.executable, "-m", "pip", "--quiet", "install", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(site), str(source)], check=True, cwd=tmp_path, capture_output=True)
    (tmp_path / "features.toml").write_text(TEXT)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from models.spec import load_spec\n"
        "from workers.extractors import resolve\n"
        "from pathlib import Path\n"
        "code = resolve({}, load_spec(Path(sys.argv[2])))['clock']\n"
        "print(sys.modules[code.__module__].__file__)"
    )
    argv = [sys.executable, "-c", script, str(site), str(tmp_path / "features.toml")]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == str(site / "recall_clock.py"), done.stderr


def counted(metrics: Metrics) -> tuple[float | None, float | None]:
    """Calls and failures."""
    value, labels = metrics.registry.get_sample_value, {"extractor": "clock"}
    return value("recall_extractor_ms_count", labels), value("recall_extractor_failures_total", labels)


@pytest.fixture(scope="module")
def clocked(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    dataset = generate(items=60, users=60, events=2500)
    options = FitOptions(dim=32, extractors={"clock": clock()})
    folder = tmp_path_factory.mktemp("bundles")
    return fit(dataset.log, dataset.catalogue(), SPEC, TEXT, folder, options, lambda *_: None)


def test_what_it_takes_and_how_often_it_fails_is_measured(clocked: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    metrics = Metrics()
    settings = load_settings(extractors={"clock": "recall_clock:clock"})
    encoding = with_code(clocked, settings, metrics).encoding
    assert counted(metrics) == (0, 0)
    inputs(encoding, [{}, {}])
    assert counted(metrics) == (1, 0)


@pytest.mark.parametrize(
    ("spoilt", "line"),
    [
        (lambda good: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda good: None, "gives NoneType, the spec declares ['phase', 'recency']"),
        (lambda good: good | {"phase": good["phase"][:, :3]}, "phase is float32[2, 3], must be float32[2, 4]"),
        (lambda good: good | {"phase": good["phase"].astype(float)}, "phase is float64[2, 4], must be float32[2, 4]"),
        (lambda good: good | {"phase": good["phase"] * np.float32(np.nan)}, "phase is not finite"),
    ],
    ids=["raises", "no mapping", "shape", "type", "NaN"],
)
def test_what_it_should_not_give_is_counted_as_a_failure(
    clocked: Bundle, monkeypatch: pytest.MonkeyPatch, spoilt: Callable[[Any], Any], line: str
) -> None:
    """For the batch, and for the row that it fails on."""
    good = clock()

    def code(users: UserFeatures, requests: RequestColumns) -> Any:
        given = dict(good(users, requests))
        return spoilt(given) if any(context.get("bad") for context in requests.contexts) else given

    monkeypatch.setattr(sys.modules["recall_clock"], "spoilt", code, raising=False)
    metrics, contexts = Metrics(), [{"bad": True}, {}]
    encoding = with_code(clocked, load_settings(extractors={"clock": "recall_clock:spoilt"}), metrics).encoding
    vectors, times = np.zeros((2, 50, 2), dtype=np.float32), np.zeros(2, dtype=np.int64)
    with pytest.raises(ExtractorError) as raised:
        tensors.user_inputs(nobody(2, encoding), vectors, times, contexts, encoding)
    assert str(raised.value) == f"extractor clock: {line}"
    assert counted(metrics) == (1, 1)
    _, failed = inputs(encoding, contexts)
    assert failed == [0]
    assert counted(metrics) == (4, 3), "and once more, and its rows one by one"
