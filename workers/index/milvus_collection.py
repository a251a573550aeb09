"""Collections in Milvus: create, load, verify. The worker that writes creates; one that searches only opens."""

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any

import msgspec
import structlog

from workers.errors import ConfigurationError, DependencyUnavailable, RowRefused
from workers.index import milvus_wire as wire
from workers.index.adapter import IndexAdapter
from workers.index.milvus import MilvusItemIndex
from workers.index.milvus_client import DEPENDENCY, NOT_FOUND, NOT_FOUND_BEFORE_2_3, MilvusClient
from workers.index.milvus_protocol import milvus_pb2, schema_pb2
from workers.index.schema import ATTRIBUTES, EMBEDDING, ITEM_HASH, ITEM_ID, SCHEMA_FORMAT, Collection
from workers.settings import Settings

SLOW_CALL_S = 30.0
LOAD_WITHIN_S = 120.0
NLIST = "nlist"
COMPACT_AGAIN_S = 10.0
STAMP = "recall"  # the property that holds the stamp in Lite, which drops descriptions
FIELD_TYPES = {ITEM_ID: "VarChar", ITEM_HASH: "Int64", EMBEDDING: "FloatVector", ATTRIBUTES: "JSON"}

log = structlog.get_logger()


class _Stamp(msgspec.Struct):
    """What a collection says about itself, in its description."""

    model_version: str
    schema_format: int


async def prepare_index(settings: Settings, collection: Collection, rows_hint: int) -> MilvusItemIndex:
    """Open a collection, created first when it does not exist. Idempotent; several workers may do it at once.

    `rows_hint` is how many items it is to hold: it decides FLAT or HNSW when the collection is created, not later.
    Raises DependencyUnavailable, DependencyTimeout, ConfigurationError (what exists is not this collection).
    """
    client = MilvusClient(settings)
    try:
        lite = await _is_lite(client)
        if await _describe(client, collection) is None:
            await _make(
                client, "CreateCollection", _create_request(collection, lite), lambda: _describe(client, collection)
            )
        if await _index(client, collection) is None:
            request = _index_request(settings, collection, rows_hint)
            await _make(client, "CreateIndex", request, lambda: _index(client, collection))
        return await _open(client, settings, collection, rows_hint, lite)
    except BaseException:
        await client.close()
        raise


async def open_index(settings: Settings, collection: Collection) -> MilvusItemIndex:
    """Open a collection for searching.

    Raises DependencyUnavailable while it does not exist (the items worker makes it), DependencyTimeout,
    ConfigurationError (what exists is not this collection).
    """
    client = MilvusClient(settings)
    try:
        return await _open(client, settings, collection, 0, await _is_lite(client))
    except BaseException:
        await client.close()
        raise


async def exists(settings: Settings, collection: Collection) -> bool:
    """Whether a collection of that name is there. Raises DependencyUnavailable, DependencyTimeout."""
    client = MilvusClient(settings)
    try:
        return await _describe(client, collection) is not None
    finally:
        await client.close()


async def seal(settings: Settings, collection: Collection) -> None:
    """After a bulk load: close the growing segments and wait until their rows are indexed. Raises DependencyError."""
    client = MilvusClient(settings)
    try:
        request = milvus_pb2.FlushRequest(collection_names=[collection.name])
        await client.call("Flush", request, LOAD_WITHIN_S)
        describe = milvus_pb2.DescribeIndexRequest(collection_name=collection.name, field_name=EMBEDDING)
        async with asyncio.timeout(LOAD_WITHIN_S):
            while any(
                description.pending_index_rows or description.indexed_rows < description.total_rows
                for description in (await client.call("DescribeIndex", describe, SLOW_CALL_S)).index_descriptions
            ):
                await asyncio.sleep(0.2)
    except TimeoutError as error:
        raise DependencyUnavailable(DEPENDENCY, f"{collection.name}: not indexed after {LOAD_WITHIN_S:g} s") from error
    finally:
        await client.close()


