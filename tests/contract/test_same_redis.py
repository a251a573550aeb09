"""Is it the Redis that took our writes? On servers of the test's own, which are killed, started again and demoted."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis

from tests.conftest import PATIENT_MS
from workers.errors import DependencyError
from workers.local.process import free_ports
from workers.local.redis import Redis
from workers.settings import load_settings
from workers.stores.connect import Client, connect
from workers.stores.same_redis import SameRedis, identity

FOLLOWS_WITHIN_S = 60.0


class Changed:
    """How often it was told."""

    def __init__(self) -> None:
        self.times = 0

    async def __call__(self) -> None:
        self.times += 1


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[Redis]]:
    """Two."""
    servers = [Redis(tmp_path / str(n), tmp_path / f"{n}.log", tmp_path) for n in range(2)]
    for server in servers:
        server.ports = free_ports(1)
        server.start()
        server.wait_ready()
    yield servers
    for server in servers:
        server.kill()  # one that has replicas would wait for them


@pytest.fixture
async def client(servers: list[Redis]) -> AsyncIterator[Client]:
    client = connect(load_settings(redis_url=servers[0].address, store_timeout_ms=PATIENT_MS))
    yield client
    await client.aclose()


@pytest.fixture
def changed() -> Changed:
    return Changed()


@pytest.fixture
async def same(client: Client, changed: Changed) -> SameRedis:
    same = SameRedis(client, changed)
    await same.begin()
    return same


def follow(follower: Redis, leader: Redis | None) -> None:
    """Make a server a replica, and wait until it has the leader's data; or a primary again."""
    if leader is not None:
        with redis.Redis.from_url(leader.address) as plain:
            plain.config_set("repl-diskless-sync-delay", 0)
    end_s = time.monotonic() + FOLLOWS_WITHIN_S
    with redis.Redis.from_url(follower.address) as plain:
        plain.replicaof(*(("127.0.0.1", leader.ports[0]) if leader is not None else ("NO", "ONE")))
        while leader is not None and plain.info("replication")["master_link_status"] != "up":
            assert time.monotonic() < end_s, "it does not follow"
            time.sleep(0.01)


async def is_another(same: SameRedis, changed: Changed) -> None:
    for _ in range(2):
        with pytest.raises(DependencyError, match="another one"):
            await same.check()
    assert changed.times == 1


async def test_as_long_as_it_stays_the_primary_it_is_the_same(
    servers: list[Redis], client: Client, same: SameRedis, changed: Changed
) -> None:
    await client.set("a", "b")
    await same.check()
    follow(servers[1], servers[0])
    await same.check()
    follow(servers[1], None)
    await same.check()
    assert changed.times == 0


async def test_one_that_does_not_answer_is_not_known_and_one_that_was_started_again_is_another(
    servers: list[Redis], same: SameRedis, changed: Changed
) -> None:
    servers[0].kill()
    with pytest.raises(DependencyError, match="Connection"):
        await same.check()
    assert changed.times == 0
    servers[0].start()
    servers[0].wait_ready()
    await is_another(same, changed)


async def test_a_replica_is_another(servers: list[Redis], same: SameRedis, changed: Changed) -> None:
    follow(servers[0], servers[1])
    await is_another(same, changed)


async def test_one_that_was_a_replica_meanwhile_is_another(
    servers: list[Redis], same: SameRedis, changed: Changed
) -> None:
    follow(servers[0], servers[1])
    follow(servers[0], None)
    await is_another(same, changed)


async def test_a_replica_takes_no_writes(servers: list[Redis], client: Client, changed: Changed) -> None:
    follow(servers[0], servers[1])
    with pytest.raises(DependencyError, match="it is a replica"):
        await SameRedis(client, changed).begin()


async def test_of_a_cluster_every_primary_counts(redis_cluster_url: str, changed: Changed) -> None:
    client = connect(load_settings(redis_url=redis_cluster_url, redis_cluster=True, store_timeout_ms=PATIENT_MS))
    try:
        assert len(await identity(client)) == 3
        same = SameRedis(client, changed)
        await same.begin()
        await same.check()
    finally:
        await client.aclose()
    assert changed.times == 0


async def test_a_cluster_may_have_one_primary(tmp_path: Path) -> None:
    server = _Clustered(tmp_path / "data", tmp_path / "log", tmp_path)
    server.ports = free_ports(1)
    server.start()
    server.wait_ready()
    try:
        with redis.Redis.from_url(server.address) as plain:
            plain.execute_command("CLUSTER ADDSLOTS", *range(16_384))
            while plain.cluster("info")["cluster_state"] != "ok":
                await asyncio.sleep(0.01)
        client = connect(load_settings(redis_url=server.address, redis_cluster=True, store_timeout_ms=PATIENT_MS))
        ((role, run_id, _),) = await identity(client)
        await client.aclose()
        assert (role, len(run_id)) == ("master", 40)
    finally:
        server.stop()


class _Clustered(Redis):
    """The only node of a cluster."""

    def command(self) -> tuple[list[str], dict[str, str]]:
        argv, env = super().command()
        return [*argv, "--cluster-enabled", "yes"], env
