"""Worker processes as children: started with the stack's endpoints, watched, and started again when they die.

A worker that dies is started again after a pause that doubles from half a second to half a minute, and begins anew once
one has lived for a minute. Six deaths in a row, each soon after its start, are a crash loop: the supervisor gives up
and names it. A worker that ends with exit code 2 says that its configuration cannot work: nothing is tried again.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from workers.ending import WRONG_CONFIGURATION
from workers.errors import ConfigurationError, RecallError
from workers.local.process import end, free_ports, spawn, tail
from workers.local.state import WorkerState
from workers.settings import AGENT_KINDS, Settings

DRAIN_S = 12.0  # a worker drains within 10 s
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
SETTLED_AFTER_S = 60.0
SOON_S = 30.0
MAX_SOON_DEATHS = 6
ALL_KINDS = "all"  # the kind of a process that runs every kind

log = structlog.get_logger()


class Backoff:
    """How long to wait before a worker is started again. Pure: told of every start and death."""

    def __init__(self) -> None:
        self._started_s = 0.0
        self._pause_s = FIRST_PAUSE_S
        self._soon = 0

    def started(self, now_s: float) -> None:
        """It was started."""
        self._started_s = now_s

    def died(self, now_s: float) -> float | None:
        """Seconds to wait before the next start; None when it dies again and again."""
        lived_s = now_s - self._started_s
        self._soon = self._soon + 1 if lived_s < SOON_S else 0
        if self._soon >= MAX_SOON_DEATHS:
            return None
        if lived_s >= SETTLED_AFTER_S:
            self._pause_s = FIRST_PAUSE_S
        pause_s = self._pause_s
        self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)
        return pause_s


@dataclass
class _Child:
    """One kind: its process, or when it is to be started again."""

    kind: str
    web_port: int
    web_host: str
    process: "subprocess.Popen[bytes] | None" = None
    backoff: Backoff = field(default_factory=Backoff)
    start_at_s: float = 0.0
    restarts: int = 0

    @property
    def state(self) -> WorkerState:
        """As others see it."""
        pid = 0 if self.process is None else self.process.pid
        return WorkerState(
            kind=self.kind, pid=pid, web_port=self.web_port, web_host=self.web_host, restarts=self.restarts
        )


class WorkerProcesses:
    """One process per kind, or one for all of them, each with a log and a port for its health pages.

    `supervise` is to be called a few times a second.
    """

    def __init__(self, settings: Settings, *, one_process: bool = False) -> None:
        self._settings = settings
        self._kinds: Sequence[str] = [ALL_KINDS] if one_process else AGENT_KINDS
        self._children: list[_Child] = []

    @property
    def states(self) -> list[WorkerState]:
        """What runs now, in the order of AGENT_KINDS; pid 0 while one is about to be started again."""
        return [child.state for child in self._children]

    def start(self) -> None:
        """Start them; returns at once."""
        first = self._settings.web_port
        count = len(self._kinds)
        ports = [first + n for n in range(count)] if first else free_ports(count)
        host = asked_at(self._settings.web_bind)
        self._children = [_Child(kind, port, host) for kind, port in zip(self._kinds, ports, strict=True)]
        for child in self._children:
            self._start(child)

    def supervise(self) -> bool:
        """Look after the workers once; True when one was started again.

        Raises RecallError for a crash loop, ConfigurationError when a worker cannot work as it is configured.
        """
        changed = False
        for child in self._children:
            if child.process is not None and (code := child.process.poll()) is not None:
                child.process = None
                self._ended(child, code)
            if child.process is None and time.monotonic() >= child.start_at_s:
                child.restarts += 1
                self._start(child)
                changed = True
        return changed

    def log(self, kind: str) -> Path:
        """Where a worker's output goes."""
        prefix = f"{self._settings.namespace}-" if self._settings.namespace else ""
        return self._settings.data_dir / "logs" / f"{prefix}worker-{kind}.log"

    def dead(self) -> str | None:
        """A kind whose process has ended, or None."""
        return next((c.kind for c in self._children if c.process is None or c.process.poll() is not None), None)

    def stop(self) -> None:
        """SIGTERM to all, then wait for each. May be called twice."""
        running = [child.process for child in self._children if child.process is not None]
        for process in running:
            if process.poll() is None:
                process.terminate()
        for process in running:
            end(process, DRAIN_S)

    def _start(self, child: _Child) -> None:
        env = os.environ | environment(self._settings)
        env |= {"RECALL_WEB_PORT": str(child.web_port), "RECALL_RESTARTS": str(child.restarts)}
        options = ["--one-process"] if child.kind == ALL_KINDS else []
        argv = [sys.executable, "-m", "workers.cli.main", "worker", child.kind, *options]
        child.process = spawn(argv, self.log(child.kind), Path.cwd(), env)
        child.backoff.started(time.monotonic())
        if child.restarts:
            log.info("worker started again", kind=child.kind, pid=child.process.pid, restarts=child.restarts)

    def _ended(self, child: _Child, code: int) -> None:
        """Decide what becomes of a kind whose process has ended."""
        how, output = _how(code), self.log(child.kind)
        if code == WRONG_CONFIGURATION:
            raise ConfigurationError(f"worker {child.kind}: {_last_error(output)}")
        pause_s = child.backoff.died(time.monotonic())
        if pause_s is None:
            log.error("worker given up", kind=child.kind, how=how)
            line = f"worker {child.kind} ended {MAX_SOON_DEATHS} times in a row soon after its start, now {how}"
            raise RecallError(f"{line}; the end of {output}:\n{tail(output)}")
        child.start_at_s = time.monotonic() + pause_s
        log.warning("worker ended, starting it again", kind=child.kind, how=how, in_s=pause_s)


def in_one_process(settings: Settings) -> bool:
    """Whether the items are kept where one process alone can use them. Raises ConfigurationError."""
    if settings.index == "milvus":
        return settings.milvus_file is not None
    from workers.index.opening import adapter

    return adapter(settings).in_process


def environment(settings: Settings) -> dict[str, str]:
    """The environment that gives another process these settings: all that are not left at their defaults."""
    found = {"RECALL_DATA_DIR": str(settings.data_dir)}
    for name in settings.model_fields_set:
        found[f"RECALL_{name.upper()}"] = settings.text(name)
    return found


def asked_at(web_bind: str) -> str:
    """Where this machine finds in a URL what listens there."""
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(web_bind, web_bind)  # noqa: S104  # all of them
    return f"[{host}]" if ":" in host else host


def _how(code: int) -> str:
    return f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"


def _last_error(output: Path) -> str:
    """The one line that a command ends with when it fails."""
    lines = [line.strip() for line in tail(output, 200).splitlines()]
    errors = [line.removeprefix("recall: ") for line in lines if line.startswith("recall: ")]
    return errors[-1] if errors else f"its configuration cannot work; see {output}"
