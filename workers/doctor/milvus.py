"""Milvus holds the item vectors, and can be filled again from Kafka: is it there, and new enough?"""

from workers.doctor.findings import Finding, Level
from workers.index.milvus_inspect import Server, inspect_server
from workers.index.opening import TOGETHER, adapter
from workers.settings import Settings

CHECK = "milvus"
OLDEST = (2, 3)


async def check(settings: Settings) -> list[Finding]:
    """Ask the server and judge. Raises DependencyError, ConfigurationError."""
    if settings.index != CHECK:
        return [_elsewhere(settings)]
    if settings.milvus_file is not None:
        line = f"Milvus Lite in the file {settings.milvus_file}: only the worker that opened it can look inside"
        return [Finding(CHECK, Level.NOTE, line)]
    return [judge(settings, await inspect_server(settings))]


def _elsewhere(settings: Settings) -> Finding:
    """Nothing is kept in Milvus. Raises ConfigurationError: what is in its place cannot be loaded."""
    if adapter(settings).in_process:
        line = f"index = {settings.index!r} keeps the items in the process of the workers, which alone can look inside"
        return Finding(CHECK, Level.NOTE, line, f"run all workers in one: {TOGETHER}")
    return Finding(CHECK, Level.NOTE, f"index = {settings.index!r}: the items are not in Milvus, it is not asked")


def judge(settings: Settings, server: Server) -> Finding:
    """What the server's answer means. Pure."""
    where = f"{server.product} at {settings.shown('milvus_uri')}"
    if server.version and server.version < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return Finding(CHECK, Level.WRONG, f"{where} is older than {oldest}", f"use Milvus {oldest} or later")
    if server.ailing:
        return Finding(CHECK, Level.DOWN, f"{where} is not healthy: {server.ailing}", "see its log")
    return Finding(CHECK, Level.OK, where)
