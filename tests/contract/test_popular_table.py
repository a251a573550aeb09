"""What every table of popular counts does: Redis, a Redis Cluster, memory."""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress

import pytest

from tests.conftest import PATIENT_MS
from workers.errors import DependencyError
from workers.popularity import EPOCH_HALF_LIVES, EVERYBODY, UNIT
from workers.ports import PopularChange, PopularTable
from workers.settings import Settings, load_settings
from workers.stores import keys
from workers.stores.connect import connect
from workers.stores.popular_memory import MemoryPopularTable
from workers.stores.popular_redis import EXPIRES_LATER, RedisPopularTable

DEFINITION = "0123456789abcdef"
MAX_ITEMS = 50
HOSTILE = ["a{b}c", "}{", "quote'\"", "new\nline", "nul\0", "émoji 🎬", "x" * 256, " ", "*?[a-z]", "\\", "7:x", "next"]
Counts = Mapping[tuple[int, str], Mapping[int, int]]


@pytest.fixture(params=["redis", "cluster"])
def redis_settings(request: pytest.FixtureRequest, namespace: str) -> Settings:
    if request.param == "cluster":
        url = request.getfixturevalue("redis_cluster_url")
        return load_settings(redis_url=url, redis_cluster=True, namespace=namespace, store_timeout_ms=PATIENT_MS)
    settings: Settings = request.getfixturevalue("stack").settings(namespace=namespace, store_timeout_ms=PATIENT_MS)
    return settings


def on_redis(settings: Settings, definition: str = DEFINITION) -> RedisPopularTable:
    return RedisPopularTable(connect(settings), settings, definition, MAX_ITEMS)


@pytest.fixture(params=["memory", "redis", "cluster"])
async def table(request: pytest.FixtureRequest, namespace: str) -> AsyncIterator[PopularTable]:
    table: PopularTable = MemoryPopularTable(MAX_ITEMS)
    if request.param == "redis":
        table = on_redis(request.getfixturevalue("stack").settings(namespace=namespace, store_timeout_ms=PATIENT_MS))
    elif request.param == "cluster":
        url = request.getfixturevalue("redis_cluster_url")
        table = on_redis(
            load_settings(redis_url=url, redis_cluster=True, namespace=namespace, store_timeout_ms=PATIENT_MS)
        )
    yield table
    await table.close()


def change(first: int, end: int, additions: Counts, partition: int = 0) -> PopularChange:
    return PopularChange(partition, first, end, additions)


def everybody(counts: Mapping[int, int], epoch: int = 7) -> Counts:
    return {(epoch, EVERYBODY): counts}


async def amounts(table: PopularTable, segment: str = EVERYBODY, n: int = 1000) -> dict[int, float]:
    """Item -> what was added to it, as the newest epoch counts; best first."""
    [top] = await table.top([segment], n)
    return dict(zip(top.hashes.tolist(), (top.scores * UNIT).tolist(), strict=True))


async def test_counts_add_up_best_first_and_equal_ones_by_hash(table: PopularTable) -> None:
    assert await table.add([change(0, 10, everybody({5: 100, 9: 300, 2**64 - 1: 100}))]) == [0]
    assert await table.add([change(10, 11, everybody({5: 200, 8: 1}))]) == [10]
    assert list((await amounts(table)).items()) == [(5, 300), (9, 300), (2**64 - 1, 100), (8, 1)]
    assert list(await amounts(table, n=2)) == [5, 9]


async def test_nothing_is_answered_without_the_backend(table: PopularTable) -> None:
    assert await table.add([]) == []
    assert await table.top([], 10) == []


async def test_nothing_was_counted(table: PopularTable) -> None:
    [top, other] = await table.top([EVERYBODY, "F"], 10)
    assert (len(top.hashes), len(top.scores), len(other.hashes)) == (0, 0, 0)
    assert await table.add([change(0, 9, {})]) == [0]
    assert await amounts(table) == {}
    assert await table.add([change(8, 9, everybody({1: 1}))]) == [9], "a range in which nothing counts is counted too"


async def test_a_change_that_comes_again_is_not_added(table: PopularTable) -> None:
    first = change(0, 10, everybody({1: 5}))
    assert [await table.add([first]) for _ in range(3)] == [[0], [10], [10]]
    assert await amounts(table) == {1: 5}


async def test_a_change_that_overlaps_is_refused_as_a_whole(table: PopularTable) -> None:
    await table.add([change(0, 10, everybody({1: 5}))])
    assert await table.add([change(9, 20, everybody({1: 7, 2: 7}))]) == [10]
    assert await amounts(table) == {1: 5}
    assert await table.add([change(10, 20, everybody({2: 7}))]) == [10]
    assert await amounts(table) == {2: 7, 1: 5}


