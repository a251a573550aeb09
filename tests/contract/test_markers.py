"""Markers of complete partitions: on one Redis server and on a cluster."""

import pytest

from tests.conftest import PATIENT_MS
from workers.errors import DependencyError
from workers.settings import Settings, load_settings
from workers.stores import keys
from workers.stores.connect import connect
from workers.stores.markers_redis import RedisMarkers

GROUP = "some-group"


@pytest.fixture(params=["redis", "cluster"])
def settings(request: pytest.FixtureRequest, namespace: str) -> Settings:
    if request.param == "cluster":
        url = request.getfixturevalue("redis_cluster_url")
        return load_settings(redis_url=url, redis_cluster=True, namespace=namespace, store_timeout_ms=PATIENT_MS)
    settings: Settings = request.getfixturevalue("stack").settings(namespace=namespace, store_timeout_ms=PATIENT_MS)
    return settings


async def test_all_are_complete_when_the_last_one_is_and_until_one_is_added(settings: Settings) -> None:
    client = connect(settings)
    one, other = (RedisMarkers(client, settings, GROUP) for _ in range(2))
    whole = keys.filled_whole(settings, GROUP)
    assert (await one.open(3), await other.open(3)) == ({}, {})
    assert one.id == other.id
    assert len(one.id) == 16
    for partition, marks in ((2, one), (0, other), (0, one)):
        assert await marks.mark(partition, "rule")
        assert not await client.exists(whole)
        assert not await RedisMarkers(client, settings, GROUP).whole()
    assert await one.mark(1, "other rule")
    assert await RedisMarkers(client, settings, GROUP).whole()
    assert await client.exists(whole)
    assert await other.open(3) == {0: "rule", 1: "other rule", 2: "rule"}
    assert await other.open(4) == {0: "rule", 1: "other rule", 2: "rule"}
    assert not await client.exists(whole)
    assert await one.open(3) == {0: "rule", 1: "other rule", 2: "rule"}, "who has not heard of the new one yet"
    assert not await client.exists(whole)
    assert await one.mark(3, "rule")
    assert await client.exists(whole)
    assert (await one.stand(), await client.ttl(one.key), await client.ttl(whole)) == (True, -1, -1)
    await client.aclose()


async def test_groups_and_namespaces_are_apart(settings: Settings) -> None:
    client = connect(settings)
    elsewhere = settings.model_copy(update={"namespace": f"{settings.namespace}b"})
    await RedisMarkers(client, settings, GROUP).open(1)
    for other in (RedisMarkers(client, settings, "other"), RedisMarkers(client, elsewhere, GROUP)):
        assert await other.open(1) == {}
        assert await other.mark(0, "")
    assert await RedisMarkers(client, settings, GROUP).open(1) == {}
    await client.aclose()


async def test_who_was_away_for_too_long_marks_it_until_it_is_mended(settings: Settings) -> None:
    client = connect(settings)
    one, other = (RedisMarkers(client, settings, GROUP) for _ in range(2))
    await one.open(1)
    await other.open(1)
    assert (await one.look(1000), await one.stand(1000), one.missed_ms) == (None, True, None)
    await client.hincrby(one.key, "fed_ms", -60_000)
    assert await one.look() is None, "who does not say how long deletions are kept only asks"
    noticed_ms = await one.look(1000)
    assert noticed_ms is not None
    assert (await other.stand(1000), other.missed_ms) == (True, noticed_ms)
    assert not await other.mended(noticed_ms + 1)
    assert await other.look() == noticed_ms
    assert await other.mended(noticed_ms)
    assert (await one.look(1000), await one.stand(1000), one.missed_ms) == (None, True, None)
    await client.hincrby(one.key, "fed_ms", -60_000)
    assert (await other.stand(1000), other.missed_ms is not None) == (True, True), "who is there again marks first"
    await client.aclose()


async def test_a_topic_of_which_no_partition_is_known_is_not_complete(settings: Settings) -> None:
    client = connect(settings)
    markers = RedisMarkers(client, settings, GROUP)
    assert await markers.open(0) == {}
    assert not await client.exists(keys.filled_whole(settings, GROUP))
    await client.aclose()


async def test_what_is_forgotten_is_read_again_by_everybody_and_a_mark_stays(settings: Settings) -> None:
    client = connect(settings)
    one, other = (RedisMarkers(client, settings, GROUP) for _ in range(2))
    assert not await one.forget(), "nobody was ever there"
    await one.open(2)
    assert await one.stand(1000)
    for partition in (0, 1):
        assert await one.mark(partition, "rule")
    await client.hincrby(one.key, "fed_ms", -60_000)
    noticed_ms = await one.look(1000)
    assert await other.forget()
    assert await other.forget(), "somebody was there, though no partition is complete any more"
    assert not await client.exists(keys.filled_whole(settings, GROUP))
    assert (await one.stand(), await one.mark(0, "rule")) == (False, False)
    assert await other.open(2) == {}
    assert (await other.stand(), await other.look()) == (True, noticed_ms)
    await client.aclose()


async def test_of_an_emptied_redis_nothing_is_said(settings: Settings) -> None:
    client = connect(settings)
    early, late = (RedisMarkers(client, settings, GROUP) for _ in range(2))
    await early.open(1)
    await early.mark(0, "")
    await client.delete(early.key, keys.filled_whole(settings, GROUP))
    assert (await early.stand(), await early.mark(0, "")) == (False, False)
    assert await late.open(1) == {}
    assert late.id != early.id
    assert (await early.stand(), await early.mark(0, "")) == (False, False)
    assert not await client.exists(keys.filled_whole(settings, GROUP))
    assert (await late.stand(), await late.mark(0, "")) == (True, True)
    await client.aclose()


@pytest.mark.parametrize("cluster", [False, True])
async def test_an_unreachable_server_is_a_dependency_error(namespace: str, cluster: bool) -> None:
    unreachable = load_settings(
        redis_url="redis://127.0.0.1:1", redis_cluster=cluster, namespace=namespace, store_timeout_ms=300
    )
    markers = RedisMarkers(connect(unreachable), unreachable, GROUP)
    for call in (
        markers.open(1),
        markers.stand(1),
        markers.look(1),
        markers.mended(1),
        markers.mark(0, ""),
        markers.whole(),
    ):
        with pytest.raises(DependencyError):
            await call
