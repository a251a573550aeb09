"""Situations of docs/cli.md of clients and workers, with servers that run or do not answer: what makes them true, and
the commands."""

import asyncio
import fcntl
import shutil
import signal
import socket
import termios
import time
import uuid
from dataclasses import dataclass

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from models.bundle import Bundle
from models.datasets.generated import generate
from schemas.records import ItemRecord
from tests.conftest import PATIENT, Stack
from tests.e2e.cli import Done, Place, Running, case
from tests.e2e.cli_cases import FIT, write_events
from tests.e2e.conftest import fit_small, prepare
from workers import topics, views
from workers.kafka_client import admin_client, connected
from workers.local.process import free_ports
from workers.local.workers import environment
from workers.settings import AGENT_KINDS, Settings
from workers.stores.connect import connect
from workers.stores.item_redis import RedisItemTable

KAFKA_COMMANDS = (
    ("ask", "u"),
    ("send", "activity", "events.jsonl"),
    ("watch",),
    ("items", "load", "items.jsonl"),
    ("topics", "apply"),
    ("users", "forget", "u"),
    ("dead-letters", "list"),
    ("dead-letters", "replay"),
    ("dead-letters", "resume"),
)
LETTERS = "`dead-letters list`, `dead-letters replay`, `dead-letters resume`"
ALL = f"`ask`, `send`, `watch`, `items load`, `topics apply`, `users forget`, {LETTERS}"


