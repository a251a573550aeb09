"""The port FeatureSource: one suite over every adapter, each with a real server behind it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.backends.registry import OURS, chosen
from tests.contract.feature_backends import Backend, kinds, serving
from workers.errors import DependencyError, DependencyTimeout, DependencyUnavailable
from workers.feature_sources import FeatureSourceSettings
from workers.features.memory import MemoryFeatureSource
from workers.features.opening import open_source
from workers.ports import FeatureSource
from workers.settings import Settings

NAMES = ["tier", "age", "tags", "ratio"]
USERS: dict[str, dict[str, Any]] = {
    "u1": {"tier": "gold", "age": 30, "tags": ["a", "b"], "ratio": 0.5},
    "u2": {"tier": "new", "age": 41},
    "u3": {"ratio": -2.25},
}
HOSTILE = ["a b", "ü", "日本", "\x00", "../x", '"}', "{x}", "*", "a\r\nb", "%n", "x" * 256, "'; --", "\u2028"]
BACK_WITHIN_S = 30.0


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`source`: every adapter; `backend`: those with a server."""
    found = kinds(metafunc.config)
    ours = chosen(metafunc.config) == OURS
    if "source" in metafunc.fixturenames:
        metafunc.parametrize("source", ["memory", *found] if ours else found, indirect=True)
    elif "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", found, indirect=True)


@pytest.fixture(scope="module")
def started_once(request: pytest.FixtureRequest, started_backend: Callable[[str], Any]) -> Any:
    """The real server that a run is about; None in a run of ours."""
    name = chosen(request.config)
    return None if name == OURS else started_backend(name)


@pytest.fixture
async def source(
    request: pytest.FixtureRequest, settings: Settings, tmp_path: Path, started_once: Any
) -> AsyncIterator[FeatureSource]:
    """A source that holds USERS, and the hostile ones: each has its own number as age."""
    users = USERS | {user_id: {"age": n} for n, user_id in enumerate(HOSTILE)}
    if request.param == "memory":
        declared = FeatureSourceSettings(kind="memory", values=users)
        yield open_source(settings.model_copy(update={"sources": {"shop": declared}}), "shop")
        return
    async with serving(request.param, settings, tmp_path, started_once) as backend:
        await backend.put(users)
        yield backend.open()


@pytest.fixture
async def backend(
    request: pytest.FixtureRequest, settings: Settings, tmp_path: Path, started_once: Any
) -> AsyncIterator[Backend]:
    """A server that holds USERS, behind a proxy."""
    async with serving(request.param, settings, tmp_path, started_once) as backend:
        await backend.put(USERS)
        yield backend


async def test_values_come_in_the_order_of_the_users(source: FeatureSource) -> None:
    assert await source.values(["u3", "u1", "u2"], NAMES) == [USERS["u3"], USERS["u1"], USERS["u2"]]
    assert await source.values(["u1"], ["age", "tier"]) == [{"tier": "gold", "age": 30}]
    assert await source.values(["u1"], ["tier"]) == [{"tier": "gold"}]


async def test_a_batch_is_its_users_one_by_one(source: FeatureSource) -> None:
    users = [*USERS, "nobody", *HOSTILE]
    together = await source.values(users, NAMES)
    assert together == [(await source.values([user_id], NAMES))[0] for user_id in users]


async def test_unknown_users_and_values_are_absent(source: FeatureSource) -> None:
    assert await source.values(["nobody", "u3", "no one"], ["age", "ratio"]) == [{}, {"ratio": -2.25}, {}]


async def test_a_user_may_stand_in_a_batch_twice(source: FeatureSource) -> None:
    assert await source.values(["u2", "u1", "u2"], ["age"]) == [{"age": 41}, {"age": 30}, {"age": 41}]


async def test_an_empty_batch(source: FeatureSource) -> None:
    assert await source.values([], NAMES) == []


async def test_a_very_large_batch(source: FeatureSource) -> None:
    users = [f"n{n}" for n in range(4998)] + ["u1", "u2"]
    found = await source.values(users, ["age"])
    assert found[-2:] == [{"age": 30}, {"age": 41}]
    assert found[:-2] == [{}] * 4998


async def test_hostile_ids_are_ids(source: FeatureSource) -> None:
    assert await source.values(HOSTILE, ["age"]) == [{"age": n} for n in range(len(HOSTILE))]


async def test_many_calls_at_once(source: FeatureSource) -> None:
    calls = [source.values([f"u{n % 3 + 1}"], ["age", "ratio"]) for n in range(60)]
    expected = [{name: row[name] for name in ("age", "ratio") if name in row} for row in USERS.values()]
    assert await asyncio.gather(*calls) == [[expected[n % 3]] for n in range(60)]


async def test_a_ping_and_a_check_are_answered(source: FeatureSource) -> None:
    await source.ping()
    assert await source.check(NAMES) is None


async def test_it_may_be_closed_twice(source: FeatureSource) -> None:
    await source.values(["u1"], NAMES)
    await source.close()
    await source.close()


