"""Every check of a tower passes what it should, and fails in one line on what it is for."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from models import probes, signature, verify
from models.bundle import FILES, Bundle, write_bundle
from models.datasets.generated import generate
from models.event_log import Catalogue
from models.signature import Array
from models.spec import builtin_spec, load_spec
from models.tensors import Encoding, Vocabularies
from models.verify import Declared, Unfit
from schemas.items import ItemUpdate
from tests import own_towers
from tests.e2e.conftest import fit_small
from tests.own_towers import FEATURES, Edit, write_towers
from workers.errors import ConfigurationError
from workers.packing import Job, run_pack
from workers.towers.onnx import open_tower
from workers.verifying import Report, verify_bundle

VECTORS = {"v": Array("float32", (2,))}
X = {"x": np.arange(8, dtype=np.float32)}


def fails(work: Callable[[], str]) -> str:
    with pytest.raises(Unfit) as raised:
        work()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def twice(inputs: dict) -> np.ndarray:
    return np.stack([inputs["x"], 2 * inputs["x"]], axis=1)


# what is declared


@pytest.mark.parametrize(
    ("found", "line"),
    [
        ({}, "input 'x' is missing, the bundle says float32[batch]"),
        ({"x": Declared("int64", ("n",))}, "input 'x' is int64[n], the bundle says float32[batch]"),
        ({"x": Declared("float32", ("n", 2))}, "input 'x' is float32[n, 2], the bundle says float32[batch]"),
        ({"x": Declared("float32", ())}, "input 'x' is float32[], its batch must be free: a dynamic first axis"),
        ({"x": Declared("float32", (1,))}, "input 'x' is float32[1], its batch must be free: a dynamic first axis"),
        (
            {"x": Declared("float32", ("n",)), "y": Declared("float32", (None,))},
            "input 'y' is float32[?], the bundle says missing",
        ),
    ],
)
def test_what_is_declared_otherwise(found: dict, line: str) -> None:
    assert fails(lambda: verify.check_declared("input", found, {"x": Array("float32")})) == line


@pytest.mark.parametrize("batch", ["n", None])
def test_what_is_declared_as_it_should_be(batch: str | None) -> None:
    assert verify.check_declared("input", {"x": Declared("float32", (batch, 3))}, {"x": Array("float32", (3,))})


# what comes out


def no_vector(inputs: dict) -> dict:
    raise RuntimeError("two\nlines")


@pytest.mark.parametrize(
    ("run", "line"),
    [
        (no_vector, "fails on 8 rows: two lines"),
        (lambda i: {"v": twice(i)[:, :1]}, "output 'v' is float32[8, 1] for 8 rows, not float32[8, 2]"),
        (lambda i: {"v": twice(i)[:5]}, "output 'v' is float32[5, 2] for 8 rows, not float32[8, 2]"),
        (lambda i: {"v": twice(i).astype(np.float64)}, "output 'v' is float64[8, 2] for 8 rows, not float32[8, 2]"),
        (
            lambda i: {"v": np.where(twice(i) == 3, np.float32(np.nan), twice(i))},
            "output 'v' is not finite for 1 of 8 rows",
        ),
        (
            lambda i: {"v": twice(i) / np.float32(0) if len(i["x"]) else None},
            "output 'v' is not finite for 8 of 8 rows, also where nothing is known",
        ),
        (lambda i: {"v": twice(i) * np.float32(1e16)}, "output 'v' has a vector of length "),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_what_comes_out_wrong(run: verify.Run, line: str) -> None:
    assert fails(lambda: verify.check_runs(run, X, VECTORS)).startswith(line)


def test_what_comes_out_right() -> None:
    run = lambda i: {"v": twice(i)}  # noqa: E731
    assert verify.check_runs(run, X, VECTORS) == "runs, finite for all of 8 rows"
    assert verify.check_batch(run, X).startswith("batch 1 and batch 8 differ by 0, ")


@pytest.mark.parametrize(
    ("run", "line"),
    [
        (lambda i: {"v": twice(i) - twice(i).mean(axis=0)}, "output 'v' differs by "),
        (lambda i: {"v": twice(i) + (0 if len(i["x"]) > 1 else 1e-4)}, "output 'v' differs by 0.0001 "),
        (lambda i: {"v": twice(i) * (1 if len(i["x"]) > 1 else np.nan)}, "output 'v' differs by nan "),
        (
            lambda i: {"v": twice(i) if len(i["x"]) > 1 else twice(i)[:, :1]},
            "output 'v' has a shape that depends on the batch: [1, 1] at batch 1, [8, 2] at batch 8",
        ),
        (lambda i: {"v": twice(i)} if len(i["x"]) > 1 else no_vector(i), "fails on 1 rows: two lines"),
    ],
)
def test_what_depends_on_the_batch(run: verify.Run, line: str) -> None:
    assert fails(lambda: verify.check_batch(run, X)).startswith(line)


def test_rounding_of_large_values_does_not_depend_on_the_batch() -> None:
    large = {"x": np.full(8, 1e4, dtype=np.float32)}
    assert verify.check_batch(lambda i: {"v": twice(i) + (0.01 if len(i["x"]) > 1 else 0)}, large)


# metric and floor


def some(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, 16)).astype(np.float32)


def test_cosine_needs_lengths() -> None:
    zero = some(5) * np.array([[1], [0], [1], [1], [1]], dtype=np.float32)
    line = "COSINE cannot compare vectors of length 0: 1 of 5 item vectors"
    assert fails(lambda: verify.check_metric("COSINE", some(3), zero)) == line
    assert "user vectors" in fails(lambda: verify.check_metric("COSINE", zero, some(3)))
    for metric in ("IP", "L2"):
        assert verify.check_metric(metric, zero, zero).startswith(f"{metric}; item vectors have lengths 0 to ")


def test_items_must_differ() -> None:
    assert verify.check_items_differ(50, {"v": some(50)}) == "50 different items have different vectors: 50 in 'v'"
    few = some(20)[np.arange(50) % 20]
    assert fails(lambda: verify.check_items_differ(50, {"v": few})).endswith("have 20 different vectors in 'v'")
    nearly = 1 + 1e-7 * some(50)
    assert fails(lambda: verify.check_items_differ(50, {"v": nearly})).endswith("have 1 different vectors in 'v'")
    assert "the same inputs" in fails(lambda: verify.check_items_differ(1, {"v": some(1)}))


def test_users_must_be_told_apart() -> None:
    assert verify.check_users_found(some(64), some(64) + np.float32(0.01)).startswith("64 of 64 ")
    assert fails(lambda: verify.check_users_found(np.ones((64, 4)), np.ones((64, 4)))).startswith("0 of 64 ")
    assert "hardly" in fails(lambda: verify.check_users_found(some(64), some(64, seed=1)))


@pytest.mark.parametrize("metric", ["IP", "COSINE", "L2"])
def test_what_was_seen_must_count(metric: str) -> None:
    items = some(200)
    assert "stand at 0.00 of all" in verify.check_seen_counts(metric, items + 0.1 * some(200, seed=1), items)
    elsewhere = np.linalg.qr(some(16, seed=2))[0]
    for other in (items @ elsewhere, some(200, seed=3), np.tile(some(1), (200, 1)), -items):
        assert "do not fit the item vectors" in fails(
            lambda other=other: verify.check_seen_counts(metric, other, items)
        )


# probes


@pytest.mark.parametrize("numbers", [False, True])
@pytest.mark.parametrize("name", ["movielens", "marketplace"])
def test_probes_are_what_the_signature_says_and_reach_the_last_codes(name: str, numbers: bool) -> None:
    spec = load_spec(builtin_spec(name))
    sections = {section: getattr(spec, section) for section in ("profile", "context", "item")}
    words = {f"{s}.{f}": ["a", "b", "c"] for s, fields in sections.items() for f in fields}
    encoding = Encoding(spec, Vocabularies(words, [f"i{n}" for n in range(9)]))
    items = probes.items(encoding, 64, numbers=numbers)
    users = probes.users(encoding, some(9), 64, numbers=numbers)
    for made, declared in ((items, signature.item_inputs(encoding)), (users, signature.user_inputs(encoding, 16))):
        assert {k: Array(str(v.dtype), v.shape[1:]) for k, v in made.items()} == declared
        assert not any(column[0].any() for column in made.values()), "of the first nothing is known"
    assert sorted(set(items["item_code"].tolist())) == list(range(10))
    assert users["history_codes"].max() == len(spec.history.codes)
    for section, made in (("profile", users), ("context", users), ("item", items)):
        for field, kind in sections[section].items():
            column = made[f"{section}_{field}"]
            if kind.kind in {"category", "bucket"}:
                assert column.max() == column[1] == (3 if kind.kind == "category" else len(kind.edges) + 1)
            elif kind.kind == "number":
                assert bool(column.any()) is numbers
    later = probes.a_minute_later(users)
    assert {k: v.shape for k, v in later.items()} == {k: v.shape for k, v in users.items()}
    assert ((users["history_age_s"] > 0).sum(1) - (later["history_age_s"] > 0).sum(1) <= 1).all()
    assert later["gap_s"][0] == 0
    np.testing.assert_array_equal(later["gap_s"][1:], users["gap_s"][1:] + np.float32(60))


# whole bundles


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return fit_small(generate(100, 60, 2500), tmp_path_factory.mktemp("bundles"))


def results(report: Report) -> dict[str, str]:
    return {each.check: each.result for each in report.checks}


def test_a_fitted_bundle_is_well(fitted: Bundle) -> None:
    report = verify_bundle(fitted.path)
    assert set(results(report).values()) == {"ok"}, report.checks
    assert {side: set(found) for side, found in report.latency_ms.items()} == {k: {"1", "64"} for k in ("user", "item")}


def test_on_items_of_ones_own(fitted: Bundle) -> None:
    dataset = generate(100, 60, 2500)
    assert set(results(verify_bundle(fitted.path, dataset.catalogue())).values()) == {"ok"}
    same = [ItemUpdate(item_id=f"new-{n}", op="upsert", timestamp_ms=1, attributes={}) for n in range(9)]
    report = verify_bundle(fitted.path, Catalogue.from_updates(same))
    assert "floor: items" in {each.check for each in report.failed}


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_fails_and_nothing_else_is_looked_at(fitted: Bundle, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(fitted.path, tmp_path / "copy")
    (copy / name).write_bytes((copy / name).read_bytes() + b" ")
    report = verify_bundle(copy)
    assert results(report) == {"files": "failed"}
    assert f"{name} is not the file that was packed" in report.checks[0].line


def test_a_changed_dimension_and_metric(fitted: Bundle, tmp_path: Path) -> None:
    manifest = json.loads((fitted.path / "bundle.json").read_text())
    for change in ({"dim": 64}, {"metric": "L2"}):
        copy = shutil.copytree(fitted.path, tmp_path / next(iter(change)))
        (copy / "bundle.json").write_text(json.dumps(manifest | change))
        assert results(verify_bundle(copy)) == {"files": "failed"}


def bundle_with(folder: Path, user: Edit = lambda _: None, item: Edit = lambda _: None) -> Bundle:
    """A bundle whose checksums are right, and whose towers were edited after they were packed."""
    write_towers(folder)
    job = Job(folder / "user.onnx", folder / "item.onnx", FEATURES, folder / "vocabularies.json", "IP", floor=True)
    whole = run_pack(job, folder / "bundles", lambda _: None).bundle
    towers = []
    for path, edit in ((whole.user_tower, user), (whole.item_tower, item)):
        model = onnx.load(path)
        edit(model)
        towers.append(model.SerializeToString())
    return write_bundle(
        folder / "edited",
        towers=(towers[0], towers[1]),
        features=FEATURES.read_text(),
        encoding=whole.encoding,
        dim=whole.dim,
        metric=whole.metric,
        figures={},
    )


def first_is_nan(values: np.ndarray) -> np.ndarray:
    values[:] = np.nan
    return values


def elsewhere(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.data")


DAMAGE: dict[str, tuple[str, Edit, str]] = {
    "weights in another file": ("user", elsewhere, "user tower"),
    "no model": ("user", lambda model: model.Clear(), "user tower"),
    "an input of another name": ("user", own_towers.renamed("gap_s", "pause_s"), "user inputs"),
    "an output of another name": ("user", own_towers.renamed("user_embedding", "out"), "user outputs"),
    "another type": ("item", own_towers.declared("item_code", TensorProto.INT32, ["batch"]), "item tower"),
    "a static batch": ("user", own_towers.batch_of(64), "user inputs"),
    "nan": ("user", own_towers.weight("mean_user", first_is_nan), "user finite"),
    "it does not run": ("item", own_towers.weight("table", lambda values: values[:1]), "item finite"),
    "batch": ("user", own_towers.depends_on_the_batch, "user batch"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_fails_its_check_and_a_start(tmp_path: Path, name: str) -> None:
    side, edit, check = DAMAGE[name]
    bundle = bundle_with(tmp_path, **{side: edit})
    report = verify_bundle(bundle.path)
    assert report.failed[0].check == check, report.checks
    assert all(each.line.startswith("needs ") for each in report.checks if each.result == "skipped")
    with pytest.raises(ConfigurationError) as raised:
        open_tower(bundle, side, 1000)
    assert str(raised.value) == f"{bundle.path / side}_tower.onnx: {report.failed[0].line}" or check == "user batch"
    assert "\n" not in str(raised.value)


def test_an_unused_row_that_is_nan_fails_verify_and_no_start(tmp_path: Path) -> None:
    """Only all of it sees every item of the vocabulary."""

    def last(values: np.ndarray) -> np.ndarray:
        values[7] = np.nan
        return values

    bundle = bundle_with(tmp_path, item=own_towers.weight("table", last))
    assert [each.check for each in verify_bundle(bundle.path).failed] == ["item finite"]
