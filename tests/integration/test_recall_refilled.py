"""Answers while the item table is being filled again: `ok` never comes from vectors that are not back yet."""

from collections.abc import Sequence

import pytest

from schemas.recall import CandidateList
from schemas.records import ItemRecord, hash64_each
from tests.integration.recall_system import System, ask, plain_pipeline
from workers.settings import Settings
from workers.stores import keys
from workers.stores.connect import connect
from workers.stores.item_facts import ItemFacts
from workers.stores.item_follower import ItemFollower
from workers.stores.item_memory import MemoryItemTable
from workers.stores.item_redis import RedisItemTable
from workers.stores.markers_redis import RedisMarkers
from workers.stores.vector_cache import VectorCache

SCENES: dict[str, dict[str, object]] = {
    "like": {"sources": {"similar": {}}},
    "now": {"sources": {"session": {}}},
    "hot": {"sources": {"popular": {}}},
}
LOST = ("degraded", ["features_unavailable"])
OK = ("ok", [])


class Emptied:
    """The item table has lost everything; users, index and popular lists are there."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.full = system.table
        self.table = system.table = MemoryItemTable(system.bundle.dim, whole=False)
        system.vectors = VectorCache(self.table, system.bundle.dim)
        system.facts = ItemFacts(self.table, tuple(system.bundle.spec.filterable))
        system.follower = ItemFollower(self.table, system.vectors, system.facts)

    async def bring_back(self, *item_ids: str) -> None:
        await self.table.write(await self.records(*item_ids), [None] * len(item_ids))
        await self.system.follower.refresh()

    async def records(self, *item_ids: str) -> list[ItemRecord]:
        return [record for record in await self.full.read(hash64_each(item_ids)) if record is not None]

    async def answer(self, user_id: str = "known", **fields: object) -> CandidateList:
        (answer,) = await self.system.pipeline(scenes=SCENES).run([ask(user_id, **fields)])
        return answer


@pytest.fixture
async def emptied(system: System) -> Emptied:
    emptied = Emptied(system)
    await system.follower.refresh()
    return emptied


def said(answer: CandidateList) -> tuple[str, Sequence[str]]:
    return answer.status, answer.reasons


async def test_a_known_user_is_not_answered_as_if_nothing_were_known(emptied: Emptied) -> None:
    assert said(await emptied.answer()) == LOST
    now = await emptied.answer(scene="now")
    like = await emptied.answer(scene="like", anchor_items=["film-7"])
    assert said(now) == said(like) == LOST
    assert now.sources == like.sources == ["popular"] * 10, "the next best thing, and not an empty list"


async def test_what_needs_no_vector_is_answered_as_ever(emptied: Emptied) -> None:
    assert said(await emptied.answer(scene="hot")) == OK
    assert said(await emptied.answer("nobody")) == ("ok", ["cold_start"])
    assert said(await emptied.answer("nobody", scene="now")) == ("ok", ["cold_start", "short_list"])


async def test_who_has_all_vectors_is_answered_as_ever(emptied: Emptied, system: System) -> None:
    await system.like("other", ["film-9"])
    await emptied.bring_back("film-3", "film-7")
    for _ in range(2):  # the second time from the cache
        known, other = await system.pipeline().run([ask(), ask("other")])
        assert (said(known), said(other)) == (OK, LOST)
    assert said(await emptied.answer(scene="now")) == OK
    assert said(await emptied.answer(scene="like", anchor_items=["film-7"])) == OK
    assert said(await emptied.answer(scene="like", anchor_items=["film-7", "film-8"])) == LOST
    await emptied.bring_back("film-9")
    assert said(await emptied.answer("other")) == OK


async def test_a_session_needs_its_own_items_only(emptied: Emptied, system: System) -> None:
    await system.like("guest", ["film-1"], ago_ms=2 * system.bundle.spec.history.session_ms)
    await system.like("guest", ["film-20"])
    await emptied.bring_back("film-20")
    assert said(await emptied.answer("guest", scene="now")) == OK
    assert said(await emptied.answer("guest")) == LOST


async def test_what_a_whole_table_does_not_know_is_unknown(emptied: Emptied, system: System) -> None:
    await system.like("known", ["no-such-film"])
    await emptied.bring_back("film-3")
    assert said(await emptied.answer()) == LOST
    emptied.table.whole = True
    assert said(await emptied.answer()) == OK
    like = await emptied.answer(scene="like", anchor_items=["no-such-film"])
    assert said(like) == ("ok", ["short_list"])


async def test_an_answer_that_lacks_vectors_is_not_used_again(emptied: Emptied, system: System) -> None:
    pipeline = system.pipeline(reuse_ms=60_000)
    (before,) = await pipeline.run([ask()])
    await emptied.bring_back("film-3")
    (after,) = await pipeline.run([ask()])
    assert (said(before), said(after), after.timings_ms.reused) == (LOST, OK, None)


async def test_the_markers_in_redis_tell(emptied: Emptied, system: System, settings: Settings) -> None:
    client, collection = connect(settings), settings.collection("v")
    table = RedisItemTable(client, settings, collection, system.bundle.dim)
    vectors = VectorCache(table, system.bundle.dim)
    await ItemFollower(table, vectors).refresh()
    parts = {"users": system.users, "table": table, "vectors": vectors, "index": system.index}
    pipeline = plain_pipeline(system.bundle, system.tower, **parts)

    async def answered() -> tuple[str, Sequence[str]]:
        (answer,) = await pipeline.run([ask()])
        return said(answer)

    assert await answered() == LOST, "nobody has fed this view yet"
    markers = RedisMarkers(client, settings, keys.items_group(collection))
    await markers.open(2)
    await markers.mark(0, "")
    assert await answered() == LOST
    await markers.mark(1, "")
    assert await answered() == OK, "film-3 is unknown"
    await client.delete(markers.key, keys.filled_whole(settings, keys.items_group(collection)))
    (record,) = await emptied.records("film-3")
    await table.write([record], [None])
    assert await answered() == OK, "its vector is there"
    await client.aclose()