def each_kafka_command(place: Place, *but_not: str) -> list[Done]:
    """All that need Kafka, half of them at a time: how long one takes is looked at."""
    commands = [command for command in KAFKA_COMMANDS if command[0] not in but_not]
    return place.each(*commands[::2]) + place.each(*commands[1::2])


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A small bundle."""
    return fit_small(generate(items=100, users=60, events=2500), tmp_path_factory.mktemp("bundles"))


@dataclass(frozen=True)
class Ready:
    """The run's servers in a namespace of the case's own, with topics and an active bundle."""

    settings: Settings
    bundle: Bundle
    place: Place

    def fresh(self) -> Place:
        """The same servers, in a namespace without topics and without an active bundle."""
        return self.place.with_(RECALL_NAMESPACE=f"t{uuid.uuid4().hex[:12]}")

    async def without_bundle(self) -> Place:
        """With topics, without an active bundle."""
        namespace = f"t{uuid.uuid4().hex[:12]}"
        await topics.apply(self.settings.model_copy(update={"namespace": namespace}))
        return self.place.with_(RECALL_NAMESPACE=namespace)


@pytest.fixture
def ready(stack: Stack, namespace: str, tmp_path_factory: pytest.TempPathFactory, packed: Bundle) -> Ready:
    folder = tmp_path_factory.mktemp("ready")
    write_events(folder)
    settings = stack.settings(**PATIENT, namespace=namespace, data_dir=folder / "data")
    asyncio.run(prepare(settings, packed))
    variables = {name: value for name, value in environment(settings).items() if name != "RECALL_DATA_DIR"}
    return Ready(settings, packed, Place(folder, variables))


def closed(scheme: str = "") -> str:
    """An address at which nobody listens."""
    return f"{scheme}127.0.0.1:{free_ports(1)[0]}"


# Kafka away


@case(ALL, "nobody listens at `kafka_bootstrap`")
def _(idle: Place) -> list[Done]:
    return each_kafka_command(idle)


@case(ALL, "its name does not resolve")
def _(idle: Place) -> list[Done]:
    return each_kafka_command(idle.with_(RECALL_KAFKA_BOOTSTRAP="nowhere.invalid:9092"))


@case(ALL, "it listens and never answers")
def _(idle: Place) -> list[Done]:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        return each_kafka_command(idle.with_(RECALL_KAFKA_BOOTSTRAP=address))


@case(f"`ask`, `send`, `watch`, `items load`, `users forget`, {LETTERS}", "the topics do not exist")
def _(ready: Ready) -> list[Done]:
    return each_kafka_command(ready.fresh(), "topics")


# workers and backends


@case("`ask`", "no recall worker runs")
def _(ready: Ready) -> list[Done]:
    return ready.place.each(["ask", "u", "--timeout-ms", "100"])


def ask_a_worker_without(ready: Ready, **environment: str) -> list[Done]:
    """An answer of a recall worker that does not reach a backend."""
    worker = ready.place.with_(**environment).start("worker", "recall")
    try:
        worker.until("dependency failed")
        return [ready.place.recall("ask", "u", "--timeout-ms", "20000")]
    finally:
        ended = worker.signal(signal.SIGTERM).done()
        assert ended.code == 0, ended


@case("`ask`", "the recall worker does not reach Milvus")
def _(ready: Ready) -> list[Done]:
    return ask_a_worker_without(ready, RECALL_MILVUS_URI=closed("http://"))


@case("`ask`", "the recall worker does not reach Redis")
def _(ready: Ready) -> list[Done]:
    return ask_a_worker_without(ready, RECALL_REDIS_URL=closed("redis://"))


@case("`items load --wait`", "Redis does not answer")
def _(ready: Ready) -> list[Done]:
    load = ["items", "load", "items.jsonl", "--wait"]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        return [
            ready.place.with_(RECALL_REDIS_URL=closed("redis://")).recall(*load),
            ready.place.with_(RECALL_REDIS_URL=address, RECALL_STORE_TIMEOUT_MS="1000").recall(*load),
        ]


@case("`items load --wait`", "no bundle is active")
def _(ready: Ready) -> list[Done]:
    return asyncio.run(ready.without_bundle()).each(["items", "load", "items.jsonl", "--wait"])


@case("`model fit`", "Redis does not answer: a local pointer, which `up` carries over")
def _(idle: Place) -> list[Done]:
    done = idle.recall(*FIT)
    assert (idle.data / "active.json").exists()
    return [done]


@case("`worker`", "no bundle is active")
def _(ready: Ready) -> list[Done]:
    return asyncio.run(ready.without_bundle()).each(*(["worker", kind] for kind in AGENT_KINDS))


@case("`worker all`", "no bundle is active")
def _(ready: Ready) -> list[Done]:
    return asyncio.run(ready.without_bundle()).each(["worker", "all"])


@case("`worker`", "the active bundle's folder is gone")
def _(ready: Ready) -> list[Done]:
    copy = ready.place.folder / "copy"
    asyncio.run(views.activate(ready.settings, copy, ready.bundle.version))
    return ready.place.each(["worker", "items"], ["worker", "recall"])


@case("`worker`", "a file of the bundle was changed")
def _(ready: Ready) -> list[Done]:
    copy = ready.place.folder / "copy"
    shutil.copytree(ready.bundle.path, copy)
    (copy / "user_tower.onnx").write_bytes(b"other")
    asyncio.run(views.activate(ready.settings, copy, ready.bundle.version))
    return ready.place.each(["worker", "items"], ["worker", "recall"])


@case("`worker`", "the topics do not exist")
def _(ready: Ready) -> list[Done]:
    return ready.fresh().each(*(["worker", kind] for kind in AGENT_KINDS))


@case("`worker`", "`item-updates` was made anew under an item table that knows more of it")
def _(ready: Ready) -> list[Done]:
    asyncio.run(store_item(ready, ItemRecord("i0", partition=0, offset=900)))
    sent = ready.place.recall("send", "items", "items.jsonl")
    assert sent.code == 0, sent
    return ready.place.each(["worker", "items"])


async def store_item(ready: Ready, record: ItemRecord) -> None:
    """As an items worker that had read so far."""
    client = connect(ready.settings)
    table = RedisItemTable(client, ready.settings, ready.settings.collection(ready.bundle.version))
    assert await table.write([record], [None]) == [True]
    await client.aclose()


@case("`worker`, `worker all --one-process`", "`web_port` is taken")
def _(ready: Ready) -> list[Done]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = ready.place.with_(RECALL_WEB_PORT=str(taken.getsockname()[1]))
        return place.each(["worker", "recall"], ["worker", "all", "--one-process"])


@case("`worker all`", "`web_port` is taken")
def _(ready: Ready) -> list[Done]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return ready.place.with_(RECALL_WEB_PORT=str(taken.getsockname()[1])).each(["worker", "all"])


@case("`worker`", "a backend does not answer: waits for it; at SIGTERM")
def _(ready: Ready) -> list[Done]:
    without = {
        "activity": {"RECALL_REDIS_URL": closed("redis://")},
        "items": {"RECALL_MILVUS_URI": closed("http://")},
        "recall": {"RECALL_KAFKA_BOOTSTRAP": closed()},
    }
    workers = [ready.place.with_(**missing).start("worker", kind) for kind, missing in without.items()]
    for worker in workers:
        worker.until("dependency failed")
        worker.signal(signal.SIGTERM)
    return [worker.done() for worker in workers]


# what would lose data, and a Milvus that only one process can open


def losing(ready: Ready) -> Place:
    """A place whose topic of items deletes them with time."""
    topic = ready.settings.topic("item-updates")

    async def alter() -> None:
        admin = admin_client(ready.settings)
        async with connected(ready.settings, admin):
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"cleanup.policy": "delete"})])

    asyncio.run(alter())
    return ready.place


@case("`doctor`", "all is well")
def _(ready: Ready) -> list[Done]:
    return ready.place.each(["doctor"])


@case("`doctor`", "a topic would lose data")
def _(ready: Ready) -> list[Done]:
    return losing(ready).each(["doctor"], ["doctor", "--json"])


@case("`topics apply`", "a topic would lose data")
def _(ready: Ready) -> list[Done]:
    return losing(ready).each(["topics", "apply"], ["topics", "apply", "--json"])


@case("`worker`", "a topic would lose data")
def _(ready: Ready) -> list[Done]:
    return losing(ready).each(["worker", "items"])


@case("`worker all`", "a topic would lose data")
def _(ready: Ready) -> list[Done]:
    return losing(ready).each(["worker", "all"])


@case("`worker --allow-unsafe`", "a topic would lose data; Ctrl-C")
def _(ready: Ready) -> list[Done]:
    worker = losing(ready).start("worker", "items", "--allow-unsafe")
    worker.until("worker ready")
    return [worker.signal().done()]


@case("`worker all`", "`milvus_uri` is a file")
def _(ready: Ready) -> list[Done]:
    return ready.place.with_(RECALL_MILVUS_URI=str(ready.place.folder / "items.db")).each(["worker", "all"])


@case("`worker`, `worker all --one-process`", "another process has the file of `milvus_uri` open")
def _(ready: Ready) -> list[Done]:
    place = ready.place.with_(RECALL_MILVUS_URI=str(ready.place.folder / "items.db"))
    first = place.start("worker", "items")
    try:
        first.until("worker ready")
        return place.each(["worker", "items"], ["worker", "all", "--one-process"])
    finally:
        ended = first.signal().done()
        assert ended.code == 0, ended


# Ctrl-C


@case(
    "`ask`, `send`, `model fit`, `items load --wait`, `users load`, `users forget --wait`", "Ctrl-C before it is done"
)
def _(ready: Ready) -> list[Done]:
    place = ready.place
    commands = [
        place.start("ask", "u", "--timeout-ms", "60000"),
        place.start("send", "activity"),
        place.start("items", "load", "items.jsonl", "--wait"),
        place.start("model", "fit", "--data", "generated", "--polish", "--no-activate"),
        place.start("users", "load", "-"),
        place.start("users", "forget", "u", "--wait"),
    ]
    asyncio.run(_until_sent(ready.settings))
    for command in commands:
        if {"activity", "-"} & {command.arguments[-1]}:
            _until_reading(command)
    time.sleep(1)  # fitting gives no sign
    return [command.signal().done() for command in commands]


async def _until_sent(settings: Settings) -> None:
    """Wait until request, items and tombstone are in their topics: then the others are at work as well."""
    end = time.monotonic() + 60
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka_bootstrap)
    async with connected(settings, consumer):
        for topic in ("recall-requests", "item-updates", "user-activity"):
            partitions = [TopicPartition(settings.topic(topic), number) for number in range(settings.partitions)]
            while not any((await consumer.end_offsets(partitions)).values()):
                assert time.monotonic() < end
                await asyncio.sleep(0.1)


def _until_reading(command: Running) -> None:
    """Wait until it has read an empty line from standard input."""
    assert command.process.stdin is not None
    command.process.stdin.write("\n")
    command.process.stdin.flush()
    end = time.monotonic() + 60
    while any(fcntl.ioctl(command.process.stdin, termios.FIONREAD, bytes(4))):
        assert time.monotonic() < end, command.arguments
        time.sleep(0.05)


@case("`watch`", "Ctrl-C")
def _(ready: Ready) -> list[Done]:
    watch = ready.place.start("watch")
    watch.until("listening to")
    return [watch.signal().done()]


@case("`worker`, `worker all`, `worker all --one-process`", "Ctrl-C")
def _(ready: Ready) -> list[Done]:
    alone, all_, one_process = (
        ready.place.start("worker", *arguments) for arguments in (["recall"], ["all"], ["all", "--one-process"])
    )
    alone.until("worker ready")
    all_.until("worker recall: pid", "stdout")
    one_process.until("worker ready")
    return [running.signal().done() for running in (alone, all_, one_process)]