async def test_a_change_behind_a_gap_is_refused_until_that_is_what_is_expected(table: PopularTable) -> None:
    assert await table.add([change(0, 10, everybody({1: 5})), change(5, 6, everybody({1: 1}), partition=3)]) == [0, 0]
    assert await table.add([change(20, 30, everybody({2: 7}))]) == [10]
    assert await amounts(table) == {1: 5}
    assert await table.expected([3, 0, 7]) == [0, 10, 0]
    await table.expect({0: 20, 3: 5})
    assert await table.expected([0, 3]) == [20, 5]
    assert await table.add([change(20, 30, everybody({2: 7})), change(5, 6, everybody({1: 1}), 3)]) == [20, 5]
    assert await amounts(table) == {2: 7, 1: 6}, "what was counted before stays"
    await table.expect({0: 0})
    assert await table.add([change(0, 1, everybody({1: 1}))]) == [0]
    assert (await table.expected([]), await table.expect({})) == ([], None)


@pytest.mark.parametrize("offset", [0, 255, 2**32, 2**52])
async def test_offsets_of_every_size(table: PopularTable, offset: int) -> None:
    await table.expect({0: offset})
    await table.add([change(offset, offset + 1, everybody({1: 1}))])
    assert await table.add([change(offset, offset + 2, everybody({1: 1}))]) == [offset + 1]
    assert await table.add([change(offset + 1, offset + 2, everybody({1: 1}))]) == [offset + 1]
    assert await amounts(table) == {1: 2}


async def test_partitions_are_fenced_apart_and_read_as_one(table: PopularTable) -> None:
    two = [change(0, 5, everybody({1: 5, 2: 1}), partition=0), change(0, 101, everybody({1: 2, 3: 9}), partition=12)]
    assert await table.add(two) == [0, 0]
    assert await table.add([change(5, 6, everybody({2: 1}), 0), change(50, 60, everybody({2: 1}), 12)]) == [5, 101]
    assert await amounts(table) == {3: 9, 1: 7, 2: 2}


async def test_segments_are_apart(table: PopularTable) -> None:
    await table.add([change(0, 5, {(7, "F"): {1: 5}, (7, "M"): {2: 3}, (7, EVERYBODY): {1: 5, 2: 3}})])
    found = await table.top(["M", EVERYBODY, "X", "F"], 10)
    assert [top.hashes.tolist() for top in found] == [[2], [1, 2], [], [1]]


async def test_hostile_segments(table: PopularTable) -> None:
    await table.add([change(0, 5, {(7, segment): {n: 1} for n, segment in enumerate(HOSTILE, 1)})])
    found = await table.top(HOSTILE, 10)
    assert [top.hashes.tolist() for top in found] == [[n] for n in range(1, len(HOSTILE) + 1)]


async def test_an_older_epoch_counts_less_and_the_one_before_it_no_more(table: PopularTable) -> None:
    await table.add([change(0, 1, everybody({1: 2**20}, epoch=7))])
    await table.add([change(1, 2, everybody({2: 3}, epoch=8))])
    assert await amounts(table) == {1: 2**20 / 2**EPOCH_HALF_LIVES, 2: 3}
    await table.add([change(2, 3, {(7, EVERYBODY): {1: 2**20, 2: 2**16}, (8, EVERYBODY): {1: 1}})])
    assert await amounts(table) == {1: 33, 2: 4}
    await table.add([change(3, 4, {(7, EVERYBODY): {1: 1}, (9, EVERYBODY): {3: 1}})])
    assert await amounts(table) == {3: 1, 2: 3 / 2**16, 1: 1 / 2**16}
    await table.add([change(4, 5, everybody({1: 1}, epoch=11))])
    assert await amounts(table) == {1: 1}
    await table.add([change(5, 6, everybody({9: 1}, epoch=9))])
    assert await amounts(table) == {1: 1}


async def test_partitions_in_different_epochs_are_read_as_of_the_newest(table: PopularTable) -> None:
    await table.add([change(0, 1, everybody({1: 2**16}, epoch=7), 0), change(0, 1, everybody({2: 3}, epoch=8), 1)])
    assert await amounts(table) == {2: 3, 1: 1}


async def test_the_order_of_changes_does_not_matter(table: PopularTable, namespace: str) -> None:
    rng = random.Random(4)
    made = [
        {(rng.randint(5, 9), rng.choice([EVERYBODY, "F"])): {rng.randint(1, 20): rng.randint(1, 2**26)}}
        for _ in range(60)
    ]
    expected = MemoryPopularTable(MAX_ITEMS)
    for offset, additions in enumerate(made):
        await expected.add([change(offset, offset + 1, additions)])
    rng.shuffle(made)
    for offset, additions in enumerate(made):
        await table.add([change(offset, offset + 1, additions)])
    for segment in (EVERYBODY, "F"):
        found = await amounts(table, segment)
        assert found == await amounts(expected, segment)
        assert len(found) > 5


async def test_sums_up_to_2_53_are_exact(table: PopularTable) -> None:
    for offset in range(4):
        await table.add([change(offset, offset + 1, everybody({1: 2**51 - 1, 2: 2**51 + 1}))])
    assert await amounts(table) == {2: 2**53 + 4, 1: 2**53 - 4}


