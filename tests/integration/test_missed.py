"""What commands say of a view that may list items that are gone: on a real Redis, with an active bundle."""

from pathlib import Path

import pytest

from models.bundle import Bundle
from workers import missed
from workers.cli import status
from workers.doctor import bundle as bundle_check
from workers.doctor.findings import Level
from workers.local.process import free_ports
from workers.local.state import StackState
from workers.refill import DAY_MS
from workers.settings import Settings
from workers.stores import keys
from workers.stores.connect import connect
from workers.stores.markers_redis import RedisMarkers

STATE = StackState(supervisor_pid=1, supervisor_started=1.0, services={})


@pytest.fixture
def settings(healthy: Settings) -> Settings:
    return healthy


async def mark(settings: Settings, packed: Bundle) -> int:
    """Nobody has fed the view for eight days; when that was noticed."""
    client = connect(settings)
    markers = RedisMarkers(client, settings, keys.items_group(settings.collection(packed.version)))
    await markers.open(1)
    await markers.stand()
    await client.hincrby(markers.key, "fed_ms", -8 * DAY_MS)
    noticed_ms = await markers.look(7 * DAY_MS)
    await client.aclose()
    assert noticed_ms is not None
    return noticed_ms


async def warnings(settings: Settings) -> list[tuple[str, str]]:
    """Line, and what to do."""
    return [(each.line, each.todo) for each in await bundle_check.check(settings) if each.level is Level.WARNING]


async def test_the_doctor_warns_and_says_what_mends_it(settings: Settings, packed: Bundle, tmp_path: Path) -> None:
    in_file = settings.model_copy(update={"milvus_uri": str(tmp_path / "items.db")})
    in_process = settings.model_copy(update={"index": "memory"})
    assert [await warnings(each) for each in (settings, in_file, in_process)] == [[], [], []]
    line = f"{missed.MISSED} (noticed {missed.noticed(await mark(settings, packed))})"
    assert await warnings(settings) == [(line, "recall items reconcile --repair")]
    [(_, todo)] = await warnings(in_file)
    key = f"{settings.namespace}:filled:{{recall-items.{settings.collection(packed.version)}}}"
    file = tmp_path / "items.db"
    assert todo == f"end the workers, delete {file} and in Redis {key}, and start them: all is read again"
    assert await warnings(in_process) == [], "that one is made of the topic at every start"


async def test_status_says_so(settings: Settings, packed: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    collection = settings.collection(packed.version)
    for marked in (False, True):
        if marked:
            await mark(settings, packed)
        report = await status._report(settings, STATE)
        assert report["active"] == {"version": packed.version, "collection": collection, "missed_deletions": marked}
        status._print(report)
        assert (missed.MISSED in capsys.readouterr().out) is marked


async def test_an_unreachable_redis_is_told_by_another_check(settings: Settings) -> None:
    away = settings.model_copy(
        update={"redis_url": type(settings.redis_url)(f"redis://127.0.0.1:{free_ports(1)[0]}/0")}
    )
    assert await bundle_check._missed(away, "items_m1") == []
    assert await status._missed(away, "items_m1") is None
