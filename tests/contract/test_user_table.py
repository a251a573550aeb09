"""What every user table does: Redis, a Redis Cluster, memory."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial as partial_of

import numpy as np
import pytest

from schemas.records import SEEN_ENTRY, UserRecord
from tests.conftest import PATIENT_MS
from workers.errors import DependencyError, DependencyTimeout, StoreLost
from workers.ports import Applied, StoredUser, UserChange, UserTable
from workers.settings import Settings, load_settings
from workers.stores import keys
from workers.stores.connect import Client, connect
from workers.stores.markers_redis import RedisMarkers
from workers.stores.user_memory import MemoryUserTable
from workers.stores.user_redis import GROUP, RedisUserTable

Complete = Callable[[], Awaitable[None]]

HOSTILE = ["a{b}c", "}{", "quote'\"", "new\nline", "nul\0", "émoji 🎬", "x" * 256, " ", "*?[a-z]", "\\", "{}", "a:b"]


@pytest.fixture(params=["redis", "cluster"])
def redis_settings(request: pytest.FixtureRequest, namespace: str) -> Settings:
    if request.param == "cluster":
        url = request.getfixturevalue("redis_cluster_url")
        return load_settings(redis_url=url, redis_cluster=True, namespace=namespace, store_timeout_ms=PATIENT_MS)
    settings: Settings = request.getfixturevalue("stack").settings(namespace=namespace, store_timeout_ms=PATIENT_MS)
    return settings


@pytest.fixture(params=["memory", "redis", "cluster"])
async def partial(request: pytest.FixtureRequest, namespace: str) -> AsyncIterator[tuple[UserTable, Complete]]:
    """A table that is not complete yet, and what makes it so."""
    if request.param == "memory":
        table = MemoryUserTable(whole=False)

        async def complete_memory() -> None:
            table.whole = True

        yield table, complete_memory
        return
    settings = request.getfixturevalue("stack").settings(namespace=namespace, store_timeout_ms=PATIENT_MS)
    if request.param == "cluster":
        url = request.getfixturevalue("redis_cluster_url")
        settings = load_settings(redis_url=url, redis_cluster=True, namespace=namespace, store_timeout_ms=PATIENT_MS)
    client = connect(settings)
    yield RedisUserTable(client, settings), partial_of(mark_all, client, settings)
    await client.aclose()


async def mark_all(client: Client, settings: Settings) -> None:
    """As a worker does when it has read everything."""
    markers = RedisMarkers(client, settings, GROUP)
    await markers.open(2)
    assert await markers.mark(0, "")
    assert await markers.mark(1, "")


@pytest.fixture
async def table(partial: tuple[UserTable, Complete]) -> UserTable:
    table, complete = partial
    await complete()
    return table


def token(n: int) -> bytes:
    return n.to_bytes(8, "big")


def record(n: int, count: int = 1) -> bytes:
    return UserRecord(token=token(n), count=count, profile=(("city", "Köln", 5),)).encode()


def seen(*items: int) -> bytes:
    return np.array([(item, 7) for item in items], dtype=SEEN_ENTRY).tobytes()


async def test_reads_what_was_written_in_the_order_asked(table: UserTable) -> None:
    users = [f"user {n}" for n in range(300)]
    changes = [UserChange(user, b"", record(n), seen(n)) for n, user in enumerate(users)]
    assert await table.write(changes) == [Applied(written=True, seen_bytes=16)] * 300
    asked = ["nobody", "user 7", "user 299", "user 7", "user 0"]
    assert await table.records(asked) == [None, record(7), record(299), record(7), record(0)]
    assert await table.read(asked) == [
        StoredUser(None, b""),
        StoredUser(record(7), seen(7)),
        StoredUser(record(299), seen(299)),
        StoredUser(record(7), seen(7)),
        StoredUser(record(0), seen(0)),
    ]


async def test_a_batch_of_one_equals_the_same_row_of_a_larger_one(table: UserTable) -> None:
    users = [f"user {n}" for n in range(64)]
    await table.write([UserChange(user, b"", record(n), seen(n)) for n, user in enumerate(users)])
    batch = await table.read(users)
    for n in (0, 17, 63):
        assert await table.read([users[n]]) == [batch[n]]


async def test_nothing_is_answered_without_the_backend(table: UserTable) -> None:
    assert await table.records([]) == []
    assert await table.read([]) == []
    assert await table.write([]) == []


async def test_hostile_ids(table: UserTable) -> None:
    changes = [UserChange(user, b"", record(n), seen(n)) for n, user in enumerate(HOSTILE)]
    assert all(applied.written for applied in await table.write(changes))
    assert await table.read(HOSTILE) == [StoredUser(record(n), seen(n)) for n in range(len(HOSTILE))]


async def test_a_write_needs_the_token_that_was_read(table: UserTable) -> None:
    assert (await table.write([UserChange("a", b"", record(1), seen(1))]))[0].written
    refused = await table.write([UserChange("a", b"", record(2), seen(2)), UserChange("b", token(9), record(2))])
    assert [applied.written for applied in refused] == [False, False]
    assert await table.read(["a", "b"]) == [StoredUser(record(1), seen(1)), StoredUser(None, b"")]
    mixed = await table.write([UserChange("a", token(1), record(3), seen(3)), UserChange("b", b"", record(4))])
    assert mixed == [Applied(written=True, seen_bytes=32), Applied(written=True, seen_bytes=0)]
    assert await table.read(["a"]) == [StoredUser(record(3), seen(1, 3))]


async def test_a_write_that_is_repeated_is_refused_by_its_token(table: UserTable) -> None:
    change = UserChange("a", b"", record(1), seen(1))
    assert [(await table.write([change]))[0].written for _ in range(2)] == [True, False]
    assert await table.read(["a"]) == [StoredUser(record(1), seen(1))]


async def test_the_seen_set_is_appended_to_or_replaced(table: UserTable) -> None:
    await table.write([UserChange("a", b"", record(1), seen(1, 2))])
    await table.write([UserChange("a", token(1), record(2))])
    assert await table.read(["a"]) == [StoredUser(record(2), seen(1, 2))]
    assert await table.write([UserChange("a", token(2), record(3), seen(9), replace_seen=True)]) == [
        Applied(written=True, seen_bytes=16)
    ]
    assert await table.read(["a"]) == [StoredUser(record(3), seen(9))]
    assert await table.write([UserChange("a", token(3), record(4), replace_seen=True)]) == [
        Applied(written=True, seen_bytes=0)
    ]
    assert await table.read(["a"]) == [StoredUser(record(4), b"")]


async def test_tokens_and_records_of_any_bytes(table: UserTable) -> None:
    for n, odd in enumerate([b"\0" * 7 + b"\1", b"\xff" * 8, b"\r\n\r\n\r\n\r\n", b"-1-1-1-1"]):
        user = f"user {n}"
        data = UserRecord(token=odd, history=bytes(range(256)) * 9).encode()
        assert (await table.write([UserChange(user, b"", data)]))[0].written
        assert (await table.records([user])) == [data]
        assert (await table.write([UserChange(user, odd, record(1))]))[0].written


async def test_of_writers_at_once_one_wins_each_turn(table: UserTable) -> None:
    await table.write([UserChange("a", b"", record(1, count=0))])

    async def add(writer: int) -> None:
        for turn in range(5):
            while True:
                [data] = await table.records(["a"])
                assert data is not None
                known = UserRecord.decode(data)
                mine = token((writer + 1) * 1000 + turn)
                new = UserRecord(token=mine, count=known.count + 1).encode()
                [applied] = await table.write([UserChange("a", known.token, new, seen(writer))])
                if applied.written:
                    break

    await asyncio.gather(*(add(writer) for writer in range(4)))
    [user] = await table.read(["a"])
    assert user.record is not None
    assert UserRecord.decode(user.record).count == 20
    assert sorted(np.frombuffer(user.seen, dtype=SEEN_ENTRY)["item"].tolist()) == sorted([0, 1, 2, 3] * 5)


async def test_until_the_table_is_complete_an_unknown_user_may_be_a_known_one(
    partial: tuple[UserTable, Complete],
) -> None:
    table, complete = partial
    await table.write([UserChange("known", b"", record(1), seen(1))])
    known = StoredUser(record(1), seen(1))
    assert await table.read(["unknown", "known"]) == [StoredUser(None, b"", uncertain=True), known]
    assert await table.records(["unknown", "known"]) == [None, record(1)]
    assert await table.read([]) == []
    forgotten = UserRecord(token=token(2), forgotten_ms=9, forget_taken_ms=9).encode()  # what came since may follow
    await table.write([UserChange("forgotten", b"", forgotten)])
    assert await table.read(["forgotten"]) == [StoredUser(forgotten, b"", uncertain=True)]
    await complete()
    assert await table.read(["known", "unknown"]) == [known, StoredUser(None, b"")]
    assert await table.read(["forgotten"]) == [StoredUser(forgotten, b"")]


async def test_an_emptied_redis_is_not_written_to(redis_settings: Settings) -> None:
    """In a cluster, where the markers stand on another node, it is whoever watches them that finds out."""
    client = connect(redis_settings)
    markers = RedisMarkers(client, redis_settings, GROUP)
    await markers.open(1)
    table = RedisUserTable(client, redis_settings, markers)
    assert (await table.write([UserChange("a", b"", record(1))]))[0].written
    for emptied_by in ("nobody else", "another worker, which fills it already"):
        await client.delete(markers.key)
        if emptied_by != "nobody else":
            await RedisMarkers(client, redis_settings, GROUP).open(1)
        assert not await markers.stand()
        assert not await markers.mark(0, "")
        if redis_settings.redis_cluster:
            assert (await table.write([UserChange(emptied_by, b"", record(1))]))[0].written
        else:
            with pytest.raises(StoreLost):
                await table.write([UserChange("a", token(1), record(2)), UserChange("b", b"", record(1))])
            assert await table.records(["a", "b"]) == [record(1), None]
    await markers.open(1)
    assert (await table.write([UserChange("a", token(1), record(2))]))[0].written
    await table.close()


async def test_close_twice(table: UserTable) -> None:
    await table.close()
    await table.close()


async def test_record_and_seen_set_expire_together(redis_settings: Settings) -> None:
    client = connect(redis_settings)
    table = RedisUserTable(client, redis_settings)
    await table.write([UserChange("a", b"", record(1), seen(1))])
    for key in (keys.user_record(redis_settings, "a"), keys.user_seen(redis_settings, "a")):
        assert redis_settings.user_ttl_ms - 60_000 < await client.pttl(key) <= redis_settings.user_ttl_ms
    await client.pexpire(keys.user_seen(redis_settings, "a"), 60_000)
    await table.write([UserChange("a", token(1), record(2))])
    assert await client.pttl(keys.user_seen(redis_settings, "a")) > redis_settings.user_ttl_ms - 60_000
    await table.close()


async def test_namespaces_do_not_see_each_other(redis_settings: Settings) -> None:
    other_settings = redis_settings.model_copy(update={"namespace": redis_settings.namespace + "b"})
    table = RedisUserTable(connect(redis_settings), redis_settings)
    other = RedisUserTable(connect(other_settings), other_settings)
    await table.write([UserChange("a", b"", record(1))])
    assert await other.records(["a"]) == [None]
    await table.close()
    await other.close()


async def test_keys_of_another_type_are_refused_alone(redis_settings: Settings) -> None:
    client = connect(redis_settings)
    table = RedisUserTable(client, redis_settings)
    await client.rpush(keys.user_record(redis_settings, "list"), "x")
    await client.hset(keys.user_seen(redis_settings, "hash"), "x", "y")
    changes = [UserChange(user, b"", record(1), seen(1)) for user in ("a", "list", "hash", "b")]
    refused = Applied(written=False, refused=True)
    assert await table.write(changes) == [Applied(True, 16), refused, refused, Applied(True, 16)]
    assert await table.read(["list", "hash"]) == [StoredUser(None, b"", uncertain=True)] * 2
    await table.close()


async def test_a_server_that_forgot_the_script_is_sent_it_again(redis_settings: Settings) -> None:
    client = connect(redis_settings)
    table = RedisUserTable(client, redis_settings)
    users = [f"user {n}" for n in range(20)]
    assert all(done.written for done in await table.write([UserChange(user, b"", record(1)) for user in users]))
    if redis_settings.redis_cluster:
        await client.execute_command("SCRIPT FLUSH", target_nodes="primaries")
    else:
        await client.script_flush()
    assert all(done.written for done in await table.write([UserChange(user, token(1), record(2)) for user in users]))
    assert await table.records(users) == [record(2)] * 20
    await table.close()


@pytest.mark.parametrize("cluster", [False, True])
async def test_an_unreachable_server_is_a_dependency_error(namespace: str, cluster: bool) -> None:
    settings = load_settings(
        redis_url="redis://127.0.0.1:1", redis_cluster=cluster, namespace=namespace, store_timeout_ms=300
    )
    table = RedisUserTable(connect(settings), settings)
    for call in (table.records(["a"]), table.read(["a"]), table.write([UserChange("a", b"", record(1))])):
        with pytest.raises(DependencyError):
            await call
    with suppress(DependencyError):
        await table.close()


async def test_a_silent_server_is_a_timeout_within_its_deadline(namespace: str) -> None:
    silent = await asyncio.start_server(lambda reader, writer: asyncio.sleep(60), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    settings = load_settings(redis_url=f"redis://127.0.0.1:{port}", namespace=namespace, store_timeout_ms=200)
    table = RedisUserTable(connect(settings), settings)
    async with asyncio.timeout(30):
        with pytest.raises(DependencyTimeout):
            await table.records(["a"])
    await table.close()
    silent.close()
