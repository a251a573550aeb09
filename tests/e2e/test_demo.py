"""`recall demo` from nothing, on generated data: it answers everything, and its live lists are the exact ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(900)
@pytest.mark.parametrize("index", ["milvus", "faiss"])
def test_demo_without_a_terminal_shows_everything_and_ends(tmp_path: Path, index: str) -> None:
    command = [sys.executable, "-m", "workers.cli.main", "demo", "--data", "generated", "--json"]
    env = os.environ | {"RECALL_DATA_DIR": str(tmp_path), "RECALL_INDEX": index}
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-4000:]
    figures = json.loads(done.stdout)
    assert set(figures["stack"]) == {"kafka", "redis"} | ({"milvus"} if index == "milvus" else set())
    assert figures["answered"] == figures["requests"] >= 5000
    assert figures["users"] >= 200
    assert figures["ok"] + figures["asked_again"] == figures["requests"]
    assert figures["duplicates"] == 0
    assert abs(figures["recall_at_100"] - figures["recall_at_100_offline"]) <= 0.005
    assert figures["recall_at_100"] > figures["recall_at_100_popular"]
    assert figures["new_item_click_changes_list"] is True
    assert figures["filtered"] > 0
    assert len(figures["merged"]) > 1
    assert sum(figures["merged"].values()) == 100
    assert any("popular" in source for source in figures["merged"])
    assert figures["delete_to_gone_ms"] > 0
    assert "after liking" in done.stderr
    assert not (tmp_path / "demo" / "stack.json").exists() or _all_ended(tmp_path / "demo" / "stack.json")


def _all_ended(state: Path) -> bool:
    found = json.loads(state.read_text())
    pids = [service["pid"] for service in found["services"].values()] + [worker["pid"] for worker in found["workers"]]
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)
