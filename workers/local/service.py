"""One server of the local stack: what Kafka, Redis and Milvus have in common."""

import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from workers.errors import RecallError
from workers.local.process import end, spawn, tail

Say = Callable[[str], None]


class Service(ABC):
    """A server as child process. `ports` come from the stack, the first is the one that clients use."""

    name: str
    port_count = 1
    ready_within_s = 60.0
    patience_s = 15.0
    session_s = 3  # a server that is silent for longer is given up by what it registers with

    def __init__(self, data: Path, log: Path, cache: Path) -> None:
        self.data = data
        self.log = log
        self.cache = cache
        self.ports: list[int] = []
        self.process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def address(self) -> str:
        """What a client is configured with."""

    @property
    @abstractmethod
    def version(self) -> str:
        """The server's version."""

    @abstractmethod
    def prepare(self, say: Say) -> None:
        """Fetch or unpack what the server needs. Says what it does when that takes time."""

    @abstractmethod
    def command(self) -> tuple[list[str], dict[str, str]]:
        """Write the configuration; arguments and additional environment of the server."""

    @abstractmethod
    def probe(self) -> bool:
        """Whether the server answers its clients now."""

    def start(self) -> None:
        """Start the process; returns before it is ready. Raises RecallError."""
        try:
            self.data.mkdir(parents=True, exist_ok=True)
            argv, env = self.command()
        except OSError as error:
            where = error.filename or self.data  # a write that fails, as on a full disk, names no file
            raise RecallError(f"{self.name} cannot be started: {where}: {error.strerror}") from error
        self.process = spawn(argv, self.log, self.data, env)

    def wait_ready(self, interrupted: Callable[[], bool] = lambda: False) -> None:
        """Wait until clients are answered. Raises RecallError with the end of the log when it dies or is too slow.

        One that aborts is started once more: Milvus does so now and then, on data with which it starts the next time.
        """
        end_at = time.monotonic() + self.ready_within_s
        aborted = False
        while not self.probe():
            if interrupted():
                raise KeyboardInterrupt
            if self.process is None or self.process.poll() is not None:
                if aborted or self.process is None or self.process.returncode != -signal.SIGABRT:
                    raise RecallError(self.death())
                aborted = True
                self.start()
            if time.monotonic() > end_at:
                raise RecallError(f"{self.name} is not ready after {self.ready_within_s:.0f} s\n{tail(self.log)}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End the process, gracefully first."""
        if self.process is not None:
            end(self.process, self.patience_s)

    def kill(self) -> None:
        """Kill -9, for fault tests."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def death(self) -> str:
        """One line that names the dead process, and the end of its log."""
        code = self.process.poll() if self.process else None
        return f"{self.name} ended with code {code}; the end of {self.log}:\n{tail(self.log)}"
