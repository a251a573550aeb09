"""Redis holds every user record and item record: is it there, and does it keep what it has acknowledged?"""

from collections.abc import Iterator, Sequence

from workers.doctor.findings import Finding, Level, well
from workers.settings import Settings
from workers.stores.inspect import Node, Unknown, inspect_nodes

CHECK = "redis"
OLDEST = (6, 2)
FULL_PART = 0.9  # of maxmemory
AOF_ON = "CONFIG SET appendonly yes, and appendonly yes in its configuration file"


async def check(settings: Settings) -> list[Finding]:
    """Ask every node and judge. Raises DependencyError when none answers, ConfigurationError."""
    return judge(settings, await inspect_nodes(settings))


def judge(settings: Settings, nodes: Sequence[Node | Unknown]) -> list[Finding]:
    """What the nodes' answers mean; each that is well is one finding `ok`. Pure."""
    found = []
    for node in nodes:
        concerns = list(_unknown(node) if isinstance(node, Unknown) else _concerns(settings, node))
        if isinstance(node, Node) and well(concerns):
            kept = "append-only file" if node.aof else "snapshots"
            limit = f" of {_mb(node.maxmemory)}" if node.maxmemory else ""
            line = f"{node.product} at {node.address}, {_mb(node.used_memory)}{limit} used, {node.policy}, {kept}"
            found.append(Finding(CHECK, Level.OK, line))
        found += concerns
    return found


def _unknown(node: Unknown) -> Iterator[Finding]:
    if node.refused:
        line = f"{node.address} does not tell its settings ({node.reason}): eviction and persistence are not known"
        yield Finding(CHECK, Level.WARNING, line, "allow INFO: activity and items workers wait until it is answered")
    else:
        line = f"{node.address}, a node of the cluster: {node.reason}"
        yield Finding(CHECK, Level.DOWN, line, "bring the node back")


def _concerns(settings: Settings, node: Node) -> Iterator[Finding]:
    where = f"{node.product} at {node.address}"
    if node.version and node.version < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        yield Finding(CHECK, Level.WRONG, f"{where} is older than {oldest}", f"use Redis {oldest} or later, or Valkey")
    if node.clustered and not settings.redis_cluster:
        yield Finding(CHECK, Level.WRONG, f"{where} is a node of a cluster", "set redis_cluster = true")
    if settings.redis_cluster and not node.clustered:
        yield Finding(
            CHECK, Level.WRONG, f"{where} is no cluster", "set redis_cluster = false, or name a cluster's node"
        )
    if node.loading:
        yield Finding(CHECK, Level.DOWN, f"{where} is loading its data", "wait until it has")
    if node.replica and not settings.redis_cluster:
        yield Finding(CHECK, Level.DOWN, f"{where} is a replica, it takes no writes", "name the primary in redis_url")
    yield from _eviction(where, node)
    yield from _persistence(where, node)


def _eviction(where: str, node: Node) -> Iterator[Finding]:
    todo = "CONFIG SET maxmemory-policy noeviction, and the same in its configuration file"
    if node.policy and node.policy != "noeviction":
        if node.maxmemory:
            line = f"{where} deletes records when its {_mb(node.maxmemory)} are full (maxmemory-policy {node.policy})"
            yield Finding(CHECK, Level.UNSAFE, line, todo)
        else:
            line = f"{where} would delete records if maxmemory were set (maxmemory-policy {node.policy})"
            yield Finding(CHECK, Level.WARNING, line, todo)
    if node.maxmemory and node.used_memory > FULL_PART * node.maxmemory:
        line = f"{where} is nearly full, {_mb(node.used_memory)} of {_mb(node.maxmemory)}: it will refuse writes"
        yield Finding(CHECK, Level.WARNING, line, "give it more memory (maxmemory), or shorten user_ttl_ms")


def _persistence(where: str, node: Node) -> Iterator[Finding]:
    if not node.aof and node.save == "":
        line = f"{where} writes nothing to disk: a restart loses every record"
        yield Finding(CHECK, Level.UNSAFE, line, AOF_ON)
    elif not node.aof and node.save is None:
        line = f"{where} has no append-only file, and does not tell whether it takes snapshots"
        yield Finding(CHECK, Level.WARNING, line, "turn the append-only file on")
    elif not node.aof:
        line = f"{where} takes snapshots alone (save {node.save}): a crash loses what came since the last one"
        yield Finding(CHECK, Level.WARNING, line, AOF_ON)
    elif node.fsync == "no":
        line = f"{where} leaves it to the system when its append-only file reaches the disk (appendfsync no)"
        yield Finding(CHECK, Level.WARNING, line, "CONFIG SET appendfsync everysec")
    if not node.aof_written:
        line = f"{where} cannot write its append-only file, and refuses writes"
        yield Finding(CHECK, Level.DOWN, line, "look for a full disk in its log")
    if not node.snapshot_written and not node.aof:
        line = f"{where} cannot write its snapshots"
        yield Finding(CHECK, Level.WARNING, line, "look for a full disk in its log")


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1_000_000:.0f} MB" if size_bytes >= 10_000_000 else f"{size_bytes / 1_000_000:.1f} MB"
