"""What Milvus says of itself and of a collection, for `recall doctor`. Nothing here creates or loads anything."""

import re
from dataclasses import dataclass

from workers.index import milvus_wire as wire
from workers.index.milvus_client import MilvusClient
from workers.index.milvus_collection import verified_index
from workers.index.milvus_protocol import common_pb2, milvus_pb2
from workers.index.schema import Collection
from workers.settings import Settings

TIMEOUT_S = 3.0
LITE = "milvus_lite-"


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers. `version` is empty when it names none; `ailing` says what it complains of."""

    product: str
    version: tuple[int, ...]
    ailing: str


@dataclass(frozen=True, slots=True)
class Held:
    """A collection that is what its bundle needs; `rows` is None while it is not loaded."""

    index_type: str
    rows: int | None


async def inspect_server(settings: Settings) -> Server:
    """Version and health. Raises DependencyError, ConfigurationError."""
    client = MilvusClient(settings)
    try:
        named = (await client.call("GetVersion", milvus_pb2.GetVersionRequest(), TIMEOUT_S)).version
        health = await client.call("CheckHealth", wire.health_request(), TIMEOUT_S)
    finally:
        await client.close()
    ailing = "" if health.isHealthy else "; ".join(health.reasons) or "it gives no reason"
    if named.startswith(LITE):
        return Server(f"Milvus Lite {named.removeprefix(LITE)}", (), ailing)
    found = re.match(r"v?(\d+)\.(\d+)", named)
    return Server(f"Milvus {named.removeprefix('v')}", tuple(map(int, found.groups())) if found else (), ailing)


async def inspect_collection(settings: Settings, collection: Collection) -> Held | None:
    """What a bundle's collection holds; None while there is none.

    Raises DependencyError, ConfigurationError (what exists is not this collection).
    """
    client = MilvusClient(settings)
    try:
        index = await verified_index(client, collection)
        if index is None:
            return None
        request = milvus_pb2.GetLoadStateRequest(collection_name=collection.name)
        loaded = (await client.call("GetLoadState", request, TIMEOUT_S)).state == common_pb2.LoadStateLoaded
        rows = None
        if loaded:
            counted = await client.call("Query", wire.query_request(collection.name, "", "count(*)"), TIMEOUT_S)
            rows = int(counted.fields_data[0].scalars.long_data.data[0])
        return Held(index["index_type"], rows)
    finally:
        await client.close()
