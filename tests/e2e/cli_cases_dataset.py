"""Situations of docs/cli.md of `recall model dataset`: what makes them true, and the commands.

See `test_cli_table.py`.
"""

import os
import time

from tests.e2e.cli import Done, Place, case
from tests.e2e.cli_cases import EVENT, FIT, SPEC
from tests.e2e.cli_cases_bundles import ROOT
from tests.e2e.cli_cases_live import Ready

DATASET = ("model", "dataset", "--to", "made")
FILES = ("--items", "items.jsonl", "--activity", "activity.jsonl")
FEATURES = ("--spec", str(SPEC))


@case("`model dataset`", "`--to` is missing")
def _(idle: Place) -> list[Done]:
    return idle.each(["model", "dataset"])


@case("`model dataset`", "neither `--data`, `--spec` nor `--bundle`")
def _(idle: Place) -> list[Done]:
    return idle.each(DATASET, [*DATASET, *FILES])


@case("`model dataset`", "options that exclude each other")
def _(idle: Place) -> list[Done]:
    data = ("--data", "generated", "--items", "items.jsonl")
    return idle.each([*DATASET, *data], [*DATASET, *FEATURES, "--bundle", "nowhere"])


@case("`model dataset`", "one file without the other")
def _(idle: Place) -> list[Done]:
    return idle.each([*DATASET, *FEATURES, "--items", "items.jsonl"])


@case("`model dataset`", "`--until` is neither a duration nor a time")
def _(idle: Place) -> list[Done]:
    return idle.each([*DATASET, *FEATURES, "--until", "soon"])


@case("`model dataset`", "`--since` is later than `--until`")
def _(idle: Place) -> list[Done]:
    return idle.each([*DATASET, *FEATURES, "--since", "1d", "--until", "2d"])


@case("`model dataset`", "BUNDLE is none")
def _(idle: Place) -> list[Done]:
    return idle.each([*DATASET, *FILES, "--bundle", "nowhere"])


@case("`model dataset`", "no such spec")
def _(idle: Place) -> list[Done]:
    return idle.each([*DATASET, *FILES, "--spec", "nowhere.toml"])


@case("`model dataset`", "the folder is there already")
def _(idle: Place) -> list[Done]:
    return idle.each(["model", "dataset", "--to", ".", *FILES, *FEATURES])


@case("`model dataset`", "the folder cannot be written")
def _(idle: Place) -> list[Done]:
    return idle.each(["model", "dataset", "--to", "events.jsonl/made", *FILES, *FEATURES])


@case("`model dataset`", "the disk is full")
def _(idle: Place) -> list[Done]:
    return [idle.recall(*DATASET, *FILES, *FEATURES, limit_bytes=500)]


@case("`model dataset`", "no such file")
def _(idle: Place) -> list[Done]:
    return idle.each([*DATASET, "--items", "nowhere.jsonl", "--activity", "activity.jsonl", *FEATURES])


@case("`model dataset`", "a bad line")
def _(idle: Place) -> list[Done]:
    return idle.each([*DATASET, "--items", "items.jsonl", "--activity", "bad.jsonl", *FEATURES])


@case("`model fit`, `model dataset`", "an activity more than 5 minutes ahead")
def _(idle: Place) -> list[Done]:
    ahead_ms = time.time_ns() // 1_000_000 + 400_000
    (idle.folder / "activity.jsonl").write_bytes(EVENT.replace(b":1}", b":%d}" % ahead_ms))
    return idle.each(FIT, [*DATASET, *FILES, *FEATURES])


@case("`model dataset`", "no event is a positive")
def _(idle: Place) -> list[Done]:
    return idle.each([*DATASET, "--items", "items.jsonl", "--activity", "events.jsonl", *FEATURES])


@case("`model dataset`", "Parquet without the extra")
def _(idle: Place) -> list[Done]:
    hidden = idle.folder / "hidden" / "pyarrow"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('no pyarrow')")
    path = os.pathsep.join([str(hidden.parent), str(ROOT)])
    return [idle.with_(PYTHONPATH=path).recall(*DATASET, *FILES, *FEATURES)]


@case("`model dataset`", "nobody listens at `kafka_bootstrap`")
def _(idle: Place) -> list[Done]:
    return idle.each([*DATASET, *FEATURES])


@case("`model dataset`", "the topics do not exist")
def _(ready: Ready) -> list[Done]:
    return [ready.fresh().recall(*DATASET, *FEATURES)]


@case("`model dataset`", "all is well")
def _(idle: Place) -> list[Done]:
    done = idle.recall(*DATASET, *FILES, *FEATURES)
    names = ["dataset.json", "features.toml", "items.parquet", "samples.parquet", "vocabularies.json"]
    assert sorted(each.name for each in (idle.folder / "made").iterdir()) == names
    return [done]


@case("`model dataset`", "Ctrl-C before it is done")
def _(idle: Place) -> list[Done]:
    running = idle.start(*DATASET, "--data", "generated")
    while not any(idle.folder.glob(".made*")):
        assert running.process.poll() is None
        time.sleep(0.02)
    done = running.signal().done()
    assert not [*idle.folder.glob("made"), *idle.folder.glob(".made*")]
    return [done]
