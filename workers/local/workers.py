"""Worker processes as children: started with the stack's endpoints, told apart by kind."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from workers.local.process import end, free_ports, spawn
from workers.local.state import WorkerState
from workers.settings import AGENT_KINDS, AgentKind, Settings

DRAIN_S = 12.0  # a worker drains within 10 s


class WorkerProcesses:
    """One process per kind, each with a log and a port for its health pages."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._children: dict[AgentKind, subprocess.Popen[bytes]] = {}
        self.states: list[WorkerState] = []

    def start(self, kinds: Sequence[AgentKind] = AGENT_KINDS) -> None:
        """Start them; returns at once."""
        for kind, port in zip(kinds, free_ports(len(kinds)), strict=True):
            env = os.environ | environment(self._settings) | {"RECALL_WEB_PORT": str(port)}
            argv = [sys.executable, "-m", "workers.cli.main", "worker", kind]
            self._children[kind] = spawn(argv, self.log(kind), Path.cwd(), env)
            self.states.append(WorkerState(kind=kind, pid=self._children[kind].pid, web_port=port))

    def log(self, kind: str) -> Path:
        """Where a worker's output goes."""
        prefix = f"{self._settings.namespace}-" if self._settings.namespace else ""
        return self._settings.data_dir / "logs" / f"{prefix}worker-{kind}.log"

    def dead(self) -> AgentKind | None:
        """A kind whose process has ended by itself, or None."""
        return next((kind for kind, child in self._children.items() if child.poll() is not None), None)

    def exit_code(self, kind: AgentKind) -> int | None:
        """How a worker ended; None while it runs."""
        return self._children[kind].poll()

    def stop(self) -> None:
        """SIGTERM to all, then wait for each. May be called twice."""
        for child in self._children.values():
            if child.poll() is None:
                child.terminate()
        for child in self._children.values():
            end(child, DRAIN_S)


def environment(settings: Settings) -> dict[str, str]:
    """The environment that gives another process these settings."""
    return {
        "RECALL_NAMESPACE": settings.namespace,
        "RECALL_DATA_DIR": str(settings.data_dir),
        "RECALL_KAFKA_BOOTSTRAP": settings.kafka_bootstrap,
        "RECALL_REDIS_URL": settings.redis_url.get_secret_value(),
        "RECALL_MILVUS_URI": settings.milvus_uri,
        "RECALL_PARTITIONS": str(settings.partitions),
    }
