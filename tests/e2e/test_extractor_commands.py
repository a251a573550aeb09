"""Commands with a spec that has an extractor: they find its code, and say in one line when they cannot."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from pyarrow import parquet

from models.bundle import load_bundle
from models.datasets.generated import generate
from models.spec import builtin_spec

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs/examples/own_extractor"
DECLARED = '[extractors.clock]\nversion = "1"\noutputs.phase = 4\noutputs.recency = 3\n'
CODE = {"RECALL_EXTRACTORS": '{"clock": "recall_clock:clock"}'}
FILES = ("--items", "items.jsonl", "--activity", "activity.jsonl", "--spec", "features.toml")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Events of our own, a spec, and a bundle that the command fitted."""
    folder, dataset = tmp_path_factory.mktemp("commands"), generate(items=60, users=60, events=2500)
    for name, events in (("items", dataset.items()), ("activity", dataset.activities(range(len(dataset.user))))):
        (folder / f"{name}.jsonl").write_bytes(b"".join(msgspec.json.encode(event) + b"\n" for event in events))
    (folder / "features.toml").write_text(f"{builtin_spec('movielens').read_text()}\n{DECLARED}")
    done = recall(folder, "model", "fit", *FILES, "--dim", "32", "--no-activate", "--json")
    assert done.returncode == 0, done.stderr
    (folder / "made").symlink_to(msgspec.json.decode(done.stdout)["path"])
    return folder


def recall(folder: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    path = os.pathsep.join([str(EXAMPLE), str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": path, "RECALL_DATA_DIR": str(folder / "data")} | CODE | variables
    argv = [sys.executable, "-m", "workers.cli.main", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, cwd=folder, env=env, timeout=120)


def test_a_bundle_is_fitted_with_it(folder: Path) -> None:
    bundle = load_bundle((folder / "made").resolve())
    assert bundle.spec.extractors["clock"].outputs == {"phase": 4, "recency": 3}
    verified = recall(folder, "model", "verify", str((folder / "made").resolve()), "--json")
    checks = {each["check"]: each["result"] for each in msgspec.json.decode(verified.stdout)["checks"]}
    assert checks["user inputs"] == checks["user finite"] == checks["user batch"] == "ok"


def test_it_is_evaluated_with_it(folder: Path) -> None:
    bundle = str((folder / "made").resolve())
    cut = ("--window", "test", "--baselines", "none", "--resamples", "100", "--json")
    fitted = recall(folder, "model", "evaluate", "--baselines", "closed-form", *FILES, *cut[4:])
    assert fitted.returncode == 0, fitted.stderr
    late = recall(folder, "model", "evaluate", bundle, *FILES, *cut)
    assert late.returncode == 2
    assert "was fitted on events up to" in late.stderr


def test_samples_are_written_with_it(folder: Path) -> None:
    done = recall(folder, "model", "dataset", "--to", "samples", *FILES, "--json")
    assert done.returncode == 0, done.stderr
    table = parquet.read_table(folder / "samples" / "samples.parquet")
    assert table.column("clock_phase").type.list_size == 4


@pytest.mark.parametrize(
    "command",
    [
        ("fit", *FILES, "--no-activate"),
        ("evaluate", *FILES, "--baselines", "none", "made"),
        ("dataset", "--to", "nowhere", *FILES),
    ],
    ids=lambda command: command[0],
)
def test_without_its_code_there_is_one_line(folder: Path, command: tuple[str, ...]) -> None:
    done = recall(folder, "model", *command, RECALL_EXTRACTORS="{}")
    assert done.returncode == 2, done.stderr
    line = "the spec has an extractor 'clock', and there is no code for it: install the package that has it"
    assert line in done.stderr
    assert not (folder / "nowhere").exists()


def test_one_that_fails_ends_the_fit_with_one_line(folder: Path) -> None:
    done = recall(folder, "model", "fit", *FILES, "--no-activate", RECALL_EXTRACTORS='{"clock": "builtins:dict"}')
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "extractor clock" in line]
    assert line.startswith("recall: extractor clock: TypeError: ")
