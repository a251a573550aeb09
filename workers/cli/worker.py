"""`recall worker KIND`: one worker process; `all` runs one process of each kind."""

import signal
import threading
from enum import StrEnum
from typing import Annotated

import typer

from workers.errors import RecallError
from workers.local.discover import with_local_stack
from workers.local.process import tail
from workers.local.workers import WorkerProcesses
from workers.settings import AGENT_KINDS, AgentKind, Settings, load_settings


class Kind(StrEnum):
    """What to run."""

    ACTIVITY = "activity"
    ITEMS = "items"
    RECALL = "recall"
    ALL = "all"


def worker(kind: Annotated[Kind, typer.Argument(help="What this worker does.")]) -> None:
    """Run a worker until SIGTERM or Ctrl-C; it drains and commits within 10 s."""
    settings = with_local_stack(load_settings())
    if kind is Kind.ALL:
        _run_all(settings)
        return
    import uvloop

    from workers import app, logs

    logs.configure(settings.secrets())
    name: AgentKind = next(known for known in AGENT_KINDS if known == kind.value)
    uvloop.run(app.run(settings, [name]))


def _run_all(settings: Settings) -> None:
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    workers = WorkerProcesses(settings)
    workers.start()
    try:
        for state in workers.states:
            print(f"worker {state.kind}: pid {state.pid}, log {workers.log(state.kind)}", flush=True)
        while not stopping.wait(0.2):
            dead = workers.dead()
            if dead is not None:
                code = workers.exit_code(dead)
                raise RecallError(
                    f"worker {dead} ended with code {code}; the end of its log:\n{tail(workers.log(dead))}"
                )
    finally:
        workers.stop()
