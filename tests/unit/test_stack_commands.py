"""Commands on a local stack that is not there yet, has no workers, or has no folder."""

import os
import sys
from pathlib import Path

import orjson
import pytest

from workers.cli import up
from workers.cli.down import down
from workers.cli.status import status
from workers.cli.worker import _supervise
from workers.errors import ConfigurationError, RecallError
from workers.local.process import spawn, start_time
from workers.local.stack import LocalStack
from workers.local.state import StackState, WorkerState, read_state, write_state
from workers.local.workers import WorkerProcesses
from workers.settings import load_settings


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder, as commands find it."""
    folder = tmp_path / "data"
    monkeypatch.setenv("RECALL_DATA_DIR", str(folder))
    return folder


def this_process() -> StackState:
    return StackState(supervisor_pid=os.getpid(), supervisor_started=start_time(os.getpid()))


@pytest.mark.parametrize("before", [None, StackState(supervisor_pid=1, supervisor_started=1.0, failure="a death")])
def test_a_stack_that_is_starting(before: StackState | None, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    starting = LocalStack(folder, print)
    starting._lock_folder()
    if before is not None:
        write_state(folder, before)
    for wipe in (False, True):
        with pytest.raises(RecallError, match=r"another process is starting the stack in .*: nothing was stopped"):
            down(wipe_data=wipe)
    status()
    assert capsys.readouterr().out == "the stack is being started here\n"
    status(as_json=True)
    assert orjson.loads(capsys.readouterr().out)["starting"]
    starting.stop()
    down()
    assert capsys.readouterr().out == "nothing runs here\n"
    status(as_json=True)
    assert not orjson.loads(capsys.readouterr().out)["starting"]


def test_a_folder_that_is_not_there_is_not_made(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    down()
    status()
    assert capsys.readouterr().out.startswith("nothing runs here\n")
    assert not folder.exists()


def test_servers_without_workers_are_not_up(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder.mkdir()
    stack = LocalStack(folder, print)
    stack.state = this_process()
    stack.write()
    up.up()
    assert capsys.readouterr().out.startswith("already up"), "its workers may be about to start"
    workers = WorkerProcesses(load_settings())
    up._note(stack, workers)
    stack.write()
    for detach in (False, True):
        with pytest.raises(RecallError, match="the servers are up without workers: recall down, then recall up"):
            up.up(detach=detach)
    up.up(no_workers=True)
    assert capsys.readouterr().out.startswith("already up")


def test_servers_with_workers_are_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    stack = LocalStack(folder, print)
    stack.state = this_process()
    monkeypatch.setattr(WorkerProcesses, "states", [WorkerState(kind="items", pid=1, web_port=1)])
    up._note(stack, WorkerProcesses(load_settings()))
    state = read_state(folder)
    assert state is not None
    assert not state.alone
    up.up()


def test_workers_that_have_no_folder(folder: Path) -> None:
    folder.write_text("a file")
    with pytest.raises(ConfigurationError, match=f"{folder} cannot be written: Not a directory"):
        _supervise(load_settings())


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.mkdir()
    with pytest.raises(RecallError, match=f"^{log} cannot be written: Is a directory$"):
        spawn([sys.executable, "-c", ""], log, tmp_path)
    with pytest.raises(RecallError, match=r"^/nowhere/server cannot be started: No such file or directory: "):
        spawn(["/nowhere/server"], tmp_path / "other", tmp_path)