async def merged(settings: Settings, collection: Collection, within_s: float) -> int:
    """Ask for small segments to be merged; wait until searches use the one that is left; how many they use then.

    Every segment has a graph of its own that each search walks: six take more than twice the time of one. Rows are
    searched in segments that are not listed, without a graph, until those that are stored take over. Lite, which does
    not tell, merges by itself: 0 then. Raises DependencyError.
    """
    client = MilvusClient(settings)
    try:
        described = await _describe(client, collection)
        if described is None:
            raise DependencyUnavailable(DEPENDENCY, f"collection {collection.name} does not exist yet")
        if await _is_lite(client):
            return 0
        request = milvus_pb2.ManualCompactionRequest(collectionID=described.collectionID)
        end, ask_at = monotonic() + within_s, 0.0
        while True:
            used = await _segments(client, "GetQuerySegmentInfo", collection)
            stored = await _segments(client, "GetPersistentSegmentInfo", collection)
            if (len(used) == 1 and used == stored) or monotonic() > end:
                return len(used)
            if len(stored) > 1 and monotonic() > ask_at:  # again: what is being sealed or indexed is left out
                await client.call("ManualCompaction", request, SLOW_CALL_S)
                ask_at = monotonic() + COMPACT_AGAIN_S
            await asyncio.sleep(0.5)
    finally:
        await client.close()


async def _segments(client: MilvusClient, call: str, collection: Collection) -> set[int]:
    """Those that searches use, or those that are stored."""
    request = getattr(milvus_pb2, f"{call}Request")(collectionName=collection.name)
    return {info.segmentID for info in (await client.call(call, request, SLOW_CALL_S)).infos}


async def verified_index(client: MilvusClient, collection: Collection) -> dict[str, str] | None:
    """The parameters of the vector index of a collection that is what the bundle needs; None while there is none yet.

    Raises DependencyUnavailable, DependencyTimeout, ConfigurationError (what exists is not this collection).
    """
    described, index = await _describe(client, collection), await _index(client, collection)
    if described is None or index is None:
        return None
    _verify(described, index, collection)
    return index


async def _is_lite(client: MilvusClient) -> bool:
    response = await client.call_unchecked("GetVersion", milvus_pb2.GetVersionRequest(), SLOW_CALL_S)
    return bool(response.version.startswith(wire.LITE_VERSION))


async def _open(
    client: MilvusClient, settings: Settings, collection: Collection, rows: int, lite: bool
) -> MilvusItemIndex:
    """Verify, load, and tell when a FLAT collection has outgrown its kind."""
    index = await verified_index(client, collection)
    if index is None:
        raise DependencyUnavailable(DEPENDENCY, f"collection {collection.name} does not exist yet")
    await _slow(client, "LoadCollection", wire.load_request(collection.name))
    await _loaded(client, collection)
    if index["index_type"] == "FLAT" and settings.index_type == "auto" and rows > 2 * settings.index_flat_below:
        log.warning(
            "a FLAT collection has grown large, a new view would use HNSW", collection=collection.name, rows=rows
        )
    timeout_s = settings.index_timeout_ms / 1000
    kind, lists = index["index_type"], _lists(index)
    probes = (settings.index_nprobe, lists) if kind == "IVF_FLAT" and lists else None
    return MilvusItemIndex(client, collection, kind, settings.index_ef, timeout_s, lite=lite, probes=probes)


def _lists(index: dict[str, str]) -> int:
    """How many lists an index was made with; 0 for one that has none."""
    return int(index.get(NLIST) or msgspec.json.decode(index.get("params", "{}")).get(NLIST) or 0)


async def _describe(client: MilvusClient, collection: Collection) -> Any | None:
    request = milvus_pb2.DescribeCollectionRequest(collection_name=collection.name)
    response = await client.call_unchecked("DescribeCollection", request, SLOW_CALL_S)
    if response.status.code == NOT_FOUND or response.status.error_code == NOT_FOUND_BEFORE_2_3:
        return None
    if response.status.code or response.status.error_code:
        raise DependencyUnavailable(DEPENDENCY, f"DescribeCollection: {response.status.reason}")
    return response


async def _index(client: MilvusClient, collection: Collection) -> dict[str, str] | None:
    """The parameters of the vector index, None when there is no index or no collection."""
    request = milvus_pb2.DescribeIndexRequest(collection_name=collection.name, field_name=EMBEDDING)
    response = await client.call_unchecked("DescribeIndex", request, SLOW_CALL_S)
    for description in response.index_descriptions:
        if description.field_name == EMBEDDING:
            return {pair.key: pair.value for pair in description.params}
    return None


async def _slow(client: MilvusClient, method: str, request: Any) -> None:
    """A call that changes the collection; what the server refuses here is a matter of configuration."""
    try:
        await client.call(method, request, SLOW_CALL_S)
    except RowRefused as error:
        raise ConfigurationError(str(error)) from error


