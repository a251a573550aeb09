"""Situations of docs/cli.md of `recall model evaluate`. See `test_cli_table.py`."""

import json
from pathlib import Path

from tests.e2e.cli import Done, Place, case
from tests.e2e.cli_cases import FIT, SPEC, fitted
from tests.e2e.conftest import of_leave_one_out

FILES = ("--items", "items.jsonl", "--activity", "activity.jsonl", "--spec", str(SPEC))
EVALUATE = ("model", "evaluate", *FILES, "--baselines", "popularity")


@case("`model evaluate`", "neither `--data` nor files")
def _(idle: Place) -> list[Done]:
    return idle.each(["model", "evaluate", "--baselines", "popularity"])


@case("`model evaluate`", "neither a BUNDLE nor a baseline")
def _(idle: Place) -> list[Done]:
    return idle.each(["model", "evaluate", *FILES, "--baselines", "none"])


@case("`model evaluate`", "a baseline that it has not")
def _(idle: Place) -> list[Done]:
    return idle.each([*EVALUATE[:-1], "popularity,nonsense"])


@case("`model evaluate`", "`--reference` is not in the table")
def _(idle: Place) -> list[Done]:
    return idle.each([*EVALUATE, "--reference", "ease"])


@case("`model evaluate`", "`--delay soon`")
def _(idle: Place) -> list[Done]:
    return idle.each([*EVALUATE, "--delay", "soon"])


@case("`model evaluate`", "`--delay` with `--protocol leave-one-out`")
def _(idle: Place) -> list[Done]:
    command = [*EVALUATE, "--protocol", "leave-one-out"]
    return idle.each([*command, "--delay", "10s"], [*command, "--delay", "nightly"])


@case("`model evaluate`", "`--chart` in a folder that is not there")
def _(idle: Place) -> list[Done]:
    return idle.each([*EVALUATE, "--chart", "nowhere/chart.png"])


@case("`model evaluate`", "`--chart` is a folder")
def _(idle: Place) -> list[Done]:
    return idle.each([*EVALUATE, "--chart", "."])


@case("`model evaluate`", "`--through stream` of events of one's own")
def _(idle: Place) -> list[Done]:
    return idle.each([*EVALUATE, "--through", "stream"])


@case("`model evaluate`", "BUNDLE is none")
def _(idle: Place) -> list[Done]:
    return idle.each([*EVALUATE, "."])


@case("`model evaluate`", "the bundle was fitted on what the window asks for")
def _(idle: Place) -> list[Done]:
    version = json.loads(idle.recall(*FIT, "--no-activate", "--json").out)["version"]
    return idle.each([*EVALUATE, version])


@case("`model evaluate`", "the bundle was trained by leave-one-out")
def _(idle: Place) -> list[Done]:
    return idle.each([*EVALUATE, str(of_leave_one_out(Path(fitted(idle))))])


@case("`model evaluate`", "no target event in the window")
def _(idle: Place) -> list[Done]:
    activity = idle.folder / "activity.jsonl"
    activity.write_text(activity.read_text().replace('"value":5', '"value":1'))
    return idle.each(EVALUATE)


@case("`model evaluate`", "all is well")
def _(idle: Place) -> list[Done]:
    return idle.each([*EVALUATE, "--delay", "60s"], [*EVALUATE, "--protocol", "leave-one-out"])
