"""`recall demo` with the towers behind a model server. Takes a minute, so it is no part of `make test` by its name."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.bundle import Bundle
from tests.backends.backend import Backend
from tests.backends.registry import backend, chosen
from workers.local.workers import environment
from workers.settings import Settings

USER_TOWER_AWAY = "nobody_has_this_tower"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One way, gRPC: what the others differ in is the contract's."""
    metafunc.parametrize("way", [backend(chosen(metafunc.config)).ways[-1]])


@pytest.fixture
def started(request: pytest.FixtureRequest, started_backend: Callable[[str], Backend]) -> Backend:
    return started_backend(chosen(request.config))


def demo(started: Backend, folder: Path, **settings: Any) -> "subprocess.CompletedProcess[str]":
    """Run with the bundle whose towers the server has."""
    bundle = started.bundle  # type: ignore[attr-defined]
    assert isinstance(bundle, Bundle)
    command = ["demo", "--data", "generated", "--bundle", str(bundle.path), "--json"]
    env = os.environ | environment(Settings(data_dir=folder, **settings))
    argv = [sys.executable, "-m", "workers.cli.main", *command]
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=env)


@pytest.mark.timeout(300)
def test_the_demo_gives_the_exact_lists_through_it(started: Backend, way: str, tmp_path: Path) -> None:
    done = demo(started, tmp_path, **started.settings(way))
    assert done.returncode == 0, done.stderr[-4000:]
    figures = json.loads(done.stdout)
    print(figures)
    assert figures["bundle"] == started.bundle.version  # type: ignore[attr-defined]
    assert figures["fit_s"] is None
    assert figures["answered"] == figures["requests"] >= 5000
    assert figures["ok"] + figures["asked_again"] == figures["requests"]
    assert abs(figures["recall_at_100"] - figures["recall_at_100_offline"]) <= 0.001
    assert figures["new_item_click_changes_list"] is True


def test_the_demo_ends_in_one_line_when_the_server_lacks_the_tower(started: Backend, way: str, tmp_path: Path) -> None:
    settings = started.settings(way) | {"tower_user_model": USER_TOWER_AWAY, "index": "faiss"}  # no Milvus to start
    done = demo(started, tmp_path, **settings)
    assert done.returncode == 1, done.stderr[-4000:]
    [line] = [line for line in done.stderr.splitlines() if line.startswith("recall: ")]
    print(line)
    assert line.startswith("recall: tower: ")
    assert USER_TOWER_AWAY in line
