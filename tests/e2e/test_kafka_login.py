"""Brokers that want TLS and a login, or TLS and a certificate of the client: who has them gets in, others hear why."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.datasets.generated import generate
from schemas.activity import UserActivity
from schemas.recall import RecallRequest
from tests.certificates import certificates
from tests.conftest import PATIENT_MS, Stack
from tests.e2e.conftest import fit_small, load, prepare
from workers import topics
from workers.client import RecallClient
from workers.engine import serve
from workers.errors import ConfigurationError, DependencyUnavailable
from workers.inflight import Batch, BatchPolicy
from workers.kafka_client import admin_client, connected, group_lag, produce
from workers.live.sender import Sender
from workers.local.kafka import Kafka
from workers.local.process import free_ports
from workers.local.ready import wait_ready
from workers.local.stack import cache_dir
from workers.local.workers import WorkerProcesses, environment
from workers.settings import Settings
from workers.transport import batch_topic, create_app

USER, PASSWORD = "recall", "Tower-2-and-more"
WITHIN_S = 60

# What is said last counts. Brokers talk to each other, and the test's readiness is asked, through the open listener.
LOCKED = """
listeners=PLAINTEXT://127.0.0.1:{own},LOGIN://127.0.0.1:{login},MUTUAL://127.0.0.1:{mutual},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{own},LOGIN://127.0.0.1:{login},MUTUAL://127.0.0.1:{mutual}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,LOGIN:SASL_SSL,MUTUAL:SSL
inter.broker.listener.name=PLAINTEXT
ssl.keystore.type=PEM
ssl.keystore.location={files}/server-all.pem
ssl.truststore.type=PEM
ssl.truststore.location={files}/ca.pem
listener.name.mutual.ssl.client.auth=required
listener.name.login.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512
listener.name.login.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
user_{user}="{password}";
listener.name.login.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
"""


class Locked(Kafka):
    """Ports: open, controller, with a login, with a certificate."""

    port_count = 4
    files: Path

    def command(self) -> tuple[list[str], dict[str, str]]:
        argv, environ = super().command()
        own, controller, login, mutual = self.ports
        with (self.data / "server.properties").open("a") as properties:
            properties.write(
                LOCKED.format(
                    own=own,
                    controller=controller,
                    login=login,
                    mutual=mutual,
                    files=self.files,
                    user=USER,
                    password=PASSWORD,
                )
            )
        return argv, environ

    def _java(self, main: str, *arguments: str) -> list[str]:
        if main.endswith("StorageTool"):
            arguments = (*arguments, "--add-scram", f"SCRAM-SHA-512=[name={USER},password={PASSWORD}]")
        return super()._java(main, *arguments)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    certificates(folder, "IP:127.0.0.1")
    (folder / "server-all.pem").write_text((folder / "server.key").read_text() + (folder / "server.pem").read_text())
    return folder


@pytest.fixture(scope="module")
def server(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Locked]:
    folder = tmp_path_factory.mktemp("kafka")
    server = Locked(folder / "data", folder / "log", cache_dir())
    server.files = files
    server.prepare(print)
    server.ports = free_ports(server.port_count)
    server.start()
    server.wait_ready()
    yield server
    server.stop()


def login(server: Locked, mechanism: str = "SCRAM-SHA-512", **changed: Any) -> dict[str, Any]:
    return {
        "kafka_bootstrap": f"127.0.0.1:{server.ports[2]}",
        "kafka_security_protocol": "SASL_SSL",
        "kafka_sasl_mechanism": mechanism,
        "kafka_user": USER,
        "kafka_password": PASSWORD,
        "kafka_ca_path": str(server.files / "ca.pem"),
    } | changed


def certificate(server: Locked, **changed: Any) -> dict[str, Any]:
    return {
        "kafka_bootstrap": f"127.0.0.1:{server.ports[3]}",
        "kafka_security_protocol": "SSL",
        "kafka_ca_path": str(server.files / "ca.pem"),
        "kafka_cert_path": str(server.files / "client.pem"),
        "kafka_key_path": str(server.files / "client.key"),
    } | changed


@pytest.mark.timeout(200)
def test_the_whole_system_behind_a_login(server: Locked, stack: Stack, namespace: str, tmp_path: Path) -> None:
    dataset = generate(items=100, users=60, events=2500)
    patient = {"store_timeout_ms": PATIENT_MS, "tower_timeout_ms": PATIENT_MS, "index_timeout_ms": PATIENT_MS}
    settings = stack.settings(namespace=namespace, data_dir=tmp_path / "data", **login(server), **patient)
    asyncio.run(prepare(settings, fit_small(dataset, tmp_path / "bundles")))
    workers = WorkerProcesses(settings)
    workers.start()
    try:
        wait_ready(workers)
        asyncio.run(load(settings, dataset))
        assert asyncio.run(known(settings, dataset.item_ids[0])) == ("ok", [])
        assert workers.dead() is None
    finally:
        workers.stop()
        logs = [workers.log(kind).read_text() for kind in ("activity", "items", "recall")]
        print(*(log[-4000:] for log in logs))
    assert not [log for log in logs if PASSWORD in log]
    doctor = recall(settings, "doctor", "--probe", "--json")
    assert json.loads(doctor.stdout)["ok"], doctor.stdout
    assert PASSWORD not in doctor.stdout + doctor.stderr
    watched = recall(settings, "watch", "--from-beginning", "--limit", "1")
    assert (watched.returncode, "ok" in watched.stdout) == (0, True), watched.stderr


async def known(settings: Settings, item: str) -> tuple[str, list[str]]:
    """Status and reasons for a user of whom one click is known."""
    click = UserActivity(event_id="e", user_id="u", action="rate", timestamp_ms=1, item_id=item, value=5.0)
    async with Sender(settings) as sender, RecallClient(settings) as client:
        await sender.activities([click])
        async with asyncio.timeout(WITHIN_S):
            while True:
                answer = await client.ask(
                    RecallRequest(request_id=os.urandom(8).hex(), user_id="u", k=5, timeout_ms=20_000)
                )
                if "cold_start" not in answer.reasons:
                    return answer.status, answer.reasons
                await asyncio.sleep(0.05)


def recall(settings: Settings, *arguments: str) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-m", "workers.cli.main", *arguments]
    env = os.environ | environment(settings)
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("how", ["PLAIN", "certificate"])
async def test_a_worker_takes_records_and_commits(
    server: Locked, stack: Stack, namespace: str, tmp_path: Path, how: str
) -> None:
    arguments = certificate(server) if how == "certificate" else login(server, how)
    settings = stack.settings(namespace=namespace, data_dir=tmp_path, **arguments)
    await topics.apply(settings)
    topic, group = settings.topic("user-activity"), settings.group("locked")
    await produce(settings, topic, [(b"%d" % n, b"%d" % n, ()) for n in range(20)])
    app = create_app(group, settings, BatchPolicy())
    taken: list[bytes] = []

    async def handle(batch: Batch) -> None:
        taken.extend(record.value for record in batch.records)  # type: ignore[attr-defined]
        batch.done()

    @app.agent(batch_topic(app, topic))
    async def agent(stream: Any) -> None:
        await serve(stream, handle)

    await app.start()
    try:
        async with asyncio.timeout(WITHIN_S):
            while await group_lag(settings, group, topic):
                await asyncio.sleep(0.1)
    finally:
        await app.stop()
    assert sorted(taken, key=int) == [b"%d" % n for n in range(20)]


@pytest.mark.parametrize(
    ("how", "changed", "line"),
    [
        (login, {"kafka_password": "another"}, "invalid credentials"),
        (login, {"kafka_sasl_mechanism": "PLAIN", "kafka_user": "nobody"}, "nvalid username or password"),
        (login, {"kafka_sasl_mechanism": "SCRAM-SHA-256"}, "it does not take SCRAM-SHA-256"),
        (login, {"kafka_ca_path": "other-ca.pem"}, "certificate"),
        (login, {"kafka_ca_path": ""}, "certificate"),
        (certificate, {"kafka_cert_path": "", "kafka_key_path": ""}, "CERTIFICATE_REQUIRED"),
        (
            certificate,
            {
                "kafka_security_protocol": "PLAINTEXT",
                **dict.fromkeys(("kafka_ca_path", "kafka_cert_path", "kafka_key_path"), ""),
            },
            "does not answer",
        ),
    ],
)
async def test_who_is_not_let_in_hears_why(
    server: Locked, stack: Stack, how: Any, changed: dict[str, str], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.kafka_login.ASK_WITHIN_S", 30.0)  # a busy machine is no finding
    changed = {name: str(server.files / value) if value.endswith(".pem") else value for name, value in changed.items()}
    settings = stack.settings(**how(server, **changed))
    with pytest.raises(DependencyUnavailable, match=line) as raised:
        async with connected(settings, admin_client(settings)):
            pass
    print(raised.value)
    assert "\n" not in str(raised.value)
    assert f"127.0.0.1:{server.ports[2 if how is login else 3]}" in str(raised.value)


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"kafka_ca_path": "/nowhere.pem"}, "kafka_ca_path: /nowhere.pem: No such file or directory"),
        ({"kafka_ca_path": "server.key"}, "kafka_ca_path: .*server.key: "),
        ({"kafka_key_path": "ca.key"}, "kafka_cert_path: .*client.pem: KEY_VALUES_MISMATCH"),
    ],
)
async def test_files_that_are_of_no_use_are_named(
    server: Locked, stack: Stack, changed: dict[str, str], line: str
) -> None:
    changed = {name: value if value.startswith("/") else str(server.files / value) for name, value in changed.items()}
    settings = stack.settings(**certificate(server, **changed))
    with pytest.raises(ConfigurationError, match=line):
        admin_client(settings)
