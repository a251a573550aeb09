"""The stack as a whole: start in parallel, find again, notice a death, stop."""

import fcntl
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Final, Literal

from workers.errors import ConfigurationError, RecallError
from workers.local.kafka import Kafka
from workers.local.milvus import Milvus, server_runs_here
from workers.local.milvus_lite import MilvusLite
from workers.local.process import free_ports, is_free, start_time
from workers.local.redis import Redis
from workers.local.service import Say, Service
from workers.local.state import ServiceState, StackState, read_state, running, state_file, write_state
from workers.settings import LocalMilvus

CACHE_VARIABLE = "RECALL_CACHE_DIR"
MILVUS_DATA: Final[dict[Literal["server", "lite"], str]] = {"server": "milvus", "lite": "milvus-lite"}  # folders


def cache_dir() -> Path:
    """Where downloads and unpacked servers are kept, shared by all stacks of a user."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "recall-worker"
    return Path(os.environ.get(CACHE_VARIABLE, default)).absolute()


class LocalStack:
    """Kafka, Redis and Milvus under one data folder, owned by this process. `services` is complete once it starts."""

    def __init__(
        self,
        data_dir: Path,
        say: Say,
        interrupted: Callable[[], bool] = lambda: False,
        milvus: LocalMilvus | None = "auto",
        session_s: int = Service.session_s,
    ) -> None:
        """`interrupted` is asked while servers start: a signal's exception can be lost in a library's callback.

        `milvus` None starts none: the workers open a file. `session_s`: how long a server may stand still and go on.
        """
        logs = data_dir / "logs"
        self.data_dir = data_dir
        self.kafka = Kafka(data_dir / "kafka", logs / "kafka.log", cache_dir())
        self.redis = Redis(data_dir / "redis", logs / "redis.log", cache_dir())
        self.milvus: Service | None = None
        self.services: tuple[Service, ...] = (self.kafka, self.redis)
        self.state: StackState | None = None
        self._milvus = milvus
        self._session_s = session_s
        self._say = say
        self._interrupted = interrupted
        self._lock: IO[bytes] | None = None

    def start(self) -> None:
        """Start all three and wait until they answer. Raises RecallError; nothing is left running then."""
        self._lock_folder()
        try:
            self._add_milvus()
            self._prepare()
            self._assign_ports()
            for service in self.services:
                service.session_s = self._session_s
                service.start()
            for service in self.services:
                started = time.monotonic()
                service.wait_ready(self._interrupted)
                waited_s = time.monotonic() - started
                self._say(f"{service.name} {service.version} at {service.address} ({waited_s:.1f} s)")
            self.write()
        except BaseException:
            self.stop()
            raise

    def write(self) -> None:
        """Write the state file, workers included."""
        workers, alone = (self.state.workers, self.state.alone) if self.state is not None else ([], False)
        services = {
            service.name: ServiceState(
                pid=service.process.pid, address=service.address, ports=service.ports, version=service.version
            )
            for service in self.services
            if service.process is not None
        }
        pid = os.getpid()
        self.state = StackState(
            supervisor_pid=pid, supervisor_started=start_time(pid), services=services, workers=workers, alone=alone
        )
        write_state(self.data_dir, self.state)

    def fail(self, reason: str) -> None:
        """Note why the stack is about to end by itself, for who asks later."""
        if self.state is not None:
            self.state.failure = reason
            write_state(self.data_dir, self.state)

    def dead(self) -> Service | None:
        """A service that has ended by itself, or None."""
        return next((s for s in self.services if s.process is not None and s.process.poll() is not None), None)

    def restart(self, name: str) -> None:
        """Start one service again on its ports, for fault tests."""
        service = next(service for service in self.services if service.name == name)
        service.start()
        service.wait_ready()
        self.write()

    def stop(self) -> None:
        """End all services, Kafka last. May be called twice."""
        for service in reversed(self.services):
            service.stop()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _lock_folder(self) -> None:
        self._lock = _locked(self.data_dir)
        if self._lock is None:
            raise RecallError(f"another process is starting or running the stack in {self.data_dir}")

    def _add_milvus(self) -> None:
        if self._milvus is not None and self.milvus is None:
            kind = choose_milvus(self._milvus, self.data_dir, server_runs_here())
            service = Milvus if kind == "server" else MilvusLite
            self.milvus = service(self.data_dir / MILVUS_DATA[kind], self.data_dir / "logs" / "milvus.log", cache_dir())
            self.services = (*self.services, self.milvus)

    def _prepare(self) -> None:
        """Fill the cache. It is shared by all stacks of a user, so one process at a time does that."""
        lock = _locked(cache_dir())
        if lock is None:
            self._say(f"waiting for another process that fills {cache_dir()}")
            while (lock := _locked(cache_dir())) is None:
                time.sleep(0.2)
        with lock:
            for service in self.services:
                service.prepare(self._say)

    def _assign_ports(self) -> None:
        """The ports of the last run where all of a service's are still free, else new ones."""
        before = read_state(self.data_dir)
        without = []
        for service in self.services:
            known = before.services.get(service.name) if before is not None else None
            service.ports = known.ports if known is not None else []
            if len(service.ports) != service.port_count or not all(is_free(port) for port in service.ports):
                without.append(service)
        kept = {port for service in self.services if service not in without for port in service.ports}
        # Found all at once: ports that are found, given back and not yet used might be found again.
        found = free_ports(sum(service.port_count for service in without) + len(kept))
        new = [port for port in found if port not in kept]
        for service in without:
            service.ports, new = new[: service.port_count], new[service.port_count :]


