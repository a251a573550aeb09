"""Real servers and workers under real faults: every promise holds, and the report says so."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.faults import SHORT

ROOT = Path(__file__).parents[2]
FIELDS = [
    "seed",
    "faults",
    "events",
    "lost",
    "double_effects",
    "unanswered",
    "wrong_state",
    "duplicate_answers",
    "dead_letters",
    "max_recovery_s",
    "mutants_caught",
]


def chaos(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code and report of one run, on servers of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    print(done.stderr)
    return done.returncode, json.loads(done.stdout)


@pytest.mark.timeout(1200)
def test_promises_hold_under_every_fault_and_a_broken_one_turns_the_run_red() -> None:
    code, report = chaos("--short", "--mutants", "floor", "--seed", "7")
    assert list(report) == FIELDS
    assert report["faults"] == dict.fromkeys([*SHORT, "quiet"], 1)
    promises = ("lost", "double_effects", "unanswered", "wrong_state")
    assert {name: report[name] for name in promises} == dict.fromkeys(promises, 0)
    assert (code, report["mutants_caught"]) == (0, 1)
    assert report["events"] > 10_000
    assert report["dead_letters"] > 0