async def test_a_set_keeps_the_strongest(table: PopularTable) -> None:
    await table.add(
        [change(0, 1, {(7, EVERYBODY): {n: 10 + n % 2 for n in range(1, MAX_ITEMS + 1)}, (7, "F"): {1: 1}})]
    )
    await table.add([change(1, 2, everybody({1001: 30, 1002: 11, 1003: 9}))])
    found = await amounts(table)
    assert len(found) == MAX_ITEMS
    assert list(found)[:2] == [1001, 1]
    assert 1003 not in found
    assert {2, 4} & found.keys() == set(), "of equal ones the lesser hashes go"
    assert (await amounts(table, "F")) == {1: 1}


async def test_close_twice(table: PopularTable) -> None:
    await table.close()
    await table.close()


async def test_of_a_worker_and_its_zombie_each_event_counts_once(redis_settings: Settings) -> None:
    one, other = on_redis(redis_settings), on_redis(redis_settings)
    changes = [change(n, n + 1, everybody({1: 1})) for n in range(50)]

    async def add_all(table: PopularTable) -> None:
        for each in changes:
            await table.add([each])

    await asyncio.gather(add_all(one), add_all(other))
    assert await amounts(one) == {1: 50}
    await one.close()
    await other.close()


async def test_namespaces_and_definitions_do_not_see_each_other(redis_settings: Settings) -> None:
    elsewhere = redis_settings.model_copy(update={"namespace": redis_settings.namespace + "b"})
    tables = [on_redis(redis_settings), on_redis(elsewhere), on_redis(redis_settings, "f" * 16)]
    assert await tables[0].add([change(0, 9, everybody({1: 1}))]) == [0]
    for table in tables[1:]:
        assert await amounts(table) == {}
        assert await table.add([change(0, 9, {})]) == [0]
    for table in tables:
        await table.close()


async def _keys(table_settings: Settings) -> dict[bytes, int]:
    """Every key of the namespace, with the milliseconds it has to live."""
    client = connect(table_settings)
    found = [key async for key in client.scan_iter(match=f"{table_settings.namespace}:*", count=1000)]
    lives = {key: await client.pttl(key) for key in found}
    await client.aclose()
    return lives


async def test_what_is_no_longer_kept_is_deleted_and_the_rest_expires_together(redis_settings: Settings) -> None:
    table, ttl_ms = on_redis(redis_settings), redis_settings.user_ttl_ms
    counts = keys.popular_counts(redis_settings, DEFINITION, 3)
    partitions = keys.popular_partitions(redis_settings, DEFINITION)
    for offset, epoch in enumerate((5, 6, 8)):
        await table.add([change(offset, offset + 1, {(epoch, "F"): {1: 1}, (epoch, ""): {1: 1}}, partition=3)])
    assert await table.add([change(3, 4, {(7, ""): {1: 1}}, partition=3)]) == [3]
    lives = await _keys(redis_settings)
    assert lives.keys() == {counts, counts + b":8:F", counts + b":8:", counts + b":7:", partitions}
    assert all(ttl_ms < life_ms <= ttl_ms * EXPIRES_LATER for life_ms in lives.values())
    client = connect(redis_settings)
    for key in lives:
        await client.pexpire(key, 60_000)
    await table.add([change(4, 5, {}, partition=3)])
    assert all(life_ms > ttl_ms for life_ms in (await _keys(redis_settings)).values())
    await table.expect({4: 7})
    assert (await _keys(redis_settings))[keys.popular_counts(redis_settings, DEFINITION, 4)] > ttl_ms
    await client.aclose()
    await table.close()


async def test_a_server_that_forgot_the_scripts_is_sent_them_again(redis_settings: Settings) -> None:
    client = connect(redis_settings)
    table = RedisPopularTable(client, redis_settings, DEFINITION)
    await table.add([change(0, 1, everybody({1: 1}), partition) for partition in range(8)])
    for _ in range(2):
        if redis_settings.redis_cluster:
            await client.execute_command("SCRIPT FLUSH", target_nodes="primaries")
        else:
            await client.script_flush()
        assert await amounts(table) == {1: 8}
    assert await table.add([change(1, 2, everybody({1: 1}), partition) for partition in range(8)]) == [1] * 8
    assert await amounts(table) == {1: 16}
    await table.close()


@pytest.mark.parametrize("cluster", [False, True])
async def test_an_unreachable_server_is_a_dependency_error(namespace: str, cluster: bool) -> None:
    settings = load_settings(
        redis_url="redis://127.0.0.1:1", redis_cluster=cluster, namespace=namespace, store_timeout_ms=300
    )
    table = on_redis(settings)
    for call in (table.add([change(0, 1, {})]), table.top([EVERYBODY], 10), table.expected([0]), table.expect({0: 1})):
        with pytest.raises(DependencyError):
            await call
    with suppress(DependencyError):
        await table.close()
