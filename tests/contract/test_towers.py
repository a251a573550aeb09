"""The port Tower: one suite for every adapter, against our own test server, or the one that `--backend` names."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from models import probes, verify
from models.bundle import Bundle
from models.tensors import Inputs
from models.verify import Side
from tests.backends.backend import Backend
from tests.backends.registry import backend, chosen
from tests.chaos.proxy import Proxy
from workers.errors import ConfigurationError, DependencyError, DependencyTimeout, DependencyUnavailable, RowRefused
from workers.local.process import free_ports
from workers.ports import Tower
from workers.settings import Settings
from workers.towers import onnx as here
from workers.towers.opening import open_tower

TIMEOUT_MS = 5000
BACK_WITHIN_S = 30.0
FAR_CODE = 1_000_000  # outside every table of a tower: it cannot run
OUTPUT = "user_embedding"

T = TypeVar("T")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`way`: every adapter and protocol; `remote`: those with a server."""
    ways = backend(chosen(metafunc.config)).ways
    if "remote" in metafunc.fixturenames:
        metafunc.parametrize("way", [way for way in ways if way != "onnx"])
    elif "way" in metafunc.fixturenames:
        metafunc.parametrize("way", ways)


@pytest.fixture
def started(request: pytest.FixtureRequest, started_backend: Callable[[str], Backend]) -> Backend:
    return started_backend(chosen(request.config))


@pytest.fixture
def bundle(started: Backend) -> Bundle:
    found = started.bundle
    assert isinstance(found, Bundle)
    return found


async def again(call: Callable[[], Awaitable[T]], error: type[DependencyError] = DependencyTimeout) -> T:
    """Call until it does not fail with this error."""
    end = time.monotonic() + BACK_WITHIN_S
    while True:
        try:
            return await call()
        except error:
            assert time.monotonic() < end, "it does not come back"
            await asyncio.sleep(0.05)


@dataclass
class Remote:
    """A way to a server through a proxy, which can delay, cut or end what goes through."""

    settings: Settings
    proxy: Proxy

    async def until_back(self, tower: Tower) -> None:
        """Ask until it answers: connections are opened again some time after a server is."""
        await again(tower.ping, DependencyError)


@pytest.fixture
async def remote(started: Backend, way: str) -> AsyncIterator[Remote]:
    overrides = started.settings(way)
    parts = urlsplit(str(overrides["tower_url"]))
    assert parts.port is not None
    (port,) = free_ports(1)
    proxy = Proxy(port, parts.port)
    await proxy.start()
    overrides |= {"tower_url": f"{parts.scheme}://127.0.0.1:{port}"}
    yield Remote(Settings(**overrides | {"tower_timeout_ms": TIMEOUT_MS}), proxy)
    await proxy.stop()


@pytest.fixture
def reach(started: Backend, way: str, bundle: Bundle) -> Callable[..., Awaitable[Tower]]:
    """Opens a side's tower without anything in between."""

    async def opened(side: Side = "user", **changed: object) -> Tower:
        settings = Settings(**started.settings(way) | {"tower_timeout_ms": TIMEOUT_MS} | changed)
        return await open_tower(bundle, side, settings)

    return opened


@pytest.fixture
async def tower(reach: Callable[..., Awaitable[Tower]]) -> AsyncIterator[Tower]:
    tower = await reach()
    yield tower
    await tower.close()


def users(bundle: Bundle, rows: int) -> Inputs:
    vectors = np.random.default_rng(3).standard_normal((64, bundle.dim)).astype(np.float32) / np.float32(8)
    return probes.users(bundle.encoding, vectors, rows, numbers=False, seed=rows)


def own(bundle: Bundle, side: Side, inputs: Inputs) -> dict[str, np.ndarray]:
    return here.open_tower(bundle, side, TIMEOUT_MS).run(inputs)


def with_far_code(inputs: Inputs, row: int) -> Inputs:
    codes = inputs["history_codes"].copy()
    codes[row] = FAR_CODE
    return inputs | {"history_codes": codes}


async def test_vectors_are_those_of_the_bundles_file(bundle: Bundle, reach: Callable[..., Awaitable[Tower]]) -> None:
    sides: list[tuple[Side, Inputs]] = [
        ("user", users(bundle, 50)),
        ("item", probes.items(bundle.encoding, 50, numbers=True)),
    ]
    for side, inputs in sides:
        tower, wanted = await reach(side), own(bundle, side, inputs)
        found = await tower.embed(inputs)
        await tower.close()
        assert found.keys() == wanted.keys()
        assert {array.dtype for array in found.values()} == {np.dtype("float32")}
        verify.check_same(found, wanted)


