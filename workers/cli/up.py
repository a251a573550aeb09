"""`recall up`: the local stack and the workers, in the foreground or detached."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from workers.cli.running import run
from workers.ending import WRONG_CONFIGURATION
from workers.errors import ConfigurationError, RecallError
from workers.local.discover import with_local_stack
from workers.local.ready import wait_ready
from workers.local.stack import LocalStack
from workers.local.state import running
from workers.local.workers import WorkerProcesses, in_one_process
from workers.settings import Settings, load_settings
from workers.signals import Stopping

UP = "up"  # how the line begins that says so
FIT_FIRST = (
    "no bundle is active, so no worker was started; make one: recall model fit --data movielens-1m, then recall down "
    "and recall up"
)


def up(
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when everything is ready.")] = False,
    no_workers: Annotated[bool, typer.Option("--no-workers", help="Start Kafka, Redis and Milvus alone.")] = False,
) -> None:
    """Start the local stack, then one worker of each kind, and start a worker again when it dies."""
    settings = load_settings()
    state = running(settings.data_dir)
    if state is not None and state.alone and not no_workers:
        raise RecallError("the servers are up without workers: recall down, then recall up")
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
    stopping = Stopping()
    one_process = in_one_process(settings)
    stack = LocalStack(settings.data_dir, _say, lambda: bool(stopping), settings.stack_milvus)
    workers = WorkerProcesses(settings)
    stopping.interrupt()  # at once, as long as nobody was told that it is up
    try:
        stack.start()
        settings = with_local_stack(settings)
        workers = WorkerProcesses(settings, one_process=one_process)
        if not no_workers:
            _with_reason(stack, lambda: _start_workers(settings, workers))
        _note(stack, workers)
        stopping.note()
        if stopping:
            raise KeyboardInterrupt
        _say(f"{UP}; Ctrl-C or `recall down` ends it")
        while not stopping:
            time.sleep(0.2)
            _check(stack)
            if workers.supervise():
                _note(stack, workers)
    except RecallError as error:
        stack.fail(str(error).splitlines()[0])
        raise
    finally:
        stopping.note()
        workers.stop()
        stack.stop()
    _say("down")


def _start_workers(settings: Settings, workers: WorkerProcesses) -> None:
    from workers import topics, views

    async def prepare() -> bool:
        await topics.apply(settings)
        return await views.carry_over(settings) is not None

    if not run(prepare()):
        _say(FIT_FIRST)
        return
    _say("starting the workers")
    workers.start()
    wait_ready(workers)
    _say("workers ready: " + ", ".join(f"{worker.kind} (pid {worker.pid})" for worker in workers.states))


def _note(stack: LocalStack, workers: WorkerProcesses) -> None:
    """Let `recall status` know which workers run."""
    if stack.state is not None:
        stack.state.workers = workers.states
        stack.state.alone = not workers.states
        stack.write()


def _with_reason(stack: LocalStack, work: Callable[[], None]) -> None:
    """Do some work; when it fails because a server has died, say that instead."""
    try:
        work()
    except RecallError:
        _check(stack)
        raise


def _check(stack: LocalStack) -> None:
    dead = stack.dead()
    if dead is not None:
        raise RecallError(dead.death())


def _detached(settings: Settings, no_workers: bool) -> None:
    """Run the same command as a process of its own, and show what it says until it is up."""
    logs = settings.data_dir / "logs"
    log = logs / f"up.{os.getpid()}.log"  # of this try's own: another `up -d` may run at the same time
    stopping = Stopping()
    stopping.note()  # no exception: one that comes while the child is made would leave it alone
    argv = [sys.executable, "-m", "workers.cli.main", "up", *(["--no-workers"] if no_workers else [])]
    try:
        logs.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
    except OSError as error:
        raise ConfigurationError(f"{logs} cannot be written: {error.strerror}") from error
    try:
        said = _follow(log, child, stopping)
    except BaseException:
        child.terminate()
        child.wait()
        raise
    finally:
        if child.poll() is None:
            log.replace(logs / "up.log")
        else:
            log.unlink()
    if child.returncode is None:
        print(f"{UP}; `recall down` ends it")
        return
    failure = said.partition("recall: ")[2].strip() or "the stack did not start"
    raise ConfigurationError(failure) if child.returncode == WRONG_CONFIGURATION else RecallError(failure)


def _follow(log: Path, child: "subprocess.Popen[bytes]", stopping: Stopping) -> str:
    """Say the lines of a log as they come, until one says that the stack is up or its writer has ended.

    Returns what was not said: the error and what follows it. Raises KeyboardInterrupt once a signal has come.
    """
    text = ""
    with log.open(errors="replace") as stream:
        while True:
            ended = child.poll() is not None  # asked before the last read, so that no line is missed
            text += stream.read()
            while "\n" in text and not text.startswith("recall: "):
                line, _, text = text.partition("\n")
                if line.startswith(f"{UP};"):
                    return ""
                _say(line)
            if ended:
                return text
            if stopping:
                raise KeyboardInterrupt
            time.sleep(0.05)