async def _make(client: MilvusClient, method: str, request: Any, find: Callable[[], Awaitable[Any]]) -> None:
    """Create something; Lite refuses it when another worker was quicker, which is as good."""
    try:
        await _slow(client, method, request)
    except DependencyUnavailable:
        if await find() is None:
            raise


async def _loaded(client: MilvusClient, collection: Collection) -> None:
    request = milvus_pb2.GetLoadingProgressRequest(collection_name=collection.name)
    try:
        async with asyncio.timeout(LOAD_WITHIN_S):
            while True:
                response = await client.call("GetLoadingProgress", request, SLOW_CALL_S)
                if response.progress >= 100:
                    return
                await asyncio.sleep(0.05)
    except TimeoutError as error:
        line = f"collection {collection.name} is not loaded after {LOAD_WITHIN_S:g} s"
        raise DependencyUnavailable(DEPENDENCY, line) from error


def _create_request(collection: Collection, lite: bool) -> Any:
    stamp = msgspec.json.encode(_Stamp(model_version=collection.model_version, schema_format=SCHEMA_FORMAT)).decode()
    return milvus_pb2.CreateCollectionRequest(
        collection_name=collection.name,
        schema=_schema(collection, stamp).SerializeToString(),
        consistency_level=wire.BOUNDED,
        properties=wire.pairs(**{STAMP: stamp}) if lite else [],
    )


def _schema(collection: Collection, stamp: str) -> Any:
    field = schema_pb2.FieldSchema
    types = {name: schema_pb2.DataType.Value(kind) for name, kind in FIELD_TYPES.items()}
    return schema_pb2.CollectionSchema(
        name=collection.name,
        description=stamp,
        fields=[
            field(name=ITEM_ID, is_primary_key=True, data_type=types[ITEM_ID], type_params=wire.pairs(max_length=256)),
            field(name=ITEM_HASH, data_type=types[ITEM_HASH]),
            field(name=EMBEDDING, data_type=types[EMBEDDING], type_params=wire.pairs(dim=collection.dim)),
            field(name=ATTRIBUTES, data_type=types[ATTRIBUTES]),
        ],
    )


def _index_request(settings: Settings, collection: Collection, rows_hint: int) -> Any:
    index_type = settings.index_type
    if index_type == "auto":
        index_type = "FLAT" if rows_hint < settings.index_flat_below else "HNSW"
    build = {
        "HNSW": {"M": settings.index_m, "efConstruction": settings.index_ef_construction},
        "IVF_FLAT": {NLIST: settings.index_nlist},
    }.get(index_type, {})
    return milvus_pb2.CreateIndexRequest(
        collection_name=collection.name,
        field_name=EMBEDDING,
        index_name=EMBEDDING,
        extra_params=wire.pairs(index_type=index_type, metric_type=collection.metric, params=build),
    )


def _verify(described: Any, index: dict[str, str], collection: Collection) -> None:
    """Raise ConfigurationError, one line, unless the collection that exists is the one that the bundle needs."""
    fields = {field.name: field for field in described.schema.fields}
    types = {name: schema_pb2.DataType.Name(field.data_type) for name, field in fields.items()}
    if types != FIELD_TYPES or not fields[ITEM_ID].is_primary_key:
        raise ConfigurationError(f"Milvus collection {collection.name} has other fields: {types}")
    try:
        properties = {pair.key: pair.value for pair in described.properties}
        stamp = msgspec.json.decode(described.schema.description or properties.get(STAMP, ""), type=_Stamp)
    except msgspec.DecodeError as error:
        raise ConfigurationError(f"Milvus collection {collection.name} was not made by a recall worker") from error
    parameters = {pair.key: pair.value for pair in fields[EMBEDDING].type_params}
    found = (stamp.schema_format, int(parameters["dim"]), index["metric_type"], stamp.model_version)
    wanted = (SCHEMA_FORMAT, collection.dim, collection.metric, collection.model_version)
    names = ("schema format", "dimension", "metric", "model version")
    for name, is_now, should_be in zip(names, found, wanted, strict=True):
        if is_now != should_be:
            raise ConfigurationError(
                f"Milvus collection {collection.name} has {name} {is_now}, the bundle needs {should_be}"
            )


ADAPTER = IndexAdapter(prepare_index, open_index, exists=exists)
