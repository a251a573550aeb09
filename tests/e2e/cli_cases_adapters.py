"""Situations of docs/cli.md of towers, item indexes, feature sources and extractors that a setting chooses: what makes
them true, and the commands. See `test_cli_table.py`."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from models.bundle import Bundle
from models.datasets.generated import generate
from tests.backends.ours import OurServer
from tests.e2e.cli import Done, Place, case
from tests.e2e.cli_cases import SPEC
from tests.e2e.cli_cases_explain import with_collection
from tests.e2e.cli_cases_live import Ready, ask_a_worker_without, closed
from tests.e2e.conftest import fit_small
from tests.moods import MOOD, fit_moody
from workers import views
from workers.index.in_process import held_alone

EXAMPLE = Path(__file__).parents[2] / "docs/examples/own_extractor"
CLOCK = '[extractors.clock]\nversion = "1"\noutputs.phase = 4\noutputs.recency = 3\n'
FAISS = {"RECALL_INDEX": "faiss"}
SHOP = json.dumps({"shop": {"kind": "memory"}})


def of_each(place: Place, *environments: dict[str, str], command: list[str]) -> list[Done]:
    """One command under each environment, at the same time."""
    return [running.done() for running in [place.with_(**each).start(*command) for each in environments]]


def without(idle: Place, module: str) -> str:
    """A PYTHONPATH on which a package is not to be had, as where its extra was not installed."""
    hidden = idle.folder / "hidden"
    hidden.mkdir(exist_ok=True)
    (hidden / f"{module}.py").write_text(f"raise ModuleNotFoundError('no {module}', name='{module}')")
    return os.pathsep.join([str(hidden), os.environ.get("PYTHONPATH", "")])


# settings that cannot be read


@case("any", "a setting that is to be JSON is none")
def _(idle: Place) -> list[Done]:
    return of_each(idle, *({name: "{shop"} for name in ("RECALL_SOURCES", "RECALL_EXTRACTORS")), command=["status"])


@case("any", "a feature source that cannot be read")
def _(idle: Place) -> list[Done]:
    (idle.folder / "sources.json").write_text('{"shop": {}}')
    without_url = {"RECALL_SOURCES": '{"shop": {"kind": "http"}}'}
    return of_each(idle, without_url, {"RECALL_SOURCES_FILE": "sources.json"}, command=["ask", "u"])


@case("any", "`tower_url` is no address")
def _(idle: Place) -> list[Done]:
    urls = ("localhost:8000", "grpc://localhost")
    return of_each(idle, *({"RECALL_TOWER_URL": url} for url in urls), command=["status"])


@case("any", "`tower_url` holds a password")
def _(idle: Place) -> list[Done]:
    return idle.with_(RECALL_TOWER_URL="http://us:secret@localhost:8000").each(["status"])


# an index in the process


@case("`worker items`, `worker recall`, `worker all`", "the index lives in the process")
def _(idle: Place) -> list[Done]:
    return idle.with_(**FAISS).each(["worker", "items"], ["worker", "recall"], ["worker", "all"])


@case("`worker all --one-process`", "another process on this folder holds the index")
def _(ready: Ready) -> list[Done]:
    with held_alone(ready.settings):
        return ready.place.with_(**FAISS).each(["worker", "all", "--one-process"])


@case("`items reconcile`, `explain`", "the index lives in the process of the workers")
def _(ready: Ready) -> list[Done]:
    return ready.place.with_(**FAISS).each(["items", "reconcile"], ["explain", "u"])


@case("`bench`", "`index` is not Milvus")
def _(idle: Place) -> list[Done]:
    return idle.with_(**FAISS).each(["bench"])


@case("`doctor`", "the index lives in the process of the workers")
def _(ready: Ready) -> list[Done]:
    return ready.place.with_(RECALL_MILVUS_URI=closed("http://"), **FAISS).each(["doctor"])


@case("`worker`, `up`", "an `index` that nobody has")
def _(idle: Place) -> list[Done]:
    return idle.with_(RECALL_INDEX="nosuch").each(["worker", "items"], ["up"])


@case("`worker`", "Faiss without the extra")
def _(idle: Place) -> list[Done]:
    return idle.with_(PYTHONPATH=without(idle, "faiss"), **FAISS).each(["worker", "all", "--one-process"])


# towers behind a model server


@case("`worker items`, `explain`", "a `tower` that nobody has")
def _(ready: Ready) -> list[Done]:
    return ready.place.with_(RECALL_TOWER="nosuch").each(["worker", "items"], ["explain", "u"])


@case("`worker recall`", "a model server without `tower_url`")
def _(ready: Ready) -> list[Done]:
    return ready.place.with_(RECALL_TOWER="kserve").each(["worker", "recall"])


@case("`worker`", "a model server without the extra")
def _(ready: Ready) -> list[Done]:
    away = {"RECALL_TOWER_URL": closed("http://"), "PYTHONPATH": without(ready.place, "httpx")}
    return ready.place.with_(RECALL_TOWER="kserve", **away).each(["worker", "recall"])


@pytest.fixture(scope="module")
def of_another_bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Settings of a model server that has the towers of another fit, and no others."""
    server = OurServer(fit_small(generate(items=100, users=60, events=2000), tmp_path_factory.mktemp("other")))
    server.start()
    try:
        url = f"grpc://127.0.0.1:{server.grpc_port}"
        yield {"RECALL_TOWER": "kserve", "RECALL_TOWER_URL": url}
    finally:
        server.stop()


