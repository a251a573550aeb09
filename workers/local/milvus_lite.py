"""Milvus Lite as a child process: in the local stack, and for a worker whose `milvus_uri` is a file."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec

from workers.errors import ConfigurationError, ExtraMissing, RecallError
from workers.local.process import free_ports, tail
from workers.local.service import Say, Service
from workers.settings import Settings

REFUSED = 1  # exit code of the server when its last line says why


class MilvusLite(Service):
    """The server of `workers.index.lite_server`. Ports: clients."""

    name = "milvus"
    ready_within_s = 120.0
    patience_s = 20.0

    @property
    def address(self) -> str:
        """URI."""
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def version(self) -> str:
        """That it is Lite, and its version."""
        return f"Lite {version('milvus-lite')}"

    def prepare(self, say: Say) -> None:  # noqa: ARG002  # nothing to say
        """Nothing to fetch; raises ConfigurationError when it is not installed."""
        if find_spec("milvus_lite") is None:
            raise ExtraMissing("Milvus Lite", "lite")

    def command(self) -> tuple[list[str], dict[str, str]]:
        """Everything is an argument."""
        argv = [sys.executable, "-m", "workers.index.lite_server", str(self.data), str(self.ports[0])]
        return argv, dict(os.environ)

    def probe(self) -> bool:
        """Whether it answers."""
        from workers.local.probes import milvus_answers

        return milvus_answers(f"127.0.0.1:{self.ports[0]}")

    def death(self) -> str:
        """What it said when it refused to start, else as of any server."""
        last = tail(self.log, 1).strip()
        if self.process is not None and self.process.poll() == REFUSED and last.startswith("recall: "):
            return last.removeprefix("recall: ")
        return super().death()


@contextmanager
def file_opened(settings: Settings) -> Iterator[Settings]:
    """Settings with an address in place of a file in `milvus_uri`: Milvus Lite serves it while the context lasts.

    When the server dies by itself, this process gets SIGTERM and leaving raises RecallError: both start again together.
    Raises RecallError when another process has the file open, ConfigurationError when it is none of Lite's.
    """
    file = settings.milvus_file
    if file is None:
        yield settings
        return
    if file.is_file():
        raise ConfigurationError(
            f"milvus_uri: {file} was not made by Milvus Lite 3, which keeps a folder under that name"
        )
    server = MilvusLite(file, settings.data_dir / "logs" / "milvus-lite.log", settings.data_dir)
    server.prepare(lambda _: None)
    server.ports = free_ports(1)
    leaving = threading.Event()
    server.start()
    try:
        server.wait_ready()
        threading.Thread(target=_end_with, args=(server, leaving), daemon=True).start()
        yield settings.model_copy(update={"milvus_uri": server.address})
        if server.process is not None and server.process.poll() is not None:
            raise RecallError(server.death())
    finally:
        leaving.set()
        server.stop()


def _end_with(server: Service, leaving: threading.Event) -> None:
    if server.process is not None:
        server.process.wait()
    if not leaving.is_set():
        os.kill(os.getpid(), signal.SIGTERM)
