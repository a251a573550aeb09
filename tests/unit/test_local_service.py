"""A server of the local stack that dies while it starts."""

import os
import sys
from pathlib import Path

import pytest

from workers.errors import RecallError
from workers.local.service import Say, Service

SCRIPT = """
import os, pathlib, sys, time
starts = pathlib.Path("starts")
starts.write_text(starts.read_text() + "x" if starts.exists() else "x")
if len(starts.read_text()) <= int(sys.argv[1]):
    os.abort() if sys.argv[2] == "aborts" else sys.exit(1)
pathlib.Path("ready").touch()
time.sleep(60)
"""


class Server(Service):
    """Dies at its first starts, as it is told."""

    name = "server"
    address = "nowhere"
    version = "1"

    def __init__(self, folder: Path, deaths: int, how: str) -> None:
        super().__init__(folder / "data", folder / "log", folder)
        self._arguments = [str(deaths), how]

    def prepare(self, say: Say) -> None:
        """Nothing."""

    def command(self) -> tuple[list[str], dict[str, str]]:
        return [sys.executable, "-c", SCRIPT, *self._arguments], dict(os.environ)

    def probe(self) -> bool:
        return (self.data / "ready").exists()


def test_one_that_aborts_is_started_once_more(tmp_path: Path) -> None:
    server = Server(tmp_path, 1, "aborts")
    server.start()
    try:
        server.wait_ready()
    finally:
        server.kill()
    assert (server.data / "starts").read_text() == "xx"


@pytest.mark.parametrize(("deaths", "how", "starts"), [(2, "aborts", "xx"), (1, "ends", "x")])
def test_one_that_does_it_again_or_ends_is_told(tmp_path: Path, deaths: int, how: str, starts: str) -> None:
    server = Server(tmp_path, deaths, how)
    server.start()
    with pytest.raises(RecallError, match="server ended with code"):
        server.wait_ready()
    assert (server.data / "starts").read_text() == starts
