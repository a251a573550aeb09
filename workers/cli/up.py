"""`recall up`: the local stack and the workers, in the foreground or detached."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from typing import Annotated

import typer

from workers.errors import RecallError
from workers.local.discover import with_local_stack
from workers.local.process import tail
from workers.local.ready import wait_ready
from workers.local.stack import LocalStack, wait_until
from workers.local.state import running
from workers.local.workers import WorkerProcesses
from workers.settings import Settings, load_settings

FIT_FIRST = "no bundle is active, so no worker was started; make one: recall model fit --data movielens-1m"


def up(
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when everything is ready.")] = False,
    no_workers: Annotated[bool, typer.Option("--no-workers", help="Start Kafka, Redis and Milvus alone.")] = False,
) -> None:
    """Start the local stack, then one worker of each kind."""
    settings = load_settings()
    state = running(settings.data_dir)
    if state is not None:
        addresses = ", ".join(f"{name} {service.address}" for name, service in state.services.items())
        print(f"already up: {addresses} (supervisor {state.supervisor_pid})")
    elif detach:
        _detached(settings, no_workers)
    else:
        _foreground(settings, no_workers)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _foreground(settings: Settings, no_workers: bool) -> None:
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    stack = LocalStack(settings.data_dir, _say)
    workers = WorkerProcesses(settings)
    try:
        stack.start()
        settings = with_local_stack(settings)
        workers = WorkerProcesses(settings)
        if not no_workers:
            _start_workers(settings, workers)
        if stack.state is not None:
            stack.state.workers = workers.states
            stack.write()
        _say("up; Ctrl-C or `recall down` ends it")
        while not stopping.wait(0.2):
            _check(stack, workers)
    finally:
        workers.stop()
        stack.stop()
    _say("down")


def _start_workers(settings: Settings, workers: WorkerProcesses) -> None:
    from workers import topics, views

    async def prepare() -> bool:
        await topics.apply(settings)
        return await views.carry_over(settings) is not None

    if not asyncio.run(prepare()):
        _say(FIT_FIRST)
        return
    workers.start()
    wait_ready(workers, workers.states)
    _say("workers ready: " + ", ".join(f"{worker.kind} (pid {worker.pid})" for worker in workers.states))


def _check(stack: LocalStack, workers: WorkerProcesses) -> None:
    dead = stack.dead()
    if dead is not None:
        raise RecallError(dead.death())
    kind = workers.dead()
    if kind is not None:
        code = workers.exit_code(kind)
        raise RecallError(f"worker {kind} ended with code {code}; the end of its log:\n{tail(workers.log(kind))}")


def _detached(settings: Settings, no_workers: bool) -> None:
    """Run the same command as a process of its own and wait until it is up."""
    log = settings.data_dir / "logs" / "up.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        output = log.open("wb")
    except OSError as error:
        raise RecallError(f"{settings.data_dir} cannot be written: {error.strerror}") from error
    argv = [sys.executable, "-m", "workers.cli.main", "up", *(["--no-workers"] if no_workers else [])]
    with output:
        child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, env=dict(os.environ)
        )
    done = lambda: child.poll() is not None or b"\nup; " in b"\n" + log.read_bytes()  # noqa: E731
    wait_until(done, 240.0)
    text = log.read_text(errors="replace").strip()
    if child.poll() is not None or "up; " not in text:
        raise RecallError(text.removeprefix("recall: ") or "the stack did not start")
    print(text.replace("up; Ctrl-C or `recall down` ends it", "up; `recall down` ends it"))
