"""Whether the Redis that took our writes is still the one that answers, with the same past.

A server that was started again, or a replica that took over, may have lost the last writes that were acknowledged. Who
asks before every commit of offsets never commits past a write that is lost.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from workers.errors import DependencyUnavailable
from workers.stores.connect import DEPENDENCY, Client, translated

Identity = frozenset[tuple[str, str, str]]
"""Of each primary: role, run id (new at each start), and whose replica it was last (new when it was one meanwhile)."""

log = structlog.get_logger()


class SameRedis:
    """`begin` before the first write; `check` from then on. `changed` is awaited once, and is to end the process."""

    def __init__(self, client: Client, changed: Callable[[], Awaitable[None]]) -> None:
        self._client = client
        self._changed = changed
        self._first: Identity = frozenset()
        self._over = False

    async def begin(self) -> None:
        """Note who takes the writes. Raises DependencyError when it does not answer, or is a replica."""
        first = await identity(self._client)
        if not _writable(first):
            raise DependencyUnavailable(DEPENDENCY, "it is a replica")
        self._first = first

    async def check(self) -> None:
        """Raises DependencyError when it does not answer, or is another one, which ends the process."""
        found = await identity(self._client)
        if found == self._first:
            return
        if not self._over:
            self._over = True
            log.error(
                "redis is another one and may have lost writes; ending without a commit",
                was=_text(self._first),
                now=_text(found),
            )
            await self._changed()
        raise DependencyUnavailable(DEPENDENCY, "it is another one")


async def identity(client: Client) -> Identity:
    """Of the server, or of every primary of the cluster. Raises DependencyError."""
    with translated():
        servers = await _info(client, "server")
        parts = await _info(client, "replication")
    if servers.keys() != parts.keys():
        raise DependencyUnavailable(DEPENDENCY, "the cluster changes")
    return frozenset(
        (part.get("role", ""), str(servers[name].get("run_id", "")), str(part.get("master_replid2", "")))
        for name, part in parts.items()
    )


async def _info(client: Client, section: str) -> dict[str, dict[str, Any]]:
    """By the name of the server; a single one has none."""
    if not hasattr(client, "PRIMARIES"):
        return {"": await client.info(section)}
    answers: dict[str, Any] = await client.info(section, target_nodes=client.PRIMARIES)
    return {"": answers} if "role" in answers or "run_id" in answers else answers  # a cluster may have one primary


def _writable(found: Identity) -> bool:
    return all(role == "master" for role, _, _ in found)


def _text(found: Identity) -> str:
    return ", ".join(f"{role} {run_id} ({before})" for role, run_id, before in sorted(found))