@case("`worker items`, `worker recall`, `explain`", "the model server has the towers of another bundle")
def _(ready: Ready, of_another_bundle: dict[str, str]) -> list[Done]:
    return ready.place.with_(**of_another_bundle).each(["worker", "items"], ["worker", "recall"], ["explain", "u"])


def without_server() -> dict[str, str]:
    """Settings of a model server at whose address nobody listens."""
    return {"RECALL_TOWER": "kserve", "RECALL_TOWER_URL": closed("http://")}


@case("`explain`", "the model server does not answer")
def _(ready: Ready) -> list[Done]:
    return ready.place.with_(**without_server()).each(["explain", "u"])


@case("`doctor`", "the model server does not answer")
def _(ready: Ready) -> list[Done]:
    found = ready.place.with_(**without_server()).each(["doctor"])
    assert "; start the model server, or set tower_url" in found[0].out, found
    return found


@case("`worker items`", "the model server does not answer: waits for it; at SIGTERM")
def _(ready: Ready) -> list[Done]:
    worker = ready.place.with_(**without_server()).start("worker", "items")
    worker.until("dependency failed")
    return [worker.signal(signal.SIGTERM).done()]


@case("`ask`", "the recall worker does not reach the model server")
def _(ready: Ready) -> list[Done]:
    return ask_a_worker_without(ready, **without_server())


# feature sources, and extractors


@pytest.fixture(scope="module")
def demanding(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that needs a source, `shop`, and the code of an extractor, `clock`."""
    paths = pytest.MonkeyPatch()
    paths.syspath_prepend(str(EXAMPLE))
    code = import_module("recall_clock").clock
    paths.undo()
    dataset = generate(items=60, users=60, events=2500)
    return fit_moody(dataset, tmp_path_factory.mktemp("demanding"), MOOD + CLOCK, {"clock": code})


def with_code(place: Place) -> Place:
    """Where the code of the extractor is, and named."""
    path = os.pathsep.join([str(EXAMPLE), os.environ.get("PYTHONPATH", "")])
    return place.with_(PYTHONPATH=path, RECALL_EXTRACTORS='{"clock": "recall_clock:clock"}')


def asking_more(ready: Ready, demanding: Bundle) -> Ready:
    """The same servers with that bundle active, its code and its source there."""
    asyncio.run(views.activate(ready.settings, demanding.path, demanding.version))
    return replace(ready, bundle=demanding, place=with_code(ready.place).with_(RECALL_SOURCES=SHOP))


@case("`worker recall`, `explain`", "a feature source that the bundle needs is not configured")
def _(ready: Ready, demanding: Bundle) -> list[Done]:
    place = asking_more(ready, demanding).place.with_(RECALL_SOURCES="{}")
    return place.each(["worker", "recall"], ["explain", "u"])


@case("`explain`", "a feature source does not answer: its values count as their defaults")
def _(ready: Ready, demanding: Bundle) -> list[Done]:
    place = with_collection(asking_more(ready, demanding)).place.with_(RECALL_SOURCES=away())
    assert place.recall("users", "load", "events.jsonl").code == 0
    return place.each(["explain", "u"])


def away() -> str:
    """A source at which nobody listens."""
    return json.dumps({"shop": {"kind": "http", "url": closed("http://")}})


@case("`doctor`", "a feature source does not answer")
def _(ready: Ready, demanding: Bundle) -> list[Done]:
    found = asking_more(ready, demanding).place.with_(RECALL_SOURCES=away()).each(["doctor"])
    assert "its values count as their defaults meanwhile" in found[0].out, found
    return found


@case("`worker recall`, `explain`", "there is no code for an extractor of the bundle")
def _(ready: Ready, demanding: Bundle) -> list[Done]:
    place = asking_more(ready, demanding).place.with_(RECALL_EXTRACTORS="{}")
    return place.each(["worker", "recall"], ["explain", "u"])


def with_an_extractor(idle: Place) -> Place:
    """A spec that needs one, in place of the other."""
    (idle.folder / "features.toml").write_text(f"{SPEC.read_text()}\n{CLOCK}")
    return with_code(idle)


FILES = ("--items", "items.jsonl", "--activity", "activity.jsonl", "--spec", "features.toml")


@case("`model fit`, `model evaluate`, `model dataset`", "there is no code for an extractor of the spec")
def _(idle: Place) -> list[Done]:
    commands = (["model", "fit"], ["model", "evaluate"], ["model", "dataset", "--to", "made"])
    place = with_an_extractor(idle).with_(RECALL_EXTRACTORS="{}")
    return place.each(*([*command, *FILES] for command in commands))


@case("`model fit`", "the code of an extractor cannot be loaded")
def _(idle: Place) -> list[Done]:
    place = with_an_extractor(idle).with_(RECALL_EXTRACTORS='{"clock": "nowhere:clock"}')
    return place.each(["model", "fit", *FILES])


@case("`model fit`", "an extractor fails")
def _(idle: Place) -> list[Done]:
    place = with_an_extractor(idle).with_(RECALL_EXTRACTORS='{"clock": "builtins:dict"}')
    return place.each(["model", "fit", *FILES])
