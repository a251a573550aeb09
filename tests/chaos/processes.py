"""Worker processes, several of each kind, each `recall worker KIND` as an operator starts it."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.mutants import VARIABLE, site_folder
from workers.local.process import end, free_ports, spawn, tail
from workers.local.workers import DRAIN_S, environment
from workers.settings import AGENT_KINDS, AgentKind, Settings

ROOT = Path(__file__).parents[2]
PATCHES = ("tests.chaos.patches.towers", "tests.chaos.patches.index")
STORE_LOST = (
    "ending without a commit, to read again what kafka retains",
    "redis is another one and may have lost writes; ending without a commit",
)
MADE_ANEW = "offsets have gone back: the topic was made anew, or has lost records"
STUCK = "worker is stuck, ending it without a commit"
STARTED = "worker starts"
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
    hangs: bool = False  # it is made to, and is to end by itself
    topic_anew: bool = False  # its topic is deleted and created again, and it ends if it looks in between

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


@dataclass(frozen=True)
class Death:
    """A process that ended by itself, or not well when it was told to."""

    worker: Worker
    code: int

    def explained(self) -> bool:
        """Whether it says that it ends for what is done to it. Before its first line a signal just ends it."""
        worker, text = self.worker, self.worker.log.read_text(errors="replace")
        ends = [*STORE_LOST, *([STUCK] if worker.hangs else []), *([MADE_ANEW] if worker.topic_anew else [])]
        return any(line in text for line in ends) or (self.code == -signal.SIGTERM and STARTED not in text)

    def __str__(self) -> str:
        return (
            f"{self.worker.kind} worker {self.worker.process.pid} ended with {self.code}:\n{tail(self.worker.log, 5)}"
        )


@dataclass
class Workers:
    """Started, ended and counted. To be used from the main thread: children die with the thread that started them."""

    settings: Settings
    mutant: str | None = None
    running: list[Worker] = field(default_factory=list)
    started: int = 0
    deaths: list[Death] = field(default_factory=list)
    leaving: list[Worker] = field(default_factory=list)
    undrained: list[Death] = field(default_factory=list)
    killed: dict[AgentKind, list[tuple[int, float]]] = field(default_factory=lambda: {kind: [] for kind in AGENT_KINDS})
    """when in epoch milliseconds, and about which part of all partitions each had"""

    def start(self, kind: AgentKind, patches: Sequence[str] = (), **settings: object) -> Worker:
        """One more process; `patches` are modules that it imports before its first line, `settings` its own."""
        self.started += 1
        (port,) = free_ports(1)
        log = self.settings.data_dir / "logs" / f"{self.settings.namespace}-{kind}-{self.started}.log"
        env = os.environ | environment(self.settings) | {"RECALL_WEB_PORT": str(port)}
        env |= {f"RECALL_{name.upper()}": str(value) for name, value in settings.items()}
        env["RECALL_CHAOS_TOWERS"] = str(self.towers)
        mutant = [] if self.mutant is None else [f"tests.chaos.mutants.{self.mutant}"]
        env[VARIABLE] = ",".join([*PATCHES, *patches, *mutant])
        env["PYTHONPATH"] = os.pathsep.join([str(site_folder()), str(ROOT)])
        argv = [sys.executable, "-m", "workers.cli.main", "worker", kind]
        worker = Worker(kind, spawn(argv, log, ROOT, env), port, log)
        self.running.append(worker)
        return worker

    @property
    def towers(self) -> Path:
        """The file that orders their towers to misbehave: see tests/chaos/patches/towers.py."""
        return self.settings.data_dir / f"{self.settings.namespace}-towers"

    def of(self, kind: AgentKind) -> list[Worker]:
        """Those of one kind."""
        return [worker for worker in self.running if worker.kind == kind]

    def kill(self, worker: Worker) -> None:
        """kill -9, and forget it."""
        self.killed[worker.kind].append((time.time_ns() // 1_000_000, 1 / len(self.of(worker.kind))))
        self.running.remove(worker)
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
                self.deaths.append(Death(worker, code))
                self.running.remove(worker)
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
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(DRAIN_S)
            if code := end(worker.process, 0):
                self.undrained.append(Death(worker, code))
        self.running.clear()
        self.leaving.clear()

    def bad_ends(self, *, any_death: bool) -> list[str]:
        """Ends that no fault explains, a line each; with `any_death`, all but those that were told to end."""
        bad = [death for death in self.deaths if any_death or not death.explained()]
        return [str(death) for death in (*bad, *(death for death in self.undrained if not death.explained()))]


def all_ended(workers: Sequence[Worker]) -> bool:
    """Whether none of these processes runs any more."""
    return all(worker.process.poll() is not None for worker in workers)
