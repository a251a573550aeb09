"""`recall demo` with the towers behind a model server. Takes a minute, so it is no part of `make test` by its name."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.bundle import Bundle
from models.datasets.generated import generate
from tests.backends.backend import Backend
from tests.backends.registry import backend, chosen
from tests.backends.served import DATASET
from tests.e2e.conftest import fit_small
from workers.local.workers import environment
from workers.settings import Settings

UNKNOWN = "nobody_has_this_tower"
QUICK = {"index": "faiss"}  # no Milvus to start


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One way, gRPC: what the others differ in is the contract's."""
    metafunc.parametrize("way", [backend(chosen(metafunc.config)).ways[-1]])


@pytest.fixture
def started(request: pytest.FixtureRequest, started_backend: Callable[[str], Backend]) -> Backend:
    return started_backend(chosen(request.config))


def served(started: Backend) -> Bundle:
    """The bundle whose towers the server has."""
    bundle = started.bundle  # type: ignore[attr-defined]
    assert isinstance(bundle, Bundle)
    return bundle


def demo(bundle: Bundle, folder: Path, **settings: Any) -> "subprocess.CompletedProcess[str]":
    """Run it with a bundle."""
    command = ["demo", "--data", "generated", "--bundle", str(bundle.path), "--json"]
    env = os.environ | environment(Settings(data_dir=folder, **settings))
    argv = [sys.executable, "-m", "workers.cli.main", *command]
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=env)


@pytest.mark.timeout(300)
def test_the_demo_gives_the_exact_lists_through_it(started: Backend, way: str, tmp_path: Path) -> None:
    done = demo(served(started), tmp_path, **started.settings(way))
    assert done.returncode == 0, done.stderr[-4000:]
    figures = json.loads(done.stdout)
    print(figures)
    assert figures["bundle"] == served(started).version
    assert figures["fit_s"] is None
    assert figures["answered"] == figures["requests"] >= 5000
    assert figures["ok"] + figures["asked_again"] == figures["requests"]
    assert abs(figures["recall_at_100"] - figures["recall_at_100_offline"]) <= 0.001
    assert figures["new_item_click_changes_list"] is True


def test_the_demo_ends_in_one_line_when_the_server_lacks_the_tower(started: Backend, way: str, tmp_path: Path) -> None:
    settings = started.settings(way) | QUICK | {"tower_user_model": UNKNOWN}
    line = refused(demo(served(started), tmp_path, **settings), 1)
    assert line.startswith("recall: tower: ")
    assert UNKNOWN in line


def test_the_demo_ends_in_one_line_when_the_server_has_another(started: Backend, way: str, tmp_path: Path) -> None:
    other = fit_small(replace(DATASET, test_ms=generate().test_ms), tmp_path / "bundles")
    assert other.version != served(started).version
    settings = started.settings(way) | QUICK
    if started.name == "torchserve":  # which finds models by name and version
        settings["tower_version"] = served(started).version
    refused(demo(other, tmp_path, **settings), 2)


def refused(done: "subprocess.CompletedProcess[str]", code: int) -> str:
    """The one line that it ended with."""
    assert done.returncode == code, done.stderr[-4000:]
    [line] = [line for line in done.stderr.splitlines() if line.startswith("recall: ")]
    print(line)
    return line
