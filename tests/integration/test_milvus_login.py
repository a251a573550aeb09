"""A Milvus that wants TLS, a certificate of the client and a login, and keeps items in a database of its own."""

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.certificates import certificates
from workers.errors import ConfigurationError, DependencyError, DependencyUnavailable
from workers.index.milvus_client import MilvusClient
from workers.index.milvus_collection import open_index, prepare_index
from workers.index.milvus_protocol import milvus_pb2
from workers.index.schema import Collection
from workers.local import milvus as local_milvus
from workers.local.milvus import Milvus
from workers.local.process import free_ports
from workers.local.stack import cache_dir
from workers.ports import IndexRows
from workers.settings import Settings, load_settings

NAME = "milvus.test"
PASSWORD = "Tower 2 & more"  # noqa: S105


class Locked(Milvus):
    """Answers without TLS no more, so it is asked whether it listens; whether it is ready is asked by who logs in."""

    def probe(self) -> bool:
        return True


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    certificates(folder, f"DNS:{NAME}")
    return folder


@pytest.fixture(scope="module")
def server(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Milvus]:
    """Milvus with authorization and TLS in both directions."""
    folder = tmp_path_factory.mktemp("milvus")
    tls = {
        "common.security.authorizationEnabled": True,
        "common.security.tlsMode": 2,
        "tls.serverPemPath": str(files / "server.pem"),
        "tls.serverKeyPath": str(files / "server.key"),
        "tls.caPemPath": str(files / "ca.pem"),
    }
    patch = pytest.MonkeyPatch()
    patch.setattr(local_milvus, "TUNING", local_milvus.TUNING | tls)
    server = Locked(folder / "data", folder / "log", cache_dir())
    server.prepare(print)
    server.ports = free_ports(server.port_count)
    server.start()
    patch.undo()
    yield server
    server.stop()


def settings_of(server: Milvus, files: Path, **changed: str) -> Settings:
    values = {
        "milvus_uri": f"https://127.0.0.1:{server.ports[0]}",
        "milvus_ca_path": str(files / "ca.pem"),
        "milvus_cert_path": str(files / "client.pem"),
        "milvus_key_path": str(files / "client.key"),
        "milvus_server_name": NAME,
        "milvus_user": "root",
        "milvus_password": "Milvus",
    }
    return load_settings(index_timeout_ms=5000, **(values | changed))


async def until_ready(settings: Settings) -> None:
    async with asyncio.timeout(90):
        while True:
            client = MilvusClient(settings)
            try:
                response = await client.call("CheckHealth", milvus_pb2.CheckHealthRequest(), 3.0)
                if response.isHealthy:
                    return
            except DependencyError as error:
                print(error)
            finally:
                await client.close()
            await asyncio.sleep(0.2)


async def call(settings: Settings, method: str, request: object) -> None:
    client = MilvusClient(settings)
    try:
        await client.call(method, request, 10.0)
    finally:
        await client.close()


@pytest.mark.timeout(200)
async def test_only_who_may_gets_in(server: Milvus, files: Path) -> None:
    default = settings_of(server, files)
    await until_ready(default)
    await call(default, "CreateDatabase", milvus_pb2.CreateDatabaseRequest(db_name="films"))
    ours = settings_of(server, files, milvus_database="films")
    collection = Collection(f"items_{uuid.uuid4().hex[:8]}", 8, "IP", "v1")
    index = await prepare_index(ours, collection, 10)
    await index.upsert(IndexRows(["a"], np.ones((1, 8), dtype=np.float32), [{}]))
    async with asyncio.timeout(20):  # a search may see it a tick before a query, or after it
        while (await index.search(np.ones((1, 8), dtype=np.float32), 3)).item_ids != [
            ["a"]
        ] or await index.count() != 1:
            await asyncio.sleep(0.05)
    await index.ping()
    await index.close()
    login = {"milvus_user": "", "milvus_password": "", "milvus_token": "root:Milvus"}
    token = settings_of(server, files, milvus_database="films", **login)
    again = await open_index(token, collection)
    assert await again.count() == 1
    await again.close()
    with pytest.raises(DependencyUnavailable, match="does not exist yet"):
        await open_index(default, collection)

    refused = {
        "password": settings_of(server, files, milvus_database="films", milvus_password=PASSWORD),
        "no login": settings_of(server, files, milvus_database="films", milvus_user="", milvus_password=""),
        "no certificate": settings_of(server, files, milvus_database="films", milvus_cert_path="", milvus_key_path=""),
        "another authority": settings_of(server, files, milvus_ca_path=str(files / "other-ca.pem")),
        "another name": settings_of(server, files, milvus_server_name="elsewhere.test"),
        "no TLS": load_settings(milvus_uri=f"http://127.0.0.1:{server.ports[0]}", index_timeout_ms=5000),
    }
    for why, settings in refused.items():
        with pytest.raises(DependencyUnavailable) as caught:
            await open_index(settings, collection)
        assert PASSWORD not in str(caught.value), why
        print(why, caught.value)


def test_files_that_cannot_be_read_are_named() -> None:
    settings = load_settings(milvus_uri="https://127.0.0.1:1", milvus_ca_path="/nowhere/ca.pem")
    with pytest.raises(ConfigurationError, match="milvus_ca_path: /nowhere/ca"):
        asyncio.run(_made(settings))


async def _made(settings: Settings) -> None:
    MilvusClient(settings)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"milvus_token": "a:b", "milvus_user": "a", "milvus_password": "b"}, "exclude each other"),
        ({"milvus_user": "a"}, "milvus_user and milvus_password go together"),
        ({"milvus_cert_path": "a"}, "milvus_cert_path and milvus_key_path go together"),
        ({"milvus_ca_path": "ca.pem"}, "milvus_ca_path is of use only with a milvus_uri that begins with https://"),
    ],
)
def test_what_does_not_go_together_is_refused(values: dict[str, str], line: str) -> None:
    with pytest.raises(ConfigurationError, match=line):
        load_settings(**values)


def test_a_password_is_never_shown() -> None:
    settings = load_settings(milvus_user="root", milvus_password=PASSWORD)
    assert settings.shown("milvus_password") == "***"
    assert settings.hide(f"denied: {PASSWORD}") == "denied: ***"
