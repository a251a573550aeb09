"""Every feature source that has a server, in the pipeline: only a value on the server changes, and so does a list."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from models.bundle import Bundle
from tests.backends.registry import OURS, chosen
from tests.contract.feature_backends import kinds, serving
from tests.integration.recall_system import DATASET, System, ask
from tests.moods import fit_moody, share_of
from workers.dependencies import Dependencies
from workers.feature_sources import FeatureSourceSettings
from workers.features.of_spec import open_sourcing
from workers.metrics import Metrics
from workers.settings import Settings


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`kind`: every adapter that has a server."""
    if "kind" in metafunc.fixturenames:
        metafunc.parametrize("kind", kinds(metafunc.config))


@pytest.fixture(scope="module")
def started_once(request: pytest.FixtureRequest, started_backend: Callable[[str], Any]) -> Any:
    """The real server that a run is about; None in a run of ours."""
    name = chosen(request.config)
    return None if name == OURS else started_backend(name)


@pytest.fixture(scope="module")
def moody(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return fit_moody(DATASET, tmp_path_factory.mktemp("bundles"))


async def test_a_list_goes_by_what_is_on_the_server(
    kind: str, moody: Bundle, settings: Settings, tmp_path: Path, started_once: Any
) -> None:
    system, metrics = System(moody), Metrics()
    await system.fill()
    dependencies = Dependencies("recall", metrics)
    async with AsyncExitStack() as opened:
        opened.push_async_callback(system.tower.close)
        backend = await opened.enter_async_context(serving(kind, settings, tmp_path, started_once))
        await backend.put({"known": {"mood": "even"}})
        declared = FeatureSourceSettings(kind=kind, timeout_ms=5000, cache_ttl_ms=0, **backend.declared())
        using = settings.model_copy(update={"sources": {"shop": declared}})
        sourcing, probes = await open_sourcing(using, moody.spec, dependencies, metrics, opened)
        await probes["features.shop"]()
        pipeline = system.pipeline(sourcing=sourcing, dependencies=dependencies)
        even, nobody = await pipeline.run([ask(), ask("nobody")])
        await backend.put({"known": {"mood": "odd"}, "nobody": {"mood": "odd"}})
        odd, known = await pipeline.run([ask(), ask("nobody")])
    assert (even.status, even.reasons, odd.status, odd.reasons) == ("ok", [], "ok", [])
    assert share_of("even", even.item_ids) == share_of("odd", odd.item_ids) == 1.0
    assert nobody.reasons == ["cold_start", "feature_defaulted"]
    assert known.reasons == ["cold_start"]
    assert known.item_ids == nobody.item_ids, "odd is the default"
