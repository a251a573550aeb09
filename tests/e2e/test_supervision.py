"""`recall worker all`: a child that dies is started again and nothing is lost; what cannot work is named."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.bundle import Bundle
from models.datasets.generated import generate
from tests.conftest import PATIENT, Stack
from tests.e2e.conftest import fit_small, prepare
from tests.e2e.traffic import Traffic, ask
from workers.errors import RecallError
from workers.local.process import end
from workers.local.workers import MAX_SOON_DEATHS, WorkerProcesses, environment
from workers.settings import AGENT_KINDS, Settings

ENDS_WITHIN_S = 60.0  # on a machine that does much else; whether it ends well is told by its exit code


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return fit_small(generate(items=100, users=60, events=2500), tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def settings(stack: Stack, namespace: str, tmp_path: Path, packed: Bundle) -> Settings:
    settings = stack.settings(**PATIENT, namespace=namespace, data_dir=tmp_path)
    asyncio.run(prepare(settings, packed))
    return settings


def start(settings: Settings, *options: str) -> "subprocess.Popen[str]":
    argv = [sys.executable, "-m", "workers.cli.main", "worker", "all", *options]
    env = os.environ | environment(settings)
    return subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def supervised(settings: Settings) -> Iterator["subprocess.Popen[str]"]:
    child = start(settings)
    yield child
    end(child, ENDS_WITHIN_S)  # type: ignore[arg-type]


def children(supervisor: int) -> dict[str, int]:
    """Kind -> pid of the supervisor's workers."""
    found = {}
    for pid in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        except OSError:  # it has ended since
            continue
        # before it has become a worker, a child is still a copy of `worker all`
        if "worker" in words and (kind := words[words.index("worker") + 1]) in AGENT_KINDS:
            found[kind] = int(pid)
    return found


def until_started(supervisor: int, but_not: dict[str, int] | None = None) -> dict[str, int]:
    stop = time.monotonic() + 120
    while len(found := children(supervisor)) < 3 or (but_not and found.items() & but_not.items()):
        assert time.monotonic() < stop, found
        time.sleep(0.05)
    return found


@pytest.mark.timeout(200)
def test_every_child_may_be_killed(supervised: "subprocess.Popen[str]", settings: Settings) -> None:
    first = until_started(supervised.pid)

    async def kill_each() -> None:
        async with Traffic(settings) as traffic:
            await traffic.send(5)
            for kind in AGENT_KINDS:
                before = children(supervised.pid)
                os.kill(before[kind], signal.SIGKILL)
                await traffic.send(4)
                after = until_started(supervised.pid, {kind: before[kind]})
                assert {k: v for k, v in after.items() if k != kind} == {k: v for k, v in before.items() if k != kind}
            await traffic.all_arrived()

    asyncio.run(kill_each())
    assert not first.items() & children(supervised.pid).items()
    assert asyncio.run(ask(settings)).status == "ok"
    supervised.send_signal(signal.SIGTERM)
    _, said = supervised.communicate(timeout=ENDS_WITHIN_S)
    assert supervised.returncode == 0
    lines = [json.loads(line) for line in said.splitlines()]
    assert [line["how"] for line in lines if line["event"] == "worker ended, starting it again"] == ["by SIGKILL"] * 3
    assert [line["kind"] for line in lines if line["event"] == "worker started again"] == list(AGENT_KINDS)
    assert not any(Path(f"/proc/{pid}").exists() for pid in first.values())


def test_a_bundle_that_was_changed_ends_all_at_once(settings: Settings, packed: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(packed.path, copy)
    (copy / "user_tower.onnx").write_bytes(b"other")
    from workers import views

    asyncio.run(views.activate(settings, copy, packed.version))
    child = start(settings)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 2
    error = said.splitlines()[-1]
    assert error.startswith("recall: worker ")
    assert "checksum differs" in error


def test_a_crash_loop_is_named_and_given_up(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.local.workers.FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr("workers.local.workers.LONGEST_PAUSE_S", 0.01)
    workers = WorkerProcesses(settings)
    workers.start()
    deaths = 0

    def kill_until_it_is_given_up() -> None:
        nonlocal deaths
        while deaths <= MAX_SOON_DEATHS:
            recall = next(state for state in workers.states if state.kind == "recall")
            if recall.pid:
                os.kill(recall.pid, signal.SIGKILL)
                os.waitid(os.P_PID, recall.pid, os.WEXITED | os.WNOWAIT)
                deaths += 1
            workers.supervise()
            time.sleep(0.02)

    try:
        with pytest.raises(RecallError, match=f"worker recall ended {MAX_SOON_DEATHS} times in a row"):
            kill_until_it_is_given_up()
    finally:
        workers.stop()
    assert deaths == MAX_SOON_DEATHS


def test_one_process_runs_every_kind(settings: Settings) -> None:
    child = start(settings, "--one-process")

    async def use() -> None:
        async with Traffic(settings) as traffic:
            await traffic.send(5)
            await traffic.all_arrived()

    asyncio.run(use())
    assert asyncio.run(ask(settings)).status == "ok"
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=ENDS_WITHIN_S)
    assert child.returncode == 0, said
    ended = [line for line in map(json.loads, said.splitlines()) if line["event"] == "worker ends"]
    assert sorted(line["kind"] for line in ended) == sorted(AGENT_KINDS)
