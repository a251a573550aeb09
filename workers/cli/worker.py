"""`recall worker KIND`: one worker process; `all` supervises one process of each kind, or runs all kinds in one."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from workers.errors import ConfigurationError
from workers.local.discover import with_local_stack
from workers.local.milvus_lite import file_opened
from workers.local.workers import WorkerProcesses
from workers.settings import AGENT_KINDS, AgentKind, Settings, load_settings
from workers.signals import Stopping


class Kind(StrEnum):
    """What to run."""

    ACTIVITY = "activity"
    ITEMS = "items"
    RECALL = "recall"
    ALL = "all"


def worker(
    kind: Annotated[Kind, typer.Argument(help="What this worker does.")],
    one_process: Annotated[bool, typer.Option("--one-process", help="With `all`: every kind in one process.")] = False,
    allow_unsafe: Annotated[
        bool, typer.Option("--allow-unsafe", help="Start although `recall doctor` says that data may be lost.")
    ] = False,
) -> None:
    """Run a worker until SIGTERM or Ctrl-C; it drains and commits within 10 s. `all` starts dead workers again."""
    settings = with_local_stack(load_settings())
    if allow_unsafe:
        settings = settings.model_copy(update={"allow_unsafe": True})
    if one_process and kind is not Kind.ALL:
        raise ConfigurationError("--one-process goes with `recall worker all`")
    if settings.milvus_file is not None and kind is Kind.ALL and not one_process:
        line = f"milvus_uri: {settings.milvus_uri} is a file, which only one process can open"
        raise ConfigurationError(f"{line}: recall worker all --one-process")
    with _index_held(settings, kind, one_process):
        _work(settings, kind, one_process)


def _index_held(settings: Settings, kind: Kind, one_process: bool) -> AbstractContextManager[None]:
    if settings.index == "milvus" or kind is Kind.ACTIVITY:
        return nullcontext()
    from workers.index.opening import of_one_process  # numpy takes a moment to load

    return of_one_process(settings, together=one_process)


def _work(settings: Settings, kind: Kind, one_process: bool) -> None:
    from workers import logs

    logs.configure(settings.secrets())
    if kind is not Kind.ALL:
        _run(settings, [known for known in AGENT_KINDS if known == kind.value])
    elif one_process:
        _run(settings, AGENT_KINDS)
    else:
        _supervise(settings)


def _run(settings: Settings, kinds: Sequence[AgentKind]) -> None:
    import uvloop

    from workers import app

    _make(settings.data_dir, settings)  # the engine keeps a folder of its own in it
    with file_opened(settings) as opened:
        uvloop.run(app.run(opened, kinds))


def _make(folder: Path, settings: Settings) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{settings.data_dir} cannot be written: {error.strerror}") from error


def _supervise(settings: Settings) -> None:
    _make(settings.data_dir / "logs", settings)
    stopping = Stopping()
    stopping.note()
    workers = WorkerProcesses(settings)
    try:
        workers.start()
        for state in workers.states:
            print(f"worker {state.kind}: pid {state.pid}, log {workers.log(state.kind)}", flush=True)
        while not stopping:
            time.sleep(0.2)
            workers.supervise()
    finally:
        workers.stop()
