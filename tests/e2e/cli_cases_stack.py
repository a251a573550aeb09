"""Situations of docs/cli.md of the servers that a command starts itself: what makes them true, and the commands."""

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.e2e.cli import Done, Place, Running, case, processes_of
from tests.e2e.cli_cases import FIT, fitted, write_events
from tests.e2e.conftest import of_leave_one_out
from workers.local.process import free_ports
from workers.local.state import ServiceState, StackState, running, write_state


@dataclass
class Own:
    """A stack that `recall up` runs in the foreground, and what happened while it started."""

    place: Place
    up: Running
    said: str = ""
    refused: list[Done] = field(default_factory=list)

    def pid(self, name: str) -> int:
        """Of one server."""
        state = running(self.place.data)
        assert state is not None
        return state.services[name].pid

    @contextlib.contextmanager
    def silent(self, name: str) -> Iterator[None]:
        """A server that still listens and does not answer."""
        os.kill(self.pid(name), signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid(name), signal.SIGCONT)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Own]:
    """Servers that cases may stop. The port that Redis had last time is taken when they start."""
    folder = tmp_path_factory.mktemp("own")
    write_events(folder)
    place = Place(folder)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        before = ServiceState(pid=1, address=f"redis://127.0.0.1:{port}/0", ports=[port], version="")
        place.data.mkdir()
        write_state(place.data, StackState(supervisor_pid=1, supervisor_started=1.0, services={"redis": before}))
        own = Own(place, place.start("up"))
        end = time.monotonic() + 60
        while not (place.data / "lock").exists():
            assert time.monotonic() < end
            time.sleep(0.02)
        own.refused = place.each(["up"], ["up", "-d"])
        own.up.until("up; ")
        state = running(place.data)
        assert state is not None
        assert state.services["redis"].ports != [port]
    try:
        yield own
    finally:
        own.up.process.terminate()
        own.up.done()


@case("`up`, `up -d`", "another process is starting the stack")
def _(own: Own) -> list[Done]:
    return own.refused


def as_said(own: Own) -> list[Done]:
    """What `up` has said until it was up."""
    return [Done(("up",), 0, "", own.up.said, 0.0)]


@case("`up`", "no bundle is active: servers alone")
def _(own: Own) -> list[Done]:
    return as_said(own)


@case("`up`", "a remembered port is taken: another one")
def _(own: Own) -> list[Done]:
    return as_said(own)


@case("`up`, `up -d`", "its servers are up, without workers")
def _(own: Own) -> list[Done]:
    return own.place.each(["up"], ["up", "-d"])


@case("`up --no-workers`, `up -d --no-workers`", "it is up")
def _(own: Own) -> list[Done]:
    return own.place.each(["up", "--no-workers"], ["up", "-d", "--no-workers"])


@case("`status`", "it is up")
def _(own: Own) -> list[Done]:
    return own.place.each(["status"])


@case("`status`", "Redis does not answer")
def _(own: Own) -> list[Done]:
    with own.silent("redis"):
        return own.place.each(["status"])


@case("`watch`", "Kafka stops answering, and comes back")
def _(own: Own) -> list[Done]:
    watch = own.place.start("watch")
    watch.until("listening to")
    with own.silent("kafka"):
        watch.until("does not answer; waiting for it")
    watch.until("is back")
    return [watch.signal().done()]


@pytest.fixture(scope="module")
def ended(own: Own) -> list[Done]:
    """The same, after one of its servers was killed."""
    os.kill(own.pid("redis"), signal.SIGKILL)
    return [own.up.done()]


@case("`up`", "a server dies")
def _(ended: list[Done]) -> list[Done]:
    return ended


@case("`status`", "the stack ended by itself")
def _(own: Own, ended: list[Done]) -> list[Done]:
    assert ended
    return own.place.each(["status"])


@case("`down`", "it is up")
def _(own: Own, ended: list[Done]) -> list[Done]:
    assert ended
    up = own.place.recall("up", "-d", "--no-workers")
    assert up.code == 0, up
    down = own.place.each(["down"])
    assert not processes_of(own.place.folder)
    return down


@case("`up`", "Ctrl-C once it is up")
def _(own: Own, ended: list[Done]) -> list[Done]:
    assert ended
    up = own.place.start("up", "--no-workers")
    up.until("up; ")
    done = up.signal().done()
    assert not processes_of(own.place.folder)
    return [done]


@case("`up`, `up -d`", "`local_milvus` is not what holds the items")
def _(idle: Place) -> list[Done]:
    (idle.data / "milvus-lite").mkdir(parents=True)
    (idle.data / "milvus-lite" / "LOCK").touch()
    return idle.with_(RECALL_LOCAL_MILVUS="server").each(["up"], ["up", "-d"])


@case("`up`, `up -d`, `demo`", "Ctrl-C while servers start")
def _(idle: Place) -> list[Done]:
    found = []
    own_addresses = Place(idle.folder)
    for arguments, folder in ((["up"], ""), (["up", "-d"], ""), (["demo", "--data", "generated"], "demo")):
        log = own_addresses.data / folder / "logs" / "redis.log"
        log.unlink(missing_ok=True)
        command = own_addresses.start(*arguments)
        end = time.monotonic() + 60
        while not log.exists() and command.process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.02)
        found.append(command.signal().done())
    return found


@case("`bench`", "Ctrl-C")
def _(idle: Place) -> list[Done]:
    bench = Place(idle.folder).start("bench", "paced")
    bench.until("")
    time.sleep(2)
    return [bench.signal().done()]


@case("`demo`", "`--bundle` is none")
def _(idle: Place) -> list[Done]:
    return idle.each(["demo", "--data", "generated", "--bundle", "nowhere"])


@case("`demo`", "`--bundle` is of another spec than the data set")
def _(idle: Place) -> list[Done]:
    return idle.each(["demo", "--data", "marketplace", "--bundle", _fitted(idle)])


@case("`demo`", "`--bundle` was trained by leave-one-out")
def _(idle: Place) -> list[Done]:
    return idle.each(["demo", "--data", "generated", "--bundle", str(of_leave_one_out(Path(fitted(idle))))])


@case("`demo`", "nobody listens at `tower_url`")
def _(idle: Place) -> list[Done]:
    away = {"RECALL_TOWER": "kserve", "RECALL_TOWER_URL": f"http://127.0.0.1:{free_ports(1)[0]}"}
    demo = Place(idle.folder, away | {"RECALL_INDEX": "faiss"})  # without Milvus it ends sooner
    return demo.each(["demo", "--data", "generated", "--bundle", _fitted(idle)])


def _fitted(idle: Place) -> str:
    version: str = json.loads(idle.recall(*FIT, "--no-activate", "--json").out)["version"]
    return version


@case("`demo`", "Ctrl-C while workers run")
def _(idle: Place) -> list[Done]:
    demo = Place(idle.folder).start("demo", "--data", "generated")
    demo.until("workers ready")
    return [demo.signal().done()]
