"""The state file of a running stack: who supervises it, where its servers listen, which workers it runs."""

import os
from pathlib import Path

import msgspec

from workers.local.process import alive


class ServiceState(msgspec.Struct, kw_only=True):
    """One server."""

    pid: int
    address: str
    ports: list[int]
    version: str


class WorkerState(msgspec.Struct, kw_only=True):
    """One worker process; pid 0 while it is about to be started again."""

    kind: str
    pid: int
    web_port: int
    web_host: str = "127.0.0.1"
    restarts: int = 0


class StackState(msgspec.Struct, kw_only=True):
    """The whole stack. `ports` outlive a stop, so that a restart listens where its clients expect it.

    `failure` tells why the stack ended by itself; empty while it runs and after it was stopped. `alone`: it is up, and
    its supervisor will start no worker.
    """

    supervisor_pid: int
    supervisor_started: float
    services: dict[str, ServiceState] = {}
    workers: list[WorkerState] = []
    failure: str = ""
    alone: bool = False

    def runs(self) -> bool:
        """Whether its supervisor still lives (and is not another process with the same pid)."""
        return alive(self.supervisor_pid, self.supervisor_started)


def state_file(data_dir: Path) -> Path:
    """Where the state of this data folder's stack stands."""
    return data_dir / "stack.json"


def read_state(data_dir: Path) -> StackState | None:
    """The last written state, of a stack that may have ended; None when there is none or it cannot be read."""
    try:
        return msgspec.json.decode(state_file(data_dir).read_bytes(), type=StackState)
    except (OSError, msgspec.DecodeError):
        return None


def running(data_dir: Path) -> StackState | None:
    """The state of the stack that runs now, or None."""
    state = read_state(data_dir)
    return state if state is not None and state.runs() else None


def last_failure(data_dir: Path) -> str:
    """Why the last stack of this folder ended by itself; empty when it runs or was stopped."""
    state = read_state(data_dir)
    if state is None or state.runs():
        return ""
    return state.failure


def write_state(data_dir: Path, state: StackState) -> None:
    """Replace the state file atomically."""
    temporary = state_file(data_dir).with_suffix(f".{os.getpid()}")
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(state)))
    temporary.replace(state_file(data_dir))
