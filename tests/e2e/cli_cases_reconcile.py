"""Situations of docs/cli.md of `recall items reconcile`: what makes them true, and the commands."""

import asyncio
import socket

import numpy as np

from schemas.items import ItemUpdate
from tests.e2e.cli import Done, Place, case
from tests.e2e.cli_cases_explain import with_collection
from tests.e2e.cli_cases_live import Ready, closed, losing
from tests.e2e.cli_cases_users import without_redis
from workers.cli.items import item_messages
from workers.index.milvus_collection import open_index
from workers.index.schema import Collection
from workers.kafka_client import produce
from workers.ports import IndexRows
from workers.refill import DAY_MS
from workers.stores import keys
from workers.stores.connect import connect
from workers.stores.markers_redis import RedisMarkers

RECONCILE = ["items", "reconcile"]


def with_a_stray_row(ready: Ready, *items: str) -> Place:
    """The collection holds a row that nobody knows; the topic holds these items, not taken in yet."""
    bundle = with_collection(ready).bundle

    async def make() -> None:
        name = ready.settings.collection(bundle.version)
        settings = ready.settings.model_copy(update={"index_timeout_ms": 10_000})
        index = await open_index(settings, Collection(name, bundle.dim, bundle.metric, bundle.version))
        await index.upsert(IndexRows(["stray"], np.ones((1, bundle.dim), dtype=np.float32), [{}]))
        while await index.visible(["stray"]) != [True]:
            await asyncio.sleep(0.05)
        await index.close()
        updates = [ItemUpdate(item_id=item_id, op="upsert", timestamp_ms=1) for item_id in items]
        await produce(ready.settings, ready.settings.topic("item-updates"), item_messages(updates))

    asyncio.run(make())
    return ready.place


@case("`items reconcile`", "`--passes 0`")
def _(idle: Place) -> list[Done]:
    return idle.each([*RECONCILE, "--passes", "0"])


@case("`items reconcile`", "no bundle is active")
def _(ready: Ready) -> list[Done]:
    return asyncio.run(ready.without_bundle()).each(RECONCILE)


@case("`items reconcile`", "Redis does not answer")
def _(idle: Place) -> list[Done]:
    return without_redis(idle, *RECONCILE)


@case("`items reconcile`", "nobody listens at `kafka_bootstrap`")
def _(ready: Ready) -> list[Done]:
    return ready.place.with_(RECALL_KAFKA_BOOTSTRAP=closed()).each(RECONCILE)


@case("`items reconcile`", "Milvus does not answer")
def _(ready: Ready) -> list[Done]:
    return ready.place.with_(RECALL_MILVUS_URI=closed("http://")).each(RECONCILE)


@case("`items reconcile`", "`milvus_uri` is a file")
def _(ready: Ready) -> list[Done]:
    return ready.place.with_(RECALL_MILVUS_URI=str(ready.place.folder / "items.db")).each(RECONCILE)


@case("`items reconcile`", "no items worker has run yet")
def _(ready: Ready) -> list[Done]:
    return ready.place.each(RECONCILE)


@case("`items reconcile`", "a topic would lose data")
def _(ready: Ready) -> list[Done]:
    return losing(with_collection(ready)).each(RECONCILE)


@case("`items reconcile --allow-unsafe`", "a topic would lose data")
def _(ready: Ready) -> list[Done]:
    return losing(with_collection(ready)).each([*RECONCILE, "--allow-unsafe"])


@case("`items reconcile`", "all agree")
def _(ready: Ready) -> list[Done]:
    return with_collection(ready).place.each(RECONCILE, [*RECONCILE, "--repair", "--passes", "2"])


def with_missed_deletions(ready: Ready) -> Place:
    """Nobody has fed the view for eight days, and a worker that started has marked it; nothing is wrong with it."""
    settings = with_collection(ready).settings

    async def mark() -> None:
        client = connect(settings)
        markers = RedisMarkers(client, settings, keys.items_group(settings.collection(ready.bundle.version)))
        await markers.open(settings.partitions)
        await markers.stand()
        await client.hincrby(markers.key, "fed_ms", -8 * DAY_MS)
        assert await markers.look(7 * DAY_MS)
        await client.aclose()

    asyncio.run(mark())
    return ready.place


@case("`doctor`", "deletions were missed")
def _(ready: Ready) -> list[Done]:
    return with_missed_deletions(ready).each(["doctor"])


@case("`items reconcile`", "all agree, but deletions were missed")
def _(ready: Ready) -> list[Done]:
    return with_missed_deletions(ready).each(RECONCILE)


@case("`items reconcile --repair`", "deletions were missed, nothing is wrong")
def _(ready: Ready) -> list[Done]:
    done = with_missed_deletions(ready).each([*RECONCILE, "--repair"])
    assert "nobody has fed" not in done[0].out
    return done


@case("`items reconcile`", "something is wrong")
def _(ready: Ready) -> list[Done]:
    return with_a_stray_row(ready, "a").each(RECONCILE, [*RECONCILE, "--json"])


@case("`items reconcile --repair`", "something is wrong")
def _(ready: Ready) -> list[Done]:
    return with_a_stray_row(ready, "a").each([*RECONCILE, "--repair"])


@case("`items reconcile --repair`", "the topic holds no item, the collection does")
def _(ready: Ready) -> list[Done]:
    return with_a_stray_row(ready).each([*RECONCILE, "--repair"])


@case("`items reconcile`", "Ctrl-C before it is done")
def _(idle: Place) -> list[Done]:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        running = idle.with_(RECALL_REDIS_URL=url, RECALL_STORE_TIMEOUT_MS="60000").start(*RECONCILE)
        connection, _ = silent.accept()
        with connection:
            return [running.signal().done()]
