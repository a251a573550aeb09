"""No secret reaches a log or a terminal, whatever fails; and what a worker's log is like: JSON, a line per event of its
life and per outage, none per event that it handles."""

import asyncio
import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote, quote_plus

import pytest

from models.bundle import Bundle
from models.datasets.generated import generate
from tests.conftest import PATIENT, Stack
from tests.e2e.cli import Done, Place, Running
from tests.e2e.cli_cases import FIT, write_events
from tests.e2e.conftest import fit_small, prepare
from tests.e2e.traffic import Traffic
from workers.local.process import end, free_ports, spawn
from workers.local.redis import find_server
from workers.local.workers import environment
from workers.settings import AGENT_KINDS, Settings

OF_REDIS = "p@ss:w/rd \"q'%#?é-hunter2"
REFUSED = "wr@ng:pa/ss \"q'%#?é-hunter3"
OF_MILVUS = "T0ken&<\"x'>%é-hunter4"
IN_URI = "in/uri:@%é-hunter5"
NOT_ENCODED = "hunter6/not-encoded"
SECRETS = (OF_REDIS, REFUSED, OF_MILVUS, IN_URI, NOT_ENCODED, "hunter6")

CRASH = """
import logging, warnings
import structlog
from workers import logs
from workers.cli.main import COMMANDS, main
from workers.settings import load_settings

def crash():
    settings = load_settings()
    url, token = settings.redis_url.get_secret_value(), settings.milvus_token.get_secret_value()
    logs.configure(settings.secrets())
    structlog.contextvars.bind_contextvars(topic="t", partition=1, offset=2)
    try:
        raise RuntimeError(f"{url} {token} {settings.milvus_uri} {[url, token]!r}")
    except RuntimeError:
        structlog.get_logger().exception("an agent raised")
    logging.getLogger("aiokafka").error("given %s and %r", url, token)
    warnings.warn(f"{url} {token}")
    raise ValueError(url)

if __name__ == "__main__":
    COMMANDS["crash",] = "crash:crash", "Crash."
    main()
"""


def forms(secret: str) -> set[str]:
    """How a secret may be written: as it is, percent-encoded, inside JSON and Python texts, as a header's value."""
    token = base64.b64encode(f"root:{secret}".encode()).decode()
    plain = {secret, quote(secret, safe=""), quote(secret), quote_plus(secret), token}
    return plain | {json.dumps(each)[1:-1] for each in plain} | {repr(each)[1:-1] for each in plain}


def assert_nothing_leaks(text: str, where: str) -> None:
    for secret in SECRETS:
        for form in forms(secret):
            assert form not in text, f"{where}: {form!r} in ...{text[max(0, text.find(form) - 300) :][:600]}"
    assert "hunter" not in text, where


@dataclass(frozen=True)
class Guarded:
    """The run's Kafka and Milvus, a Redis that wants a password, and secrets in every setting that takes one."""

    settings: Settings
    place: Place

    def redis_url(self, password: str) -> str:
        return f"redis://:{password}@{self.settings.redis_url.get_secret_value().rpartition('@')[2]}"

    def logs(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in self.place.data.rglob("*.log")}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return fit_small(generate(items=100, users=60, events=2500), tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def redis_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, port = tmp_path_factory.mktemp("redis"), free_ports(1)[0]
    server, _ = find_server()
    options = [
        "--bind",
        "127.0.0.1",
        "--port",
        str(port),
        "--dir",
        str(folder),
        "--save",
        "",
        "--appendonly",
        "yes",
        "--requirepass",
    ]
    process = spawn([server, *options, OF_REDIS], folder / "log", folder)
    until = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.05)
    yield f"127.0.0.1:{port}/0"
    end(process, 10)


