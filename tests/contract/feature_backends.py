"""Every feature source with a real server behind it, and between the two a proxy that can be slow or gone."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis.asyncio
from pydantic import SecretStr

from tests.backends.feast import Feast, push
from tests.backends.registry import OURS, chosen
from tests.chaos.proxy import Proxy
from workers.feature_sources import FeatureSourceSettings
from workers.features.opening import open_source
from workers.local.process import end, free_ports, spawn
from workers.ports import FeatureSource
from workers.settings import Settings

ROOT = Path(__file__).parents[2]
START_WITHIN_S = 20.0
PATIENT_MS = 10_000


class Backend(ABC):
    """One kind of source. `put` writes values, `open` opens an adapter that reaches them through `proxy`."""

    kind: str
    proxy: Proxy

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.folder = folder
        self.opened: list[FeatureSource] = []
        self.direct = False  # past the proxy

    async def start(self) -> None:
        self.port = await self.serve()
        self.proxy = Proxy(free_ports(1)[0], self.port)
        await self.proxy.start()

    async def stop(self) -> None:
        for source in self.opened:
            await source.close()
        await self.proxy.stop()

    @property
    def reached(self) -> int:
        """The port that adapters are given."""
        return self.port if self.direct else self.proxy.port

    @abstractmethod
    async def serve(self) -> int:
        """Start the server, or find it; its port."""

    @abstractmethod
    async def put(self, users: Mapping[str, Mapping[str, Any]]) -> None:
        """These users have these values, and nobody else has any."""

    @abstractmethod
    def declared(self) -> dict[str, Any]:
        """The source's settings."""

    def open(self, timeout_ms: int = PATIENT_MS) -> FeatureSource:
        declared = FeatureSourceSettings(kind=self.kind, timeout_ms=timeout_ms, **self.declared())
        source = open_source(self.settings.model_copy(update={"sources": {"shop": declared}}), "shop")
        self.opened.append(source)
        return source


class RedisBackend(Backend):
    kind = "redis"

    async def serve(self) -> int:
        url = self.settings.redis_url.get_secret_value()
        self.prefix = f"{self.settings.namespace}:shop:"
        self.client = redis.asyncio.from_url(url)
        return urlsplit(url).port or 6379

    async def put(self, users: Mapping[str, Mapping[str, Any]]) -> None:
        pipeline = self.client.pipeline()
        for user_id, values in users.items():
            for name, value in values.items():
                pipeline.hset(f"{self.prefix}{user_id}", name, value if isinstance(value, str) else json.dumps(value))
        await pipeline.execute()

    def declared(self) -> dict[str, Any]:
        return {"url": SecretStr(f"redis://127.0.0.1:{self.reached}/0"), "prefix": self.prefix}

    async def stop(self) -> None:
        await super().stop()
        await self.client.aclose()


class ServedBackend(Backend):
    """A server of ours as a process."""

    script: Path

    async def serve(self) -> int:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file, (port,) = self.folder / "values.json", free_ports(1)
        await self.put({})
        self.process = started(self.argv(port), self.folder / "log", port)
        return port

    @abstractmethod
    def argv(self, port: int) -> list[str]: ...

    def write(self, content: Any) -> None:
        changing = self.file.with_suffix(".changing")
        changing.write_text(json.dumps(content))
        changing.rename(self.file)

    async def stop(self) -> None:
        await super().stop()
        end(self.process, 5.0)


class HttpBackend(ServedBackend):
    kind = "http"

    def argv(self, port: int) -> list[str]:
        return [sys.executable, str(ROOT / "deploy/examples/feature_server.py"), str(self.file), "--port", str(port)]

    async def put(self, users: Mapping[str, Mapping[str, Any]]) -> None:
        self.write(users)

    def declared(self) -> dict[str, Any]:
        return {"url": SecretStr(f"http://127.0.0.1:{self.reached}")}


class FeastBackend(ServedBackend):
    kind = "feast"
    features = ("tier", "age", "tags", "ratio", "vip", "mood")

    def argv(self, port: int) -> list[str]:
        return [sys.executable, str(ROOT / "tests/feast_server.py"), str(self.file), str(port)]

    async def put(self, users: Mapping[str, Mapping[str, Any]]) -> None:
        features = [*self.features, "old_age"]
        services = {"for_recall": [f"shop:{name}" for name in features]}
        self.write({"views": {"shop": {"features": features, "rows": users}}, "services": services})

    def declared(self) -> dict[str, Any]:
        return {"url": SecretStr(f"http://127.0.0.1:{self.reached}"), "feature_view": "shop"}


def started(argv: list[str], log: Path, port: int) -> "subprocess.Popen[bytes]":
    """A server process that listens at its port."""
    process = spawn(argv, log, log.parent)
    deadline_s = time.monotonic() + START_WITHIN_S
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline_s, log.read_text()
        time.sleep(0.02)


class RealFeast(FeastBackend):
    """`feast serve`, started once for all tests, on a Redis of its own."""

    def __init__(self, settings: Settings, folder: Path, started: Feast) -> None:
        super().__init__(settings, folder)
        self.feast = started

    async def serve(self) -> int:
        return self.feast.port

    async def put(self, users: Mapping[str, Mapping[str, Any]]) -> None:
        """All users with the same values go in one push: a column that holds null and numbers is one of floats."""
        store = redis.asyncio.Redis(port=self.feast.redis_port)
        await store.flushdb()
        await store.aclose()
        alike: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
        for user_id, values in users.items():
            alike.setdefault(tuple(values), {})[user_id] = dict(values)
        for group in alike.values():
            self.post(push(group, list(self.features)))

    def post(self, body: dict[str, Any]) -> None:
        url = f"http://127.0.0.1:{self.feast.port}/push"
        asked = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
        with urllib.request.urlopen(asked, timeout=30) as answer:  # noqa: S310  # of our own making
            assert answer.status == 200

    async def stop(self) -> None:
        await Backend.stop(self)


KINDS: dict[str, type[Backend]] = {"redis": RedisBackend, "http": HttpBackend, "feast": FeastBackend}


def kinds(config: pytest.Config) -> list[str]:
    """Those that a run is about: all of ours, or the real one."""
    name = chosen(config)
    return list(KINDS) if name == OURS else [name]


@asynccontextmanager
async def serving(kind: str, settings: Settings, folder: Path, started: Feast | None) -> AsyncIterator[Backend]:
    """A backend of a kind, ours or the real one."""
    backend = KINDS[kind](settings, folder) if started is None else RealFeast(settings, folder, started)
    try:
        await backend.start()
        yield backend
    finally:
        await backend.stop()
