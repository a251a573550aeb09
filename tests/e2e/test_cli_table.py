"""The table of situations in docs/cli.md, driven row by row against real servers: no row without a test, and no test
without a row. The cases themselves stand in the modules `cli_cases*`."""

import inspect
import re
from pathlib import Path

import pytest

from tests.e2e import (
    cli_cases_adapters,
    cli_cases_bundles,
    cli_cases_dataset,
    cli_cases_evaluate,
    cli_cases_explain,
    cli_cases_letters,
    cli_cases_reconcile,
    cli_cases_users,
)
from tests.e2e.cli import CASES, Done, processes_of
from tests.e2e.cli_cases import idle
from tests.e2e.cli_cases_adapters import demanding, of_another_bundle
from tests.e2e.cli_cases_bundles import towers
from tests.e2e.cli_cases_live import packed, ready
from tests.e2e.cli_cases_stack import ended, own
from workers.cli.main import COMMANDS

__all__ = [
    "cli_cases_adapters",
    "cli_cases_bundles",
    "cli_cases_dataset",
    "cli_cases_evaluate",
    "cli_cases_explain",
    "cli_cases_letters",
    "cli_cases_reconcile",
    "cli_cases_users",
    "demanding",
    "ended",
    "idle",
    "of_another_bundle",
    "own",
    "packed",
    "ready",
    "towers",
]  # cases and fixtures

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "cli.md"
STAGES = ("own", "ended")  # in this order: the second ends what the first uses
WITHIN_S = {
    "nobody listens at `kafka_bootstrap`": 30.0,
    "it listens and never answers": 60.0,
}  # far more than on any machine


def table() -> dict[tuple[str, str], tuple[str, str]]:
    """(command, situation) -> (exit, line)."""
    section = DOCUMENT.read_text().partition("## Situations")[2]
    rows = [line.strip().strip("|").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    found = {(row[0].strip(), row[1].strip()): (row[2].strip(), row[3].strip()) for row in rows[1:]}
    assert len(found) == len(rows) - 1, "a row stands there twice"
    return found


def stage(row: tuple[str, str]) -> int:
    needed = inspect.signature(CASES[row]).parameters if row in CASES else {}
    return max((STAGES.index(name) + 1 for name in needed if name in STAGES), default=0)


def pattern(cell: str) -> "re.Pattern[str]":
    """A cell of the last column as an expression for a whole line."""
    text = cell.strip("`").strip() if cell.startswith("`") else cell
    return re.compile(".*".join(re.escape(part) for part in text.split("...")))


def test_rows_and_cases_are_the_same() -> None:
    assert table().keys() == CASES.keys()


@pytest.mark.timeout(300)  # some rows run a dozen commands
@pytest.mark.parametrize("row", sorted(table(), key=stage), ids=" | ".join)
def test_row(row: tuple[str, str], request: pytest.FixtureRequest) -> None:
    exit_code, line = table()[row]
    case = CASES[row]
    fixtures = {name: request.getfixturevalue(name) for name in inspect.signature(case).parameters}
    found: list[Done] = case(**fixtures)
    assert found
    places = [fixtures["idle"]] if "idle" in fixtures else [fixtures["ready"].place] if "ready" in fixtures else []
    assert [processes_of(place.folder) for place in places if processes_of(place.folder)] == []
    for done in found:
        assert "Traceback" not in done.err, done
        assert done.code == int(exit_code), done
        assert done.seconds < WITHIN_S.get(row[1], 100.0), done
        if line != "-":
            said = done.errors() if done.code in {1, 2} else (done.out + done.err).splitlines()
            matching = [each for each in said if pattern(line).fullmatch(each)]
            assert matching, (line, done)
            if done.code in {1, 2}:
                assert len(said) == 1, done
                assert done.quiet(), done
        elif done.code == 130:
            assert not done.errors(), done


def test_every_command_stands_in_the_table_of_commands_and_in_that_of_situations() -> None:
    commands = DOCUMENT.read_text().partition("## Situations")[0]
    situations = " ".join(command for command, _ in table())
    for path in COMMANDS:
        name = " ".join(path)
        assert f"| `recall {name}" in commands, name
        assert re.search(rf"`{name}\b", situations), name