def choose_milvus(wanted: LocalMilvus, data_dir: Path, server_runs: bool) -> Literal["server", "lite"]:
    """Which Milvus a stack starts. What holds the data goes on: the workers would not fill another one again.

    Raises ConfigurationError when it is the other one that is wanted.
    """
    holds = [
        kind for kind, name in MILVUS_DATA.items() if (data_dir / name).exists() and any((data_dir / name).iterdir())
    ]
    if wanted == "auto":
        fallback: Literal["server", "lite"] = "server" if server_runs else "lite"
        return holds[0] if len(holds) == 1 else fallback
    if holds and wanted not in holds:
        line = f"local_milvus: {wanted}, but the items of {data_dir} are in {MILVUS_DATA[holds[0]]} ({holds[0]})"
        raise ConfigurationError(f"{line}; start with nothing: recall down --wipe")
    return wanted


def _locked(folder: Path) -> IO[bytes] | None:
    """The open lock file of a folder, locked until it is closed; None when another process holds it."""
    lock = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("ab")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if lock is not None:
            lock.close()
        return None
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be written: {error.strerror}") from error
    return lock


def starting(data_dir: Path) -> bool:
    """Whether a process holds the folder, of a stack that does not run yet. Makes and changes nothing."""
    try:
        with (data_dir / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def stop_running(data_dir: Path, say: Say, patience_s: float = 60.0) -> bool:
    """Ask the supervisor of a running stack to end, and wait for it. False when none runs.

    Raises RecallError while one is being started.
    """
    state = running(data_dir)
    if state is None:
        if starting(data_dir):
            raise RecallError(f"another process is starting the stack in {data_dir}: nothing was stopped, try again")
        return False
    _signal_and_wait(state, patience_s)
    *names, last = [*(["workers"] if state.workers else []), *reversed(state.services)]
    say(f"stopped {', '.join(names)} and {last}")
    return True


def _signal_and_wait(state: StackState, patience_s: float) -> None:
    import signal

    with suppress(ProcessLookupError):
        os.kill(state.supervisor_pid, signal.SIGTERM)
    if not wait_until(lambda: not state.runs(), patience_s):
        with suppress(ProcessLookupError):
            os.kill(state.supervisor_pid, signal.SIGKILL)  # its children die with it
        wait_until(lambda: not state.runs(), 10.0)


def wipe(data_dir: Path) -> list[str]:
    """Delete the data of a stopped stack, not the bundles and not the cache; names what it deleted.

    Raises RecallError when a stack runs there or is being started.
    """
    if not data_dir.exists():
        return []
    lock = _locked(data_dir)
    if lock is None:
        raise RecallError(f"another process is starting or running the stack in {data_dir}: nothing was deleted")
    deleted = []
    with lock:
        for name in ("kafka", "redis", *MILVUS_DATA.values(), "index", "logs"):
            if (data_dir / name).exists():
                shutil.rmtree(data_dir / name)
                deleted.append(name)
        for remembered in (state_file(data_dir), *data_dir.glob("last-active*.json")):
            remembered.unlink(missing_ok=True)
    return deleted


def wait_until(condition: Callable[[], bool], within_s: float) -> bool:
    """Ask every 50 ms until it holds; False when it does not within `within_s`."""
    end = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
