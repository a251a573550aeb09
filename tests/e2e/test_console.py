"""What commands print with a terminal, into a pipe, and where a terminal can do little."""

import json
import os
import pty
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.cli import Place
from tests.e2e.cli_cases import FIT, idle, write_events
from workers.cli.console import harmless

__all__ = ["idle"]  # a fixture

ESCAPE = "\x1b"
WITHIN_S = 100


def on_terminal(place: Place, *arguments: str, stdout_too: bool = True, **environment: str) -> tuple[str, str]:
    """What a command writes to a terminal of 80 columns, and to a pipe in place of standard output."""
    ours, theirs = pty.openpty()
    variables = os.environ | {"RECALL_DATA_DIR": str(place.data), "TERM": "xterm-256color", "COLUMNS": "80"}
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        variables.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, "-m", "workers.cli.main", *arguments],
        cwd=place.folder,
        env=variables | place.environment | environment,
        stdin=subprocess.DEVNULL,
        stdout=theirs if stdout_too else subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    written = b""
    while select.select([ours], [], [], WITHIN_S)[0]:
        try:
            part = os.read(ours, 65_536)
        except OSError:  # how a terminal ends
            break
        written += part
    piped = b"" if process.stdout is None else process.stdout.read()
    process.wait(WITHIN_S)
    os.close(ours)
    return written.decode(), piped.decode()


def test_progress_is_drawn_on_a_terminal_and_gone_in_the_end(idle: Place) -> None:
    shown, _ = on_terminal(idle, *FIT)
    assert "reading events" in shown
    assert ESCAPE in shown
    last = shown.rpartition(f"{ESCAPE}[2K")[2]  # the line is wiped out before the result is printed
    assert "version: " in last
    assert "reading" not in last


def test_results_go_to_standard_output_while_progress_is_drawn_on_standard_error(idle: Place) -> None:
    shown, piped = on_terminal(idle, *FIT, "--json", stdout_too=False)
    assert ESCAPE in shown
    assert "version" not in shown
    assert json.loads(piped)["dim"] == 32
    assert piped.count("\n") == 1


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_colour_where_none_is_wanted(idle: Place, environment: dict[str, str]) -> None:
    shown, _ = on_terminal(idle, *FIT, **environment)
    assert not re.search(rf"{ESCAPE}\[[0-9;]*3[0-9]", shown)
    assert ("dumb" not in environment.values()) or ESCAPE not in shown


def test_a_pipe_gets_text_alone(idle: Place) -> None:
    commands = [FIT, [*FIT, "--json"], ["status"], ["send", "activity", "bad.jsonl"], ["items", "load", "items.jsonl"]]
    for done in idle.each(*commands):
        assert ESCAPE not in done.out + done.err
        assert "\r" not in done.out + done.err
        assert not done.err.startswith("\n")
    forced = idle.with_(FORCE_COLOR="1").recall(*FIT)
    assert "reading" not in forced.err, "nothing is drawn into a pipe, whatever colours are wanted there"


def test_a_pipe_takes_lines_of_any_length(tmp_path: Path) -> None:
    item = "an-id-of-256-bytes-" + "x" * 237
    code = (
        "from schemas.recall import CandidateList, Status\n"
        "from workers.cli.ask import print_answer\n"
        f"answer = CandidateList(request_id='r', user_id='u', scene='s', status=Status.OK, timestamp_ms=1,"
        f" item_ids=[{item!r}], scores=[1.0])\n"
        f"print_answer(answer, {{{item!r}: '[red]a :smile: title ' + 'y' * 300}}, 1.0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    rows = done.stdout.splitlines()
    assert item in rows[1]
    assert "[red]a :smile: title " + "y" * 300 in rows[1]
    assert len(rows) == 3


def test_a_narrow_terminal_folds_and_cuts_nothing(tmp_path: Path) -> None:
    item = "".join(chr(ord("a") + n % 26) for n in range(120))
    code = (
        "from workers.cli.console import cells, columns, results\n"
        "table = columns('item', 'where')\n"
        f"table.add_row(*cells({item!r}, 'z' * 70))\n"
        "results().print(table)"
    )
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=theirs, env=os.environ | {"COLUMNS": "60"})
    os.close(theirs)
    process.wait(WITHIN_S)
    shown = os.read(ours, 65_536).decode()
    os.close(ours)
    text = re.sub(rf"{ESCAPE}\[[0-9;]*m", "", shown)
    rows = [line.split() for line in text.splitlines()[1:]]
    letters = "".join(word for row in rows for word in row if "z" * 3 not in word)
    assert letters == item
    assert text.count("z") - item.count("z") == 70
    assert "\N{HORIZONTAL ELLIPSIS}" not in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a film\N{IDEOGRAPHIC SPACE}\N{LATIN SMALL LETTER E WITH ACUTE}", None),
        ("\x1b[2J", "\N{REPLACEMENT CHARACTER}[2J"),
        ("a\nb\rc\td", "a{0}b{0}c{0}d".format("\N{REPLACEMENT CHARACTER}")),
        ("\x9b31m\u202e\u2028", "{0}31m{0}{0}".format("\N{REPLACEMENT CHARACTER}")),
    ],
)
def test_hostile_text_is_made_harmless(text: str, shown: str | None) -> None:
    assert harmless(text) == (text if shown is None else shown)


def test_an_encoding_that_lacks_a_character_is_no_error(tmp_path: Path) -> None:
    folder = tmp_path / "\N{LATIN SMALL LETTER E WITH ACUTE}"
    folder.mkdir()
    write_events(folder)
    done = Place(folder, {"PYTHONIOENCODING": "ascii"}).recall(*FIT, "--no-activate")
    assert (done.code, done.err) == (0, "")
    assert "\\xe9" in done.out
