"""Worker processes, several of each kind, each `recall worker KIND` as an operator starts it."""

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.mutants import VARIABLE, site_folder
from workers.local.process import end, free_ports, spawn, tail
from workers.local.workers import DRAIN_S, environment
from workers.settings import AGENT_KINDS, AgentKind, Settings

ROOT = Path(__file__).parents[2]
GAUGES = (
    "recall_assigned_partitions",
    "recall_lag_records",
    "recall_lag_age_ms",
    "recall_in_flight_batches",
    "recall_ready",
)


@dataclass
class Worker:
    """One process."""

    kind: AgentKind
    process: "subprocess.Popen[bytes]"
    web_port: int
    log: Path

    def ready(self) -> bool:
        """Whether its /readyz says so."""
        return self._well("readyz")

    def live(self) -> bool:
        """Whether its /healthz says so."""
        return self._well("healthz")

    def _well(self, page: str) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.web_port}/{page}", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def waits_for(self) -> str:
        """What its /readyz says that it waits for; empty when it is ready, or does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.web_port}/readyz", timeout=2):
                return ""
        except urllib.error.HTTPError as answer:
            return answer.read().decode()
        except OSError:
            return ""

    def gauges(self) -> dict[str, float]:
        """What its /metrics says of itself: partitions, lag, what is in hand. Empty when it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.web_port}/metrics", timeout=2) as page:
                lines = page.read().decode().splitlines()
        except OSError:
            return {}
        found = (line.partition(f'{{kind="{self.kind}"}} ') for line in lines)
        return {name: float(value) for name, _, value in found if name in GAUGES}

    def send(self, number: signal.Signals) -> None:
        """A signal."""
        self.process.send_signal(number)  # nothing happens when it has ended

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()


@dataclass
class Workers:
    """Started, ended and counted. To be used from the main thread: children die with the thread that started them."""

    settings: Settings
    mutant: str | None = None
    running: list[Worker] = field(default_factory=list)
    started: int = 0
    deaths: list[str] = field(default_factory=list)
    leaving: list[Worker] = field(default_factory=list)
    ended: Counter[AgentKind] = field(default_factory=Counter)  # without a commit

    def start(self, kind: AgentKind, patches: Sequence[str] = (), **settings: object) -> Worker:
        """One more process; `patches` are modules that it imports before its first line, `settings` its own."""
        self.started += 1
        (port,) = free_ports(1)
        log = self.settings.data_dir / "logs" / f"{self.settings.namespace}-{kind}-{self.started}.log"
        env = os.environ | environment(self.settings) | {"RECALL_WEB_PORT": str(port)}
        env |= {f"RECALL_{name.upper()}": str(value) for name, value in settings.items()}
        path = [str(ROOT)]
        if modules := [*patches, *([] if self.mutant is None else [f"tests.chaos.mutants.{self.mutant}"])]:
            path.insert(0, str(site_folder()))
            env[VARIABLE] = ",".join(modules)
        env["PYTHONPATH"] = os.pathsep.join(path)
        argv = [sys.executable, "-m", "workers.cli.main", "worker", kind]
        worker = Worker(kind, spawn(argv, log, ROOT, env), port, log)
        self.running.append(worker)
        return worker

    def of(self, kind: AgentKind) -> list[Worker]:
        """Those of one kind."""
        return [worker for worker in self.running if worker.kind == kind]

    def kill(self, worker: Worker) -> None:
        """kill -9, and forget it."""
        self.running.remove(worker)
        self.ended[worker.kind] += 1
        worker.kill()

    def terminate(self, worker: Worker) -> None:
        """SIGTERM, and forget it once it has drained. Returns at once."""
        worker.send(signal.SIGTERM)
        self.running.remove(worker)
        self.leaving.append(worker)

    def supervise(self) -> None:
        """Start again what ended by itself, as a supervisor would."""
        for worker in list(self.running):
            code = worker.process.poll()
            if code is not None:
                self.deaths.append(f"{worker.kind} ended with code {code}:\n{tail(worker.log, 5)}")
                self.running.remove(worker)
                self.ended[worker.kind] += 1
                self.start(worker.kind)

    def ready(self) -> bool:
        """Whether all are."""
        return all(worker.ready() for worker in list(self.running))

    def counts(self) -> dict[AgentKind, int]:
        """How many of each kind."""
        return {kind: len(self.of(kind)) for kind in AGENT_KINDS}

    def stop(self) -> None:
        """SIGTERM to all, and wait until the last has drained."""
        for worker in self.running:
            worker.send(signal.SIGCONT)
            worker.send(signal.SIGTERM)
        for worker in [*self.running, *self.leaving]:
            end(worker.process, DRAIN_S)
        self.running.clear()
        self.leaving.clear()