@pytest.fixture
def guarded(
    stack: Stack, namespace: str, redis_address: str, packed: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Guarded:
    folder = tmp_path_factory.mktemp("guarded")
    write_events(folder)
    milvus = stack.milvus_uri.partition("://")[2]
    settings = stack.settings(
        **PATIENT,
        namespace=namespace,
        data_dir=folder / "data",
        redis_url=f"redis://:{quote(OF_REDIS, safe='')}@{redis_address}",
        milvus_uri=f"http://root:{quote(IN_URI, safe='')}@{milvus}",
        milvus_token=f"root:{OF_MILVUS}",
    )
    asyncio.run(prepare(settings, packed))
    variables = {name: value for name, value in environment(settings).items() if name != "RECALL_DATA_DIR"}
    return Guarded(settings, Place(folder, variables))


def until_ready(supervisor: Running, place: Place, workers: int) -> None:
    """Wait until so many logs say that their worker is ready."""
    until = time.monotonic() + 90
    while True:
        logs = [path.read_text() for path in place.data.rglob("*worker-*.log")]
        if sum('"worker ready"' in log for log in logs) >= workers:
            return
        assert supervisor.process.poll() is None, supervisor.done()
        assert time.monotonic() < until, [log[-3000:] for log in logs]
        time.sleep(0.1)


def lines_of(log: str) -> list[dict[str, object]]:
    """Every line, each of which must be a JSON object that says what, when and how grave."""
    found = [json.loads(line) for line in log.splitlines()]
    for line in found:
        assert {"event", "level", "timestamp"} <= line.keys(), line
    return found


def assert_one_life(events: list[object], where: str) -> None:
    """It starts and ends once, and is ready once, and again after what it took for an outage on a busy machine."""
    assert [events.count(f"worker {life}") for life in ("starts", "ends")] == [1, 1], (where, events)
    assert 1 <= events.count("worker ready") <= 1 + events.count("dependency failed"), (where, events)


def ended(running: Running, where: str, code: int = 0) -> Done:
    done = running.signal(signal.SIGTERM).done()
    assert done.code == code, done
    assert_nothing_leaks(done.out + done.err, where)
    return done


def test_workers_and_commands_that_work(guarded: Guarded) -> None:
    place = guarded.place
    workers = place.start("worker", "all")
    until_ready(workers, place, len(AGENT_KINDS))
    commands = [["items", "load", "items.jsonl", "--wait"], ["ask", "u", "--timeout-ms", "20000"], ["status"]]
    commands += [[*FIT, "--no-activate"], ["doctor"], ["doctor", "--json"], ["topics", "apply", "--debug"]]
    for command in commands:
        done = place.recall(*command)
        assert_nothing_leaks(done.out + done.err, " ".join(command))
        assert done.code == 0 or command[0] == "doctor", done
    ended(workers, "worker all")
    logs = guarded.logs()
    assert len(logs) == len(AGENT_KINDS)
    for name, log in logs.items():
        assert_nothing_leaks(log, name)
        events = [line["event"] for line in lines_of(log)]
        assert_one_life(events, name)


def test_credentials_that_are_refused(guarded: Guarded) -> None:
    place = guarded.place.with_(RECALL_REDIS_URL=guarded.redis_url(quote(REFUSED, safe="")))
    for command in (["items", "load", "items.jsonl", "--wait", "--debug"], ["doctor"]):
        done = place.recall(*command)
        assert done.code == 1
        assert_nothing_leaks(done.out + done.err, " ".join(command))
    workers = {kind: place.start("worker", kind, "--debug") for kind in AGENT_KINDS}  # which says more than without
    for kind, worker in workers.items():
        worker.until("dependency failed")
        refused = [line for line in lines_of(ended(worker, kind).err) if line["event"] == "dependency failed"]
        assert [(line["dependency"], line["level"], line["kind"]) for line in refused] == [("redis", "warning", kind)]
        assert "AuthenticationError" in str(refused[0]["error"])


@pytest.mark.parametrize(
    "setting",
    [
        {"RECALL_REDIS_URL": f"redis://:{NOT_ENCODED}@127.0.0.1:1/0"},
        {"RECALL_REDIS_URL": f"http://:{quote(OF_REDIS, safe='')}@127.0.0.1:1/0"},
        {"RECALL_MILVUS_URI": f"http://root:{NOT_ENCODED}@127.0.0.1:1"},
        {"RECALL_MILVUS_URI": f"ftp://root:{quote(IN_URI, safe='')}@127.0.0.1:1"},
        {"RECALL_USER_TTL_MS": "1"},
        {"RECALL_PARTITIONS": "none"},
    ],
)
def test_settings_that_are_wrong(guarded: Guarded, setting: dict[str, str]) -> None:
    place = guarded.place.with_(**setting)
    kind = "activity" if "RECALL_REDIS_URL" in setting else "items"
    commands = ["worker", kind], ["worker", kind, "--debug"], ["status", "--debug"]
    for done in place.each(*commands):
        assert_nothing_leaks(done.out + done.err, " ".join(done.arguments))
        if done.arguments[0] == "worker":
            assert done.code == 2, done
            assert len(done.errors()) == 1


def test_a_crash_is_told_with_its_place_and_without_secrets(guarded: Guarded) -> None:
    """An exception nobody foresaw, whose text holds every secret: from an agent, from a library, and from a command."""
    (guarded.place.folder / "crash.py").write_text(CRASH)
    variables = os.environ | {"RECALL_DATA_DIR": str(guarded.place.data)} | guarded.place.environment
    for debug in ([], ["--debug"]):
        argv = [sys.executable, "crash.py", "crash", *debug]
        done = subprocess.run(argv, cwd=guarded.place.folder, env=variables, capture_output=True, text=True)
        assert done.returncode == 1
        assert_nothing_leaks(done.stdout + done.stderr, "a crash")
        said = done.stderr.splitlines()
        agent, library, warning = lines_of("\n".join(said[:3]))
        assert [agent[name] for name in ("topic", "partition", "offset", "level")] == ["t", 1, 2, "error"]
        assert "RuntimeError" in str(agent["exception"])
        assert library["logger"] == "aiokafka"
        assert "***" in str(warning["event"])
        assert said[-1].startswith("recall: ValueError: redis://:***@")
        assert ("Traceback" in said[3]) == bool(debug)


def test_the_log_of_all_kinds_in_one_process_does_not_grow_with_events(guarded: Guarded) -> None:
    worker = guarded.place.start("worker", "all", "--one-process")
    for _ in AGENT_KINDS:
        worker.until('"worker ready"')
    before = len(worker.said.splitlines())

    async def send() -> None:
        async with Traffic(guarded.settings) as traffic:
            while 3 * len(traffic.items) < 1000:
                await traffic.send(seconds=1, per_second=60)
            await traffic.all_arrived()

    asyncio.run(send())
    done = ended(worker, "worker all --one-process")
    lines = lines_of(done.err)
    after = [line["event"] for line in lines[before:]]
    assert len(after) <= 100, after  # of a thousand events; a busy machine's outages have lines of their own
    for kind in AGENT_KINDS:
        assert_one_life([line["event"] for line in lines if line.get("kind") == kind], kind)


def test_an_outage_names_its_dependency_and_libraries_speak_json_too(guarded: Guarded) -> None:
    nobody = f"127.0.0.1:{free_ports(1)[0]}"
    place = guarded.place.with_(
        RECALL_MILVUS_URI=f"http://root:{quote(IN_URI, safe='')}@{nobody}", RECALL_KAFKA_BOOTSTRAP=nobody
    )
    worker = place.start("worker", "all", "--one-process")
    for _ in AGENT_KINDS:
        worker.until("dependency failed")
    for _ in range(6):  # they try again meanwhile
        worker.until('"aiokafka"')
    lines = lines_of(ended(worker, "Kafka is away").err)
    assert any(line.get("logger") == "aiokafka" for line in lines)
    failed = [(line["dependency"], line["kind"]) for line in lines if line["event"] == "dependency failed"]
    assert sorted(failed) == [("kafka", kind) for kind in sorted(AGENT_KINDS)]
    only_milvus = place.with_(RECALL_KAFKA_BOOTSTRAP=guarded.settings.kafka_bootstrap)
    worker = only_milvus.start("worker", "items")
    worker.until("dependency failed")
    [failed_line] = [line for line in lines_of(ended(worker, "items").err) if line["event"] == "dependency failed"]
    assert failed_line["dependency"] == "milvus"
    assert nobody in str(failed_line["error"])
