"""Where a benchmark lives: a local stack of its own, child processes that end with it, topics by name."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from workers.bench.system import Scrape, peak_rss_mb, scrape
from workers.errors import RecallError
from workers.local.discover import of_own_stack
from workers.local.process import end, spawn, tail
from workers.local.ready import wait_ready
from workers.local.stack import LocalStack, wipe
from workers.local.workers import WorkerProcesses, environment
from workers.settings import Settings

Say = Callable[[str], None]


class Home:
    """A stack under `<data_dir>/bench`, wiped before and after. `with Home(settings, say) as home`."""

    def __init__(self, settings: Settings, say: Say) -> None:
        own = {
            "data_dir": settings.data_dir / "bench",
            "namespace": "",
            "reuse_ms": 0,
        }  # every request is to be worked for
        self.settings = settings.model_copy(update=own)
        self.say = say
        self._stack = LocalStack(self.settings.data_dir, say, milvus=settings.local_milvus)
        self._opened = ExitStack()

    def __enter__(self) -> "Home":
        """Start the servers."""
        wipe(self.settings.data_dir)
        self._stack.start()
        self._opened.callback(self._end)
        self.settings = of_own_stack(self.settings)
        return self

    def __exit__(self, *_: object) -> None:
        """End everything and delete its data."""
        self._opened.close()

    def _end(self) -> None:
        self._stack.stop()
        wipe(self.settings.data_dir)

    @property
    def servers(self) -> dict[str, str]:
        """Versions."""
        return {service.name: service.version for service in self._stack.services}

    def workers(self, settings: Settings) -> "Workers":
        """One worker of each kind, ready; they end with the home, or before with `stop`."""
        processes = WorkerProcesses(settings)
        self._opened.callback(processes.stop)
        processes.start()
        wait_ready(processes)
        return Workers(processes)

    def start(self, module: str, *arguments: str, settings: Settings | None = None) -> "Child":
        """A process of the benchmark's own; it ends with the home."""
        child = Child(module, arguments, settings or self.settings)
        self._opened.callback(child.stop)
        return child

    def job(self, module: str, job: Any, settings: Settings) -> "Child":
        """A process of a module of this package, with its `Job`: too long for a command line, so in a file."""
        file = settings.data_dir / f"{module}.{os.urandom(4).hex()}.json"
        file.write_bytes(orjson.dumps(asdict(job)))
        return self.start(f"workers.bench.{module}", str(file), settings=settings)


class Workers:
    """Running workers as a benchmark sees them."""

    def __init__(self, processes: WorkerProcesses) -> None:
        self._processes = processes
        self._states = {state.kind: state for state in processes.states}

    def scrape(self, kind: str) -> Scrape:
        """A worker's metrics and CPU time now."""
        state = self._states[kind]
        return scrape(state.pid, state.web_port)

    def peak_mb(self) -> dict[str, float]:
        """The most memory that each has held, MiB."""
        return {kind: peak_rss_mb(state.pid) for kind, state in self._states.items()}

    def stop(self) -> None:
        """End them. Raises RecallError when one has died meanwhile: its figures would be another process's."""
        if (dead := self._processes.dead()) is not None:
            raise RecallError(f"worker {dead} died; the end of its log:\n{tail(self._processes.log(dead))}")
        self._processes.stop()


class Child:
    """`python -m MODULE ARGUMENTS` that prints one JSON object at its end."""

    def __init__(self, module: str, arguments: tuple[str, ...], settings: Settings) -> None:
        self._log = settings.data_dir / "logs" / f"{module.rpartition('.')[2]}.{os.urandom(3).hex()}.log"
        argv = [sys.executable, "-m", module, *arguments]
        self.process: subprocess.Popen[bytes] = spawn(
            argv, self._log, Path.cwd(), os.environ | environment(settings) | {"OMP_NUM_THREADS": "1"}
        )

    def report(self, within_s: float) -> dict[str, Any]:
        """Wait for its end. Raises RecallError when it failed or takes too long."""
        try:
            code = self.process.wait(within_s)
        except subprocess.TimeoutExpired as error:
            raise RecallError(
                f"a part of the benchmark takes longer than {within_s:.0f} s\n{tail(self._log)}"
            ) from error
        if code != 0:
            raise RecallError(f"a part of the benchmark ended with code {code}\n{tail(self._log)}")
        found: dict[str, Any] = orjson.loads(self._log.read_bytes().splitlines()[-1])
        return found

    def stop(self) -> None:
        """End it. May be called twice."""
        end(self.process, 10.0)


async def make_topics(settings: Settings, *names: str) -> None:
    """Topics with four partitions that take the broker's time."""
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap)
    await admin.start()
    try:
        config = {"message.timestamp.type": "LogAppendTime"}
        await admin.create_topics([NewTopic(name, 4, 1, topic_configs=config) for name in names])
    finally:
        await admin.close()
