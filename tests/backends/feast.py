"""Feast: `feast serve` on a Redis of its own as its online store, filled through its push API."""

import os
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.backends.environments import environment
from tests.backends.server import Server
from workers.errors import RecallError
from workers.local.process import end, free_ports, spawn
from workers.local.redis import find_server

VIEW = "shop"
SERVICE = "for_recall"
STORE = """project: recall
registry: registry.db
provider: local
online_store: {{ type: redis, connection_string: "127.0.0.1:{port}" }}
offline_store: {{ type: dask }}
entity_key_serialization_version: 3
"""
DEFINITIONS = """from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, ValueType
from feast.types import Array, Bool, Float32, Int64, String

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
batch = FileSource(path="users.parquet", timestamp_field="event_timestamp")
pushed = PushSource(name="user_push", batch_source=batch)
types = {"tier": String, "age": Int64, "ratio": Float32, "tags": Array(String), "vip": Bool, "mood": String}
schema = [Field(name=name, dtype=kind) for name, kind in types.items()]
shop = FeatureView(
    name="shop", entities=[user], ttl=timedelta(days=30), online=True, source=pushed, schema=schema
)
for_recall = FeatureService(name="for_recall", features=[shop])
"""
APPLY_WITHIN_S = 120.0


class Feast:
    """See Backend."""

    name = "feast"
    suites = ("tests/contract/test_feature_sources.py", "tests/integration/test_served_features.py")
    ways = ("feast",)
    versions = "Feast 0.67 (feast serve, online store in Valkey 9.1)"

    def __init__(self) -> None:
        self.port, self.redis_port = free_ports(2)
        self._redis: subprocess.Popen[bytes] | None = None
        self._server: Server | None = None

    def install(self) -> Path:
        """See Backend."""
        return environment(self.name)

    def start(self, folder: Path) -> None:
        """See Backend."""
        programs = self.install() / "bin"
        redis = [find_server()[0], "--port", str(self.redis_port), "--bind", "127.0.0.1", "--save", ""]
        self._redis = spawn([*redis, "--appendonly", "no"], folder / "redis.log", folder)
        (folder / "feature_store.yaml").write_text(STORE.format(port=self.redis_port))
        (folder / "definitions.py").write_text(DEFINITIONS)
        command = [str(programs / "feast"), "apply"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=APPLY_WITHIN_S)
        if done.returncode != 0:
            raise RecallError(f"feast apply: {done.stderr[-2000:]}")
        self._server = Server(self.name, folder)
        argv = [str(programs / "feast"), "serve", "--host", "127.0.0.1", "--port", str(self.port)]
        self._server.start(argv, f"http://127.0.0.1:{self.port}/health", os.environ)

    def settings(self, way: str) -> dict[str, object]:
        """See Backend."""
        url = f"http://127.0.0.1:{self.port}"
        return {"sources": {"shop": {"kind": way, "url": url, "feature_view": VIEW, "timeout_ms": 1000}}}

    def stop(self) -> None:
        """See Backend."""
        if self._server is not None:
            self._server.stop()
        if self._redis is not None:
            end(self._redis, 5.0)
            self._redis = None


def push(users: dict[str, dict[str, Any]], names: list[str], age_s: float = 0.0) -> dict[str, Any]:
    """The body of POST /push: values as they were `age_s` ago; what a user does not have is null."""
    then = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() - age_s))
    columns = {name: [values.get(name) for values in users.values()] for name in names}
    frame = {"user_id": list(users), "event_timestamp": [then] * len(users)} | columns
    return {"push_source_name": "user_push", "df": frame, "to": "online"}
