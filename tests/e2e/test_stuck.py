"""A worker that is stuck ends by itself, is started again and loses nothing; one that was stopped goes on where it was.

How it gets stuck is told by a module that Python imports before the worker's own start.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from models.bundle import Bundle
from models.datasets.generated import generate
from tests.conftest import PATIENT_MS, Stack
from tests.e2e.conftest import fit_small, prepare
from tests.e2e.test_supervision import ENDS_WITHIN_S, children, until_started
from tests.e2e.traffic import Traffic
from workers.local.process import end
from workers.local.workers import environment
from workers.settings import Settings

STUCK_AFTER_MS = 5000
STOPPED_S = 9.0
SABOTAGE = """
import asyncio, signal, sys, time

def block_the_loop(*_):
    time.sleep(100_000)

def stop_polling(*_):
    from workers.transport import Consumer
    async def hang(self):
        await asyncio.Event().wait()
    Consumer._deliver = hang

def hang_in_the_store(*_):
    from workers.stores.user_redis import RedisUserTable
    async def hang(self, *_):
        await asyncio.Event().wait()
    RedisUserTable.records = hang

def hang_in_the_tower(*_):
    from workers.towers.onnx import OnnxTower
    OnnxTower.run = lambda self, inputs: time.sleep(100_000)

if "worker" in sys.orig_argv:
    signal.signal(signal.SIGUSR1, block_the_loop)
    signal.signal(signal.SIGUSR2, stop_polling)
    signal.signal(signal.SIGHUP, hang_in_the_store)
    signal.signal(signal.SIGALRM, hang_in_the_tower)
"""
WAYS = {
    "loop": ("activity", signal.SIGUSR1, "the event loop has not turned for 5 s", "block_the_loop"),
    "polls": ("activity", signal.SIGUSR2, "activity: the poll loop has not turned for 5 s", "watchdog.py"),
    "batch": ("activity", signal.SIGHUP, "activity: the same batch has been in hand for 50 s", "watchdog.py"),
    "tower": ("items", signal.SIGALRM, "items: the tower has been in the same run for 5 s", "onnx.py"),
}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return fit_small(generate(items=100, users=60, events=2500), tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def settings(stack: Stack, namespace: str, tmp_path: Path, packed: Bundle) -> Settings:
    settings = stack.settings(
        namespace=namespace, data_dir=tmp_path, stuck_after_ms=STUCK_AFTER_MS, store_timeout_ms=PATIENT_MS
    )
    asyncio.run(prepare(settings, packed))
    return settings


@pytest.fixture
def supervised(settings: Settings, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    patches = tmp_path / "patches"
    patches.mkdir()
    (patches / "sitecustomize.py").write_text(SABOTAGE)
    path = os.pathsep.join([str(patches), *filter(None, [os.environ.get("PYTHONPATH")])])
    argv = [sys.executable, "-m", "workers.cli.main", "worker", "all"]
    env = os.environ | environment(settings) | {"PYTHONPATH": path}
    child = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    yield child
    end(child, ENDS_WITHIN_S)  # type: ignore[arg-type]


def log(settings: Settings, kind: str) -> str:
    return (settings.data_dir / "logs" / f"{settings.namespace}-worker-{kind}.log").read_text()


def events(text: str) -> list[dict[str, Any]]:
    """Its lines that are log lines."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


async def until(holds: Callable[[], bool], within_s: float) -> None:
    async with asyncio.timeout(within_s):
        while not holds():
            await asyncio.sleep(0.1)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("way", WAYS)
def test_a_stuck_worker_ends_and_is_started_again(
    supervised: "subprocess.Popen[str]", settings: Settings, way: str
) -> None:
    kind, number, why, where = WAYS[way]
    first = until_started(supervised.pid)

    async def get_it_stuck() -> None:
        async with Traffic(settings) as traffic:
            await traffic.send(1)
            await traffic.all_arrived()
            os.kill(first[kind], number)
            await traffic.send(3)
            await until(lambda: children(supervised.pid).get(kind, first[kind]) != first[kind], 120)
            await traffic.all_arrived()

    asyncio.run(get_it_stuck())
    said = log(settings, kind)
    assert [line["why"] for line in events(said) if line["event"].startswith("worker is stuck")] == [why]
    assert where in said.partition(why)[2], "the stacks of all threads"
    supervised.send_signal(signal.SIGTERM)
    _, lines = supervised.communicate(timeout=ENDS_WITHIN_S)
    assert supervised.returncode == 0
    ended = [line for line in events(lines) if line["event"] == "worker ended, starting it again"]
    assert [(line["kind"], line["how"]) for line in ended] == [(kind, "with code 1")]


@pytest.mark.timeout(240)
def test_one_that_was_stopped_for_longer_goes_on(supervised: "subprocess.Popen[str]", settings: Settings) -> None:
    workers = until_started(supervised.pid)

    async def stop_and_go_on() -> None:
        async with Traffic(settings) as traffic:
            await traffic.send(1)
            await traffic.all_arrived()
            for pid in workers.values():
                os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(STOPPED_S)  # longer than a loop may stand still
            for pid in workers.values():
                os.kill(pid, signal.SIGCONT)
            await traffic.send(STUCK_AFTER_MS / 1000 + 2)
            await traffic.all_arrived()

    asyncio.run(stop_and_go_on())
    assert children(supervised.pid) == workers
    assert not any("worker is stuck" in log(settings, kind) for kind in workers)
