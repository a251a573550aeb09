"""Situations of docs/cli.md of scenes, and of `explain`: what makes them true, and the commands."""

import asyncio

from tests.e2e.cli import Done, case
from tests.e2e.cli_cases_live import Ready, closed
from workers.index.milvus_collection import prepare_index
from workers.index.schema import Collection


def with_collection(ready: Ready) -> Ready:
    """As the items worker makes it, empty."""

    async def make() -> None:
        bundle = ready.bundle
        name = ready.settings.collection(bundle.version)
        index = await prepare_index(ready.settings, Collection(name, bundle.dim, bundle.metric, bundle.version), 100)
        await index.close()

    asyncio.run(make())
    return ready


@case("`explain`", "no bundle is active")
def _(ready: Ready) -> list[Done]:
    return asyncio.run(ready.without_bundle()).each(["explain", "u"])


@case("`explain`", "Redis does not answer")
def _(ready: Ready) -> list[Done]:
    return ready.place.with_(RECALL_REDIS_URL=closed("redis://")).each(["explain", "u"])


@case("`explain`", "Milvus does not answer")
def _(ready: Ready) -> list[Done]:
    return ready.place.with_(RECALL_MILVUS_URI=closed("http://")).each(["explain", "u"])


@case("`explain`", "no items worker has run yet")
def _(ready: Ready) -> list[Done]:
    return ready.place.each(["explain", "u"])


@case("`explain`", "nothing is known of the user")
def _(ready: Ready) -> list[Done]:
    return with_collection(ready).place.each(["explain", "u"])


@case("`explain --item`", "there is no such item")
def _(ready: Ready) -> list[Done]:
    return with_collection(ready).place.each(["explain", "u", "--item", "nowhere"])


@case("`explain`", "a scene that the settings do not declare")
def _(ready: Ready) -> list[Done]:
    return with_collection(ready).place.each(["explain", "u", "--scene", "nowhere"])


@case("`explain`, `worker recall`", "a scene that does not fit the bundle")
def _(ready: Ready) -> list[Done]:
    scenes = '{"home": {"filter": [{"field": "colour", "op": "eq", "value": "red"}]}}'
    return with_collection(ready).place.with_(RECALL_SCENES=scenes).each(["explain", "u"], ["worker", "recall"])


@case("any", "a scene that cannot be read")
def _(ready: Ready) -> list[Done]:
    return ready.place.with_(RECALL_SCENES='{"home": {"sources": {"magic": {}}}}').each(["ask", "u"], ["status"])
