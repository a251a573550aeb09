"""Which view is active: what an emptied Redis no longer says, and who puts it back."""

from pathlib import Path

import pytest

from workers import views
from workers.settings import Settings
from workers.stores import keys
from workers.stores.connect import connect


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return settings.model_copy(update={"data_dir": tmp_path / "data"})


async def forget(settings: Settings) -> None:
    client = connect(settings)
    await client.delete(keys.active_view(settings))
    await client.aclose()


async def test_nothing_is_put_back_where_nothing_was(settings: Settings) -> None:
    assert await views.read_or_put_back(settings) is None
    assert await views.carry_over(settings) is None


async def test_what_was_active_is_put_back_once_redis_has_none(settings: Settings) -> None:
    first = await views.activate(settings, Path("bundles/1"), "1")
    await forget(settings)
    assert await views.read_active(settings) is None
    assert await views.read_or_put_back(settings) == first
    assert await views.read_active(settings) == first
    await forget(settings)
    assert await views.carry_over(settings) == first
    elsewhere = settings.model_copy(update={"data_dir": settings.data_dir.with_name("other machine")})
    second = await views.activate(elsewhere, Path("bundles/2"), "2")
    assert await views.read_or_put_back(settings) == second, "what Redis says counts"
    views.remember(settings, second)  # as a worker does when it starts
    await forget(settings)
    assert await views.read_or_put_back(settings) == second


async def test_one_that_was_chosen_while_redis_was_away_comes_first(settings: Settings) -> None:
    await views.activate(settings, Path("bundles/1"), "1")
    away = settings.model_copy(update={"redis_url": type(settings.redis_url)("redis://127.0.0.1:1")})
    chosen = await views.activate(away, Path("bundles/2"), "2")
    await forget(settings)
    assert await views.carry_over(settings) == chosen
    assert await views.read_active(settings) == chosen


async def test_namespaces_are_apart(settings: Settings) -> None:
    await views.activate(settings, Path("bundles/1"), "1")
    assert await views.read_or_put_back(settings.model_copy(update={"namespace": f"{settings.namespace}b"})) is None
