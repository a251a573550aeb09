"""`recall model fit` on MovieLens-100K: the figures that the towers must reach."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def model_fit(folder: Path, *arguments: str) -> dict[str, float]:
    command = [sys.executable, "-m", "workers.cli.main", "model", "fit", "--no-activate", "--json", *arguments]
    env = os.environ | {"RECALL_DATA_DIR": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.timeout(300)
def test_movielens_100k(tmp_path: Path) -> None:
    result = model_fit(tmp_path, "--data", "movielens-100k", "--evaluate")
    assert result["recall_at_10"] >= 0.19
    assert result["recall_at_100"] >= 0.61
    assert result["recall_at_100"] > result["popular"]["recall_at_100"] + 0.1
    assert (Path(result["path"]) / "bundle.json").exists()


def test_events_of_ones_own(tmp_path: Path) -> None:
    items, activity = tmp_path / "items.jsonl", tmp_path / "activity.jsonl"
    items.write_text(
        "".join(
            json.dumps({"item_id": f"i{n}", "op": "upsert", "timestamp_ms": 1, "attributes": {"genres": [f"g{n % 3}"]}})
            + "\n"
            for n in range(12)
        )
    )
    lines = [
        {
            "event_id": f"{u}-{n}",
            "user_id": f"u{u}",
            "action": "rate",
            "value": 5,
            "timestamp_ms": 1000 * (u + 40 * n),
            "item_id": f"i{(u + 3 * n) % 12}",
        }
        for u in range(40)
        for n in range(4)
    ]
    activity.write_text("".join(json.dumps(line) + "\n" for line in lines))
    spec = Path(__file__).parents[2] / "models" / "specs" / "movielens.toml"
    arguments = ("--items", str(items), "--activity", str(activity), "--spec", str(spec), "--dim", "32")
    first, again = model_fit(tmp_path, *arguments), model_fit(tmp_path, *arguments)
    assert first["positives"] == 160
    assert first["version"] == again["version"], "the same data and seed give the same bundle"


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    bad = tmp_path / "activity.jsonl"
    bad.write_text('{"event_id":"e","user_id":"u","action":"a","timestamp_ms":1}\nrubbish\n')
    items = tmp_path / "items.jsonl"
    items.write_text("")
    spec = Path(__file__).parents[2] / "models" / "specs" / "movielens.toml"
    command = [sys.executable, "-m", "workers.cli.main", "model", "fit"]
    files = ["--items", str(items), "--activity", str(bad), "--spec", str(spec)]
    done = subprocess.run([*command, *files], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"{bad}:2: not_json" in done.stderr
