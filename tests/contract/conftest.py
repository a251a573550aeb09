"""A Redis Cluster of three nodes, and Milvus Lite, for the suites that hold an adapter to its port."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from workers.local.milvus_lite import MilvusLite
from workers.local.process import end, free_ports, spawn
from workers.local.redis import find_server

SLOTS = 16_384
NODES = 3
READY_WITHIN_S = 30.0


@pytest.fixture(scope="session")
def redis_cluster_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of one node of a cluster that covers all slots."""
    binary, _ = find_server()
    folder = tmp_path_factory.mktemp("redis-cluster")
    ports = free_ports(NODES)
    processes = [spawn([binary, *_options(port)], folder / f"{port}.log", folder / str(port)) for port in ports]
    try:
        _join(ports, folder)
        yield f"redis://127.0.0.1:{ports[0]}"
    finally:
        for process in processes:
            end(process, 10.0)


def _options(port: int) -> list[str]:
    options = {"bind": "127.0.0.1", "port": str(port), "cluster-enabled": "yes", "save": "", "appendonly": "no"}
    return [part for name, value in options.items() for part in (f"--{name}", value)]


def _join(ports: list[int], folder: Path) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    nodes = [redis.Redis(port=port, socket_timeout=5) for port in ports]
    for node in nodes:
        _wait(deadline, folder, lambda node=node: bool(node.ping()))
    for n, node in enumerate(nodes):
        node.execute_command("CLUSTER ADDSLOTS", *range(n * SLOTS // NODES, (n + 1) * SLOTS // NODES))
        node.execute_command("CLUSTER MEET", "127.0.0.1", ports[0])
    for node in nodes:
        _wait(deadline, folder, lambda node=node: node.cluster("info")["cluster_state"] == "ok")
        _wait(deadline, folder, lambda node=node: len(node.cluster("nodes")) == NODES)
        node.close()


def _wait(deadline: float, folder: Path, condition: object) -> None:
    assert callable(condition)
    while True:
        try:
            if condition():
                return
        except redis.RedisError:
            pass
        if time.monotonic() > deadline:
            logs = "\n".join(path.read_text() for path in folder.glob("*.log"))
            pytest.fail(f"the Redis Cluster did not come up: {logs}")
        time.sleep(0.02)


@pytest.fixture(scope="session")
def lite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusLite]:
    """Milvus Lite, started for this run."""
    folder = tmp_path_factory.mktemp("lite")
    server = MilvusLite(folder / "data", folder / "log", folder)
    server.prepare(print)
    server.ports = free_ports(1)
    server.start()
    server.wait_ready()
    yield server
    server.stop()
    assert server.process is not None
    assert server.process.returncode == 0, server.death()