async def test_a_batch_is_its_rows_one_by_one_in_their_order(bundle: Bundle, tower: Tower) -> None:
    inputs = users(bundle, 20)
    together = (await tower.embed(inputs))[OUTPUT]
    assert together.shape == (20, bundle.dim)
    assert len(np.unique(np.round(together, 4), axis=0)) > 10
    for n in range(20):
        alone = await tower.embed({name: column[n : n + 1] for name, column in inputs.items()})
        np.testing.assert_allclose(alone[OUTPUT][0], together[n], rtol=1e-5, atol=1e-5)


async def test_an_empty_batch_asks_nobody(bundle: Bundle, tower: Tower) -> None:
    found = await tower.embed(users(bundle, 1) | {name: column[:0] for name, column in users(bundle, 1).items()})
    assert found[OUTPUT].shape == (0, bundle.dim)


async def test_a_very_large_batch_is_split(bundle: Bundle, reach: Callable[..., Awaitable[Tower]]) -> None:
    inputs = users(bundle, 1000)
    tower = await reach(tower_timeout_ms=60_000)
    verify.check_same(await tower.embed(inputs), own(bundle, "user", inputs))
    await tower.close()


async def test_wrong_inputs_are_the_towers_failure(bundle: Bundle, tower: Tower) -> None:
    inputs = users(bundle, 3)
    for wrong in (
        {name: column for name, column in inputs.items() if name != "gap_s"},
        inputs | {"history_vectors": inputs["history_vectors"][:, :, :-1]},
        inputs | {"gap_s": inputs["gap_s"].astype(np.int64)},
    ):
        with pytest.raises(DependencyUnavailable) as raised:
            await tower.embed(wrong)
        assert "\n" not in str(raised.value)
    await tower.ping()


async def test_nan_stays_in_its_row(bundle: Bundle, tower: Tower) -> None:
    inputs = users(bundle, 5)
    inputs["history_codes"][:, -1] = 1
    inputs["history_vectors"][3] = np.nan
    found = (await tower.embed(inputs))[OUTPUT]
    assert np.isfinite(found).all(axis=1).tolist() == [True, True, True, False, True]
    rows = [0, 1, 2, 4]
    clean = users(bundle, 5)
    clean["history_codes"][:, -1] = 1
    np.testing.assert_allclose(found[rows], own(bundle, "user", clean)[OUTPUT][rows], rtol=1e-5, atol=1e-5)


async def test_rows_that_it_cannot_run_are_refused_and_others_are_not(bundle: Bundle, tower: Tower) -> None:
    inputs = users(bundle, 4)
    with pytest.raises(RowRefused) as raised:
        await tower.embed(with_far_code(inputs, 2))
    assert "\n" not in str(raised.value)
    verify.check_same(await tower.embed(inputs), own(bundle, "user", inputs))


async def test_concurrent_calls_get_their_own_answers(bundle: Bundle, tower: Tower) -> None:
    batches = [users(bundle, rows) for rows in range(1, 17)]
    found = await asyncio.gather(*(tower.embed(inputs) for inputs in batches))
    for inputs, outputs in zip(batches, found, strict=True):
        verify.check_same(outputs, own(bundle, "user", inputs))


async def test_a_call_that_is_cancelled_harms_no_other(bundle: Bundle, tower: Tower) -> None:
    inputs = users(bundle, 8)
    for wait_s in (0.0, 0.001, 0.003):
        task = asyncio.create_task(tower.embed(inputs))
        await asyncio.sleep(wait_s)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        verify.check_same(await tower.embed(inputs), own(bundle, "user", inputs))


async def test_closing_twice(bundle: Bundle, reach: Callable[..., Awaitable[Tower]]) -> None:
    tower = await reach()
    await tower.close()
    await tower.close()
    with pytest.raises(DependencyUnavailable):
        await tower.embed(users(bundle, 1))


async def test_a_slow_answer_is_given_up_at_the_deadline(bundle: Bundle, remote: Remote) -> None:
    remote.settings = remote.settings.model_copy(update={"tower_timeout_ms": 1000})
    tower = await again(lambda: open_tower(bundle, "user", remote.settings))
    remote.proxy.delay_s = 3.0  # who waits longer gets an answer
    for rows in (1, 200):
        with pytest.raises(DependencyTimeout) as raised:
            await tower.embed(users(bundle, rows))
        assert "1000 ms" in str(raised.value)
    remote.proxy.delay_s = 0.0
    await remote.until_back(tower)
    inputs = users(bundle, 3)
    verify.check_same(await again(lambda: tower.embed(inputs)), own(bundle, "user", inputs))
    await tower.close()


