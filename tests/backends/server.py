"""A real server as a child process: started, waited for, ended."""

import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from workers.errors import RecallError
from workers.local.process import end, spawn, tail

READY_WITHIN_S = 120.0
PATIENCE_S = 20.0


class Server:
    """One child process and its log; it dies with this one."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder
        self.log = folder / f"{name}.log"
        self._name = name
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, argv: Sequence[str], ready: str | Callable[[], bool], env: Mapping[str, str]) -> None:
        """Start it, and return when a page answers 200, or a function says so.

        Raises RecallError with the end of its log.
        """
        self._process = spawn(argv, self.log, self.folder, env)
        self.until(ready if callable(ready) else partial(_answers, ready))

    def until(self, well: Callable[[], bool]) -> None:
        """Return when something is so. Raises RecallError with the end of its log, also when it has ended."""
        deadline = time.monotonic() + READY_WITHIN_S
        while not well():
            if self._process is None or self._process.poll() is not None or time.monotonic() > deadline:
                raise RecallError(f"{self._name} does not come up:\n{tail(self.log, 40)}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End it; may be called twice."""
        if self._process is not None:
            end(self._process, PATIENCE_S)
            self._process = None


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as page:  # noqa: S310  # of our own making
            return bool(page.status == 200)
    except (urllib.error.URLError, OSError):
        return False
