"""The port Tower on ONNX Runtime."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models import signature, tensors
from models.bundle import Bundle
from models.datasets.generated import generate
from models.signature import Array
from tests.e2e.conftest import fit_small
from workers.errors import ConfigurationError, DependencyTimeout, DependencyUnavailable, RowRefused
from workers.towers.onnx import OnnxTower

DIM = 32


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return fit_small(generate(60, 60, 2500), tmp_path_factory.mktemp("bundles"))


def open_tower(bundle: Bundle, timeout_ms: int = 5000) -> OnnxTower:
    inputs, outputs = signature.user_inputs(bundle.encoding, DIM), signature.user_outputs(DIM)
    return OnnxTower(bundle.user_tower, inputs, outputs, timeout_ms)


@pytest.fixture
async def tower(bundle: Bundle) -> AsyncIterator[OnnxTower]:
    tower = open_tower(bundle)
    yield tower
    await tower.close()


def some_inputs(bundle: Bundle, rows: int) -> tensors.Inputs:
    rng = np.random.default_rng(1)
    records: list[bytes | None] = [None] * rows
    inputs = tensors.user_inputs(
        tensors.user_features(records, np.full(rows, tensors.EVERYTHING_MS), bundle.encoding),
        rng.standard_normal((rows, 50, DIM)).astype(np.float32),
        np.zeros(rows, dtype=np.int64),
        [None] * rows,
        bundle.encoding,
    )
    inputs["history_codes"] = rng.integers(0, 6, (rows, 50))
    inputs["event_count"] = rng.integers(0, 90, rows).astype(np.float32)
    return inputs


async def test_a_batch_is_its_rows_one_by_one(bundle: Bundle, tower: OnnxTower) -> None:
    inputs = some_inputs(bundle, 64)
    together = (await tower.embed(inputs))["user_embedding"]
    assert (together.shape, together.dtype) == ((64, DIM), np.float32)
    for n in range(64):
        alone = await tower.embed({name: column[n : n + 1] for name, column in inputs.items()})
        np.testing.assert_allclose(alone["user_embedding"][0], together[n], atol=1e-6)


async def test_an_empty_and_a_very_large_batch(bundle: Bundle, tower: OnnxTower) -> None:
    assert (await tower.embed(some_inputs(bundle, 0)))["user_embedding"].shape == (0, DIM)
    assert (await tower.embed(some_inputs(bundle, 5000)))["user_embedding"].shape == (5000, DIM)


async def test_concurrent_calls(bundle: Bundle, tower: OnnxTower) -> None:
    inputs = some_inputs(bundle, 7)
    expected = (await tower.embed(inputs))["user_embedding"]
    for outputs in await asyncio.gather(*(tower.embed(inputs) for _ in range(20))):
        np.testing.assert_array_equal(outputs["user_embedding"], expected)


async def test_rows_that_make_it_fail_are_refused_and_others_are_not(tmp_path: Path) -> None:
    """A code that is out of the bounds of a table inside the model fails the whole run."""
    inputs, outputs = {"code": Array("int64")}, {"out": Array("float32", (2,))}
    tower = OnnxTower(table_of_three(tmp_path), inputs, outputs, 5000)
    assert (await tower.embed({"code": np.array([0, 2])}))["out"].tolist() == [[0, 0], [2, 2]]
    with pytest.raises(RowRefused):
        await tower.embed({"code": np.array([0, 3])})
    assert tower.running is None
    await tower.close()


async def test_one_that_fails_for_whatever_rows_is_unavailable(tmp_path: Path) -> None:
    tower = OnnxTower(
        table_of_three(tmp_path, shift=7), {"code": Array("int64")}, {"out": Array("float32", (2,))}, 5000
    )
    with pytest.raises(DependencyUnavailable):
        await tower.embed({"code": np.array([0])})
    await tower.close()


async def test_one_that_gives_nan_for_whatever_rows_is_unavailable_and_for_some_it_is_theirs(tmp_path: Path) -> None:
    inputs, outputs = {"code": Array("int64")}, {"out": Array("float32", (2,))}
    for nan_at, for_anybody in ((slice(2, 3), False), (slice(0, 3), True)):
        tower = OnnxTower(table_of_three(tmp_path, nan_at=nan_at), inputs, outputs, 5000)
        if for_anybody:
            with pytest.raises(DependencyUnavailable, match="for anybody"):
                await tower.embed({"code": np.array([1, 2])})
            with pytest.raises(DependencyUnavailable):
                await tower.ping()
        else:
            out = (await tower.embed({"code": np.array([1, 2])}))["out"]
            assert np.isfinite(out).all(axis=1).tolist() == [True, False]
            await tower.ping()
        assert tower.running is None
        await tower.close()


def table_of_three(folder: Path, shift: int = 0, nan_at: slice = slice(0)) -> Path:
    """out = table[code + shift], with NaN in some of its rows."""
    rows = np.array([[0, 0], [1, 1], [2, 2]], dtype=np.float32)
    rows[nan_at] = np.nan
    table = numpy_helper.from_array(rows, "table")
    nodes = [
        helper.make_node("Add", ["code", "shift"], ["shifted"]),
        helper.make_node("Gather", ["table", "shifted"], ["out"]),
    ]
    code = helper.make_tensor_value_info("code", TensorProto.INT64, ["batch"])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 2])
    constants = [table, numpy_helper.from_array(np.array(shift), "shift")]
    graph = helper.make_graph(nodes, "table", [code], [out], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "table.onnx")
    return folder / "table.onnx"


async def test_nan_goes_through_in_its_own_row(bundle: Bundle, tower: OnnxTower) -> None:
    inputs = some_inputs(bundle, 3)
    inputs["history_codes"][:] = 5
    inputs["history_vectors"][1] = np.nan
    finite = np.isfinite((await tower.embed(inputs))["user_embedding"]).all(axis=1)
    assert finite.tolist() == [True, False, True]


async def test_the_deadline_is_kept(bundle: Bundle) -> None:
    tower = open_tower(bundle, timeout_ms=1)
    with pytest.raises(DependencyTimeout):
        await tower.embed(some_inputs(bundle, 20_000))
    await tower.close()


def test_a_tower_that_is_not_the_bundles_is_refused_in_one_line(bundle: Bundle, tmp_path) -> None:
    inputs, outputs = signature.user_inputs(bundle.encoding, DIM), signature.user_outputs(DIM)
    cases = [
        (inputs | {"mood": Array("int64")}, outputs, "input 'mood' is missing"),
        (inputs, signature.user_outputs(64), "output 'user_embedding' is float32[batch, 32]"),
        ({k: v for k, v in inputs.items() if k != "gap_s"}, outputs, "the bundle says missing"),
    ]
    for wrong_inputs, wrong_outputs, line in cases:
        with pytest.raises(ConfigurationError) as raised:
            OnnxTower(bundle.user_tower, wrong_inputs, wrong_outputs, 1000)
        assert line in str(raised.value)
    (tmp_path / "no.onnx").write_bytes(b"rubbish")
    with pytest.raises(ConfigurationError, match="cannot be opened"):
        OnnxTower(tmp_path / "no.onnx", inputs, outputs, 1000)


async def test_a_ping_runs_the_model(tower: OnnxTower) -> None:
    await tower.ping()
    await tower.close()
    with pytest.raises(DependencyUnavailable):
        await tower.ping()


async def test_closing_twice(bundle: Bundle) -> None:
    tower = open_tower(bundle)
    await tower.close()
    await tower.close()
    with pytest.raises(DependencyUnavailable):
        await tower.embed(some_inputs(bundle, 1))