async def until_in_time(source: FeatureSource) -> None:
    """Ask until it answers before the deadline, which a busy machine may miss."""
    async with asyncio.timeout(BACK_WITHIN_S):
        while True:
            try:
                found = await source.values(["u1"], ["age"])
            except DependencyTimeout:
                continue
            assert found == [{"age": 30}]
            return


async def test_a_slow_server_costs_no_more_than_the_deadline(backend: Backend) -> None:
    """Who waits longer gets an answer."""
    source = backend.open(timeout_ms=200)
    await until_in_time(source)
    backend.proxy.delay_s = 3.0
    for call in (source.values(["u1"], ["age"]), source.ping()):
        with pytest.raises(DependencyTimeout, match="no answer in 200 ms") as raised:
            await call
        assert raised.value.dependency == "features.shop"
    backend.proxy.delay_s = 0.0
    await until_in_time(source)


async def test_a_server_that_is_gone_is_told_at_once_and_asked_again_when_it_is_back(backend: Backend) -> None:
    source = backend.open()
    assert await source.values(["u1"], ["age"]) == [{"age": 30}]
    await backend.proxy.stop()
    for call in (source.values(["u1"], ["age"]), source.ping(), source.check(["age"])):
        with pytest.raises(DependencyUnavailable) as raised:
            await call
        assert raised.value.dependency == "features.shop"
        assert str(raised.value).count("features.shop") == 1
    await backend.proxy.start()
    assert await source.values(["u1"], ["age"]) == [{"age": 30}]
    assert await asyncio.gather(*(source.values(["u2"], ["age"]) for _ in range(9))) == [[{"age": 41}]] * 9


async def test_a_connection_that_is_lost_in_a_call(backend: Backend) -> None:
    source = backend.open()
    await source.values(["u1"], ["age"])
    backend.proxy.delay_s = 30.0
    before = backend.proxy.taken
    call = asyncio.create_task(source.values(["u1"], ["age"]))
    async with asyncio.timeout(20):
        while backend.proxy.taken == before:
            await asyncio.sleep(0.005)
    assert not call.done()
    await backend.proxy.stop()
    with pytest.raises(DependencyUnavailable):
        await call
    backend.proxy.delay_s = 0.0
    await backend.proxy.start()
    assert await source.values(["u1"], ["age"]) == [{"age": 30}]


async def test_a_call_that_is_given_up_leaves_the_next_ones_their_answers(backend: Backend) -> None:
    source = backend.open()
    backend.proxy.delay_s = 5.0
    for _ in range(5):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await source.values(["u2"], ["tier", "age"])
    backend.proxy.delay_s = 0.0
    for _ in range(5):
        assert await source.values(["u1"], ["age"]) == [{"age": 30}]


async def test_feast_tells_what_it_does_not_have(settings: Settings, tmp_path: Path, started_once: Any) -> None:
    async with serving("feast", settings, tmp_path, started_once) as backend:
        await backend.put({"u": {"age": 1}})
        url = f"http://127.0.0.1:{backend.port}"  # not through the proxy: Feast cuts a connection behind a refusal

        async def checked(*names: str, **options: str) -> str | None:
            declared = FeatureSourceSettings(kind="feast", url=url, timeout_ms=5000, **options)
            source = open_source(settings.model_copy(update={"sources": {"shop": declared}}), "shop")
            try:
                assert await source.values(["nobody", "u"], ["age"]) == [{}, {"age": 1}]
                return await source.check(names)
            except DependencyError:
                return await source.check(names)
            finally:
                await source.close()

        assert await checked("age", "tier", feature_view="shop") is None
        assert await checked("age", feature_service="for_recall") is None
        line = "feature service 'for_recall' has no feature shoe_size"
        assert await checked("shoe_size", feature_service="for_recall") == line
        for options in ({"feature_view": "shop"}, {"feature_view": "store"}, {"feature_service": "other"}):
            line = await checked("age", "shoe_size", **options) or ""
            assert line.startswith(f"feature {next(iter(options)).partition('_')[2]} {next(iter(options.values()))!r}")
            assert "cannot give age, shoe_size" in line
        line = await checked("age", feature_view="shop", entity="customer") or ""
        assert "Missing join key" in line


async def test_an_answer_that_is_none_is_one_line(settings: Settings, tmp_path: Path) -> None:
    """A server of another protocol, or of another path."""
    async with serving("http", settings, tmp_path, None) as backend:
        url = f"http://127.0.0.1:{backend.proxy.port}"
        for declared in (
            FeatureSourceSettings(kind="feast", url=url, timeout_ms=5000, feature_view="shop"),
            FeatureSourceSettings(kind="http", url=url, timeout_ms=5000, path="/other"),
        ):
            source = open_source(settings.model_copy(update={"sources": {"shop": declared}}), "shop")
            with pytest.raises(DependencyUnavailable) as raised:
                await source.values(["u1"], ["age"])
            assert "\n" not in str(raised.value)
            await source.close()


async def test_values_of_the_memory_source_may_change() -> None:
    source = MemoryFeatureSource(stored := {"u": {"age": 1}})
    assert await source.values(["u"], ["age"]) == [{"age": 1}]
    stored["u"] = {"age": 2}
    assert await source.values(["u"], ["age"]) == [{"age": 2}]
