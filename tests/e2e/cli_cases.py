"""Situations of docs/cli.md in which nothing runs: what makes them true, and the commands. See `test_cli_table.py`."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.e2e.cli import Done, Place, case
from workers.checkpoints import held_checkpoints
from workers.local.process import free_ports
from workers.settings import load_settings

ROOT = Path(__file__).parents[2]
SPEC = ROOT / "models" / "specs" / "movielens.toml"
EVENT = b'{"event_id":"e","user_id":"u","action":"rate","timestamp_ms":1}\n'
ITEM = b'{"item_id":"i","op":"upsert","timestamp_ms":1}\n'
FIT = ("model", "fit", "--items", "items.jsonl", "--activity", "activity.jsonl", "--spec", str(SPEC), "--dim", "32")


def write_events(folder: Path) -> None:
    """Files of events: good ones, and enough of them to fit towers."""
    (folder / "events.jsonl").write_bytes(EVENT)
    (folder / "bad.jsonl").write_bytes(EVENT + b"rubbish\n")
    (folder / "items.jsonl").write_bytes(
        b"".join(b'{"item_id":"i%d","op":"upsert","timestamp_ms":1}\n' % number for number in range(12))
    )
    line = '{{"event_id":"{u}-{n}","user_id":"u{u}","action":"rate","value":5,"timestamp_ms":{t},"item_id":"i{i}"}}\n'
    lines = [line.format(u=u, n=n, t=1000 * (u + 40 * n), i=(u + 3 * n) % 12) for u in range(40) for n in range(4)]
    (folder / "activity.jsonl").write_text("".join(lines))


@pytest.fixture
def idle(tmp_path: Path) -> Place:
    """A folder in which nothing runs; nobody listens where Kafka, Redis and Milvus are said to be."""
    write_events(tmp_path)
    kafka, redis, milvus = free_ports(3)
    return Place(tmp_path).with_(
        RECALL_KAFKA_BOOTSTRAP=f"127.0.0.1:{kafka}",
        RECALL_REDIS_URL=f"redis://127.0.0.1:{redis}/0",
        RECALL_MILVUS_URI=f"http://127.0.0.1:{milvus}",
    )


# wrong usage


@case("any", "an unknown command")
def _(idle: Place) -> list[Done]:
    return idle.each(["nonsense"])


@case("any", "an unknown option")
def _(idle: Place) -> list[Done]:
    return idle.each(["--xyz"], ["ask", "--xyz", "u"], ["watch", "--xyz"])


@case("any", "a group without a command")
def _(idle: Place) -> list[Done]:
    return idle.each(["items"], ["model"], ["topics"], ["users"], ["dead-letters"])


@case("`ask`, `send`, `worker`, `users load`", "an argument is missing")
def _(idle: Place) -> list[Done]:
    return idle.each(["ask"], ["send"], ["worker"], ["users", "load"])


@case("`worker`, `send`, `watch`, `items load`, `model fit`, `demo`", "a word that is none of those possible")
def _(idle: Place) -> list[Done]:
    words = (["worker"], ["send"], ["watch", "--status"], *([*c, "--data"] for c in (["items", "load"], ["demo"])))
    return idle.each(*([*each, "nonsense"] for each in words), ["model", "fit", "--data", "nonsense"])


@case("`ask`", "`-k 0`")
def _(idle: Place) -> list[Done]:
    return idle.each(["ask", "u", "-k", "0"])


@case("`ask`", "`-k 1001`")
def _(idle: Place) -> list[Done]:
    return idle.each(["ask", "u", "-k", "1001"])


@case("`ask`", "`--timeout-ms 0`")
def _(idle: Place) -> list[Done]:
    return idle.each(["ask", "u", "--timeout-ms", "0"])


@case("`ask`", "`--timeout-ms 60001`")
def _(idle: Place) -> list[Done]:
    return idle.each(["ask", "u", "--timeout-ms", "60001"])


@case("`ask`", "`--filter year`")
def _(idle: Place) -> list[Done]:
    return idle.each(["ask", "u", "--filter", "year"], ["ask", "u", "--filter", "year near 1990"])


@case("`ask`", "an empty user id")
def _(idle: Place) -> list[Done]:
    return idle.each(["ask", ""])


@case("`ask`, `watch`, `users forget`", "an id that is not UTF-8")
def _(idle: Place) -> list[Done]:
    return idle.each(["ask", "\udcff"], ["watch", "--user", "\udcff"], ["users", "forget", "u", "\udcff"])


@case("`watch`, `dead-letters list`, `dead-letters replay`", "`--limit 0`")
def _(idle: Place) -> list[Done]:
    return idle.each(
        *([*words, "--limit", "0"] for words in (["watch"], ["dead-letters", "list"], ["dead-letters", "replay"]))
    )


@case("`worker`", "`--one-process` with one kind")
def _(idle: Place) -> list[Done]:
    return idle.each(["worker", "items", "--one-process"])


@case("`items load`", "neither FILE nor `--data`")
def _(idle: Place) -> list[Done]:
    return idle.each(["items", "load"])


@case("`model fit`", "neither `--data` nor files")
def _(idle: Place) -> list[Done]:
    return idle.each(["model", "fit"], ["model", "fit", "--items", "items.jsonl"])


@case("`model fit`", "`--dim 33`")
def _(idle: Place) -> list[Done]:
    return idle.each(["model", "fit", "--data", "generated", "--dim", "33"])


@case("`model fit`", "`--evaluate` with files")
def _(idle: Place) -> list[Done]:
    return idle.each([*FIT, "--evaluate"])


@case("`model fit`", "`--evaluate` with an `--until-ms` within the test window")
def _(idle: Place) -> list[Done]:
    return idle.each(["model", "fit", "--data", "generated", "--evaluate", "--until-ms", "9999999999999"])


@case("`model train`", "neither `--data` nor files")
def _(idle: Place) -> list[Done]:
    return idle.each(["model", "train"], ["model", "train", "--items", "items.jsonl"])


@case("`model train`", "`--dim 33`")
def _(idle: Place) -> list[Done]:
    return idle.each(["model", "train", "--data", "generated", "--dim", "33"])


@case("`model train`", "`--members 3`")
def _(idle: Place) -> list[Done]:
    return idle.each(["model", "train", "--data", "generated", "--members", "3"])


@case("`model train`", "`--evaluate` with files")
def _(idle: Place) -> list[Done]:
    return idle.each(["model", "train", *FIT[2:-2], "--evaluate"])


@case("`model train`", "`--protocol leave-one-out` with `--evaluate` or `--until-ms`")
def _(idle: Place) -> list[Done]:
    command = ["model", "train", "--data", "generated", "--protocol", "leave-one-out"]
    return idle.each([*command, "--evaluate"], [*command, "--until-ms", "1000"])


@case("`model train`", "PyTorch is not installed")
def _(idle: Place) -> list[Done]:
    return idle.each(["model", "train", *FIT[2:-2]])


def with_torch(idle: Place) -> Place:
    """PyTorch seems to be installed: for what is refused before it is loaded."""
    (idle.folder / "seeming" / "torch").mkdir(parents=True)
    (idle.folder / "seeming" / "torch" / "__init__.py").write_text("raise ImportError('it is not wanted')")
    return idle.with_(PYTHONPATH=os.pathsep.join([str(idle.folder / "seeming"), str(ROOT)]))


@case("`model train`", "another process trains in the data folder")
def _(idle: Place) -> list[Done]:
    with held_checkpoints(load_settings(data_dir=idle.data)):
        return with_torch(idle).each(["model", "train", *FIT[2:-2]], ["model", "train", *FIT[2:-2], "--resume"])


@case("`model train`", "the folder cannot be written")
def _(idle: Place) -> list[Done]:
    idle.data.write_text("a file")
    return with_torch(idle).each(["model", "train", *FIT[2:-2]])


def fitted(idle: Place) -> str:
    """The folder of a bundle."""
    made = idle.recall(*FIT, "--no-activate", "--json")
    return str(json.loads(made.out)["path"])


@case("`model export`", "no such bundle")
def _(idle: Place) -> list[Done]:
    return idle.each(["model", "export", "nowhere", "--to", "made"])


@case("`model export`", "a bundle of `model fit`")
def _(idle: Place) -> list[Done]:
    return idle.each(["model", "export", fitted(idle), "--to", "made"])


@case("`model export`", "a version of the data folder")
def _(idle: Place) -> list[Done]:
    return idle.each(["model", "export", Path(fitted(idle)).name, "--to", "made"])


@case("`model export`", "the folder cannot be written")
def _(idle: Place) -> list[Done]:
    return idle.each(["model", "export", fitted(idle), "--to", "events.jsonl"])


@case("`model export --format torchscript`, `model export --format torchserve`", "PyTorch is not installed")
def _(idle: Place) -> list[Done]:
    return idle.each(
        *(["model", "export", "nowhere", "--to", "made", "--format", f"torch{k}"] for k in ("script", "serve"))
    )


# wrong configuration


@case("any", "`recall.toml` is not TOML")
def _(idle: Place) -> list[Done]:
    (idle.folder / "recall.toml").write_text("x = ")
    return idle.each(["status"], ["up"], ["ask", "u"], ["worker", "all"], ["down"])


@case("any", "a setting has a wrong value")
def _(idle: Place) -> list[Done]:
    (idle.folder / "recall.toml").write_text("partitions = 0")
    return idle.each(["status"], ["up", "-d"], ["topics", "apply"])


@case("any", "`kafka_bootstrap` without a port")
def _(idle: Place) -> list[Done]:
    return idle.with_(RECALL_KAFKA_BOOTSTRAP="localhost").each(["ask", "u"], ["topics", "apply"])


@case("any", "standard output is full")
def _(idle: Place) -> list[Done]:
    with Path("/dev/full").open("wb") as full:
        return [idle.start(*command, stdout=full).done() for command in (["status"], ["status", "--json"], ["down"])]


# files and folders


@case("`send`, `items load`, `model fit`, `users forget`, `users load`", "no such file")
def _(idle: Place) -> list[Done]:
    no_activity = [each.replace("activity.jsonl", "nowhere.jsonl") for each in FIT]
    users = (["users", "forget", "--file", "nowhere.jsonl"], ["users", "load", "nowhere.jsonl"])
    return idle.each(["send", "activity", "nowhere.jsonl"], ["items", "load", "nowhere.jsonl"], no_activity, *users)


@case("`send`", "a bad line")
def _(idle: Place) -> list[Done]:
    return idle.each(["send", "activity", "bad.jsonl"])


@case("`items load`", "a bad line")
def _(idle: Place) -> list[Done]:
    (idle.folder / "items.jsonl").write_bytes(ITEM + b"rubbish\n")
    return idle.each(["items", "load", "items.jsonl"])


@case("`model fit`", "a bad line")
def _(idle: Place) -> list[Done]:
    shutil.copy(idle.folder / "bad.jsonl", idle.folder / "activity.jsonl")
    return idle.each(FIT)


@case("`model fit`", "the folder cannot be written")
def _(idle: Place) -> list[Done]:
    idle.data.write_text("a file")
    return idle.each(FIT)


@case("`model fit`", "the disk is full")
def _(idle: Place) -> list[Done]:
    return [idle.recall(*FIT, limit_bytes=500)]


@case("`bench`", "`--markdown` in a folder that is not there")
def _(idle: Place) -> list[Done]:
    return idle.each(["bench", "--markdown", "nowhere/tables.md"])


@case("`bench`", "a part that it has not")
def _(idle: Place) -> list[Done]:
    return idle.each(["bench", "nonsense"])


@case("`doctor`", "something does not answer")
def _(idle: Place) -> list[Done]:
    return idle.each(["doctor"], ["doctor", "--json"])


@case("`worker`", "the folder cannot be written")
def _(idle: Place) -> list[Done]:
    idle.data.write_text("a file")
    return idle.each(["worker", "recall"], ["worker", "all"], ["worker", "all", "--one-process"])


@case("`status`", "nothing runs")
def _(idle: Place) -> list[Done]:
    return idle.each(["status"])


@case("`down`", "nothing runs")
def _(idle: Place) -> list[Done]:
    return idle.each(["down"])


@case("`up`, `up -d`", "the folder cannot be written")
def _(idle: Place) -> list[Done]:
    idle.data.write_text("a file")
    return idle.each(["up"], ["up", "-d"])


@case("`up`, `up -d`", "the disk is full")
def _(idle: Place) -> list[Done]:
    return [idle.recall(*command, limit_bytes=500) for command in (["up"], ["up", "-d"])]