async def test_a_server_that_is_down_at_start(bundle: Bundle, remote: Remote) -> None:
    await remote.proxy.stop()
    with pytest.raises(DependencyUnavailable) as raised:
        await open_tower(bundle, "user", remote.settings)
    assert remote.settings.tower_url in str(raised.value)
    assert "\n" not in str(raised.value)


async def test_a_server_that_goes_away_and_comes_back(bundle: Bundle, remote: Remote) -> None:
    tower, inputs = await open_tower(bundle, "user", remote.settings), users(bundle, 3)
    await remote.proxy.stop()
    for _ in range(3):
        with pytest.raises(DependencyUnavailable):
            await tower.embed(inputs)
    with pytest.raises(DependencyUnavailable):
        await tower.ping()
    await remote.proxy.start()
    await remote.until_back(tower)
    verify.check_same(await tower.embed(inputs), own(bundle, "user", inputs))
    await tower.close()


async def test_a_connection_that_is_lost_in_mid_call(bundle: Bundle, remote: Remote) -> None:
    tower, inputs = await open_tower(bundle, "user", remote.settings), users(bundle, 3)
    remote.proxy.cuts = True
    with pytest.raises(DependencyUnavailable):
        await tower.embed(inputs)
    remote.proxy.cuts = False
    await remote.until_back(tower)
    verify.check_same(await tower.embed(inputs), own(bundle, "user", inputs))
    await tower.close()


async def test_one_that_was_idle_while_its_connections_ended(bundle: Bundle, remote: Remote) -> None:
    tower, inputs = await open_tower(bundle, "user", remote.settings), users(bundle, 3)
    await remote.proxy.stop()
    await remote.proxy.start()
    await remote.until_back(tower)
    verify.check_same(await tower.embed(inputs), own(bundle, "user", inputs))
    await tower.close()


def nearly(bundle: Bundle, folder: Path) -> Bundle:
    """The same bundle but for one of the user tower's weights, as a server has it after another fit."""
    shutil.copytree(bundle.path, folder)
    model = onnx.load(bundle.user_tower)
    weights = max(model.graph.initializer, key=lambda each: numpy_helper.to_array(each).size)
    changed = numpy_helper.to_array(weights) * np.float32(1.01)
    weights.CopyFrom(numpy_helper.from_array(changed, weights.name))
    (folder / bundle.user_tower.name).write_bytes(model.SerializeToString())
    return replace(bundle, path=folder)


async def test_another_model_than_the_bundles_is_refused(bundle: Bundle, remote: Remote, tmp_path: Path) -> None:
    other = remote.settings.model_copy(update={"tower_user_model": "item_tower"})
    with pytest.raises(ConfigurationError) as raised:
        await open_tower(bundle, "user", other)
    assert "\n" not in str(raised.value)
    with pytest.raises(ConfigurationError, match="from the bundle's own tower, 1e-05 is allowed"):
        await open_tower(nearly(bundle, tmp_path / "nearly"), "user", remote.settings)


async def test_one_that_is_replaced_under_the_worker_is_asked_no_more(bundle: Bundle, remote: Remote) -> None:
    tower = await open_tower(bundle, "user", remote.settings)
    known = tower.known  # type: ignore[attr-defined]
    tower.known = replace(known, outputs={OUTPUT: known.outputs[OUTPUT] + 1})  # type: ignore[attr-defined]
    for call in (tower.ping(), tower.embed(users(bundle, 3))):
        with pytest.raises(DependencyUnavailable, match="bundle's own tower"):
            await call
    tower.known = known  # type: ignore[attr-defined]
    await tower.ping()
    await tower.embed(users(bundle, 3))
    await tower.close()


@pytest.mark.parametrize("missing", [{"tower_user_model": "nobodys_tower"}, {"tower_version": "987654"}])
async def test_a_model_or_version_that_is_not_there_is_waited_for(
    bundle: Bundle, remote: Remote, missing: dict[str, str]
) -> None:
    with pytest.raises(DependencyUnavailable) as raised:
        await open_tower(bundle, "user", remote.settings.model_copy(update=missing))
    assert next(iter(missing.values())) in str(raised.value)
    assert "\n" not in str(raised.value)
