"""What a scene makes of a list: its sources, quotas, caps and seen rule; deeper searches, reuse, and last lists."""

import asyncio
from collections import Counter

import numpy as np
import pytest

from schemas import codec
from schemas.items import ItemUpdate
from schemas.recall import CandidateList, FilterClause
from schemas.records import ItemRecord, UserRecord, hash64_each
from tests.integration.recall_system import ITEMS, Broken, System, ask, short
from workers.breaker import STRIKES
from workers.clock import SystemClock
from workers.dependencies import Dependencies
from workers.merge import forget
from workers.metrics import Metrics
from workers.ports import Hits, IndexRows, UserChange
from workers.remembered import LastLists
from workers.stores.vector_cache import VectorCache

YEAR = [FilterClause(field="year", op="ge", value=1980)]
REUSE_MS = 60_000
MORE = {"more": {"sources": {"similar": {}}}}
MIXED = {"sources": {"tower": {}, "session": {"weight": 0.5}, "popular": {"weight": 0.5, "at_least": 3}}}


class Counting:
    """The index, counting searches and remembering how deep each went."""

    def __init__(self, system: System) -> None:
        self._index = system.index
        self.depths: list[int] = []

    async def search(self, vectors, k, where=()) -> Hits:
        self.depths.append(k)
        return await self._index.search(vectors, k, where)


def newcomers(answer: CandidateList, *seen: str) -> list[str]:
    return [item_id for item_id in answer.item_ids if item_id not in seen]


async def test_similar_items_are_nearest_to_the_mean_of_the_anchors(system: System) -> None:
    anchors = ["film-7", "film-9"]
    (answer,) = await system.pipeline(scenes=MORE).run([ask(scene="more", anchor_items=anchors, k=20)])
    expected = [i for i in system.nearest(system.liked_vector(*anchors)) if i not in {*anchors, "film-3"}]
    assert answer.item_ids == expected[:20]
    assert answer.sources == ["similar"] * 20


async def test_a_session_is_the_newest_items_of_the_last_sitting(system: System) -> None:
    session_ms = system.bundle.spec.history.session_ms
    await system.like("guest", ["film-1", "film-2"], ago_ms=2 * session_ms)
    await system.like("guest", ["film-20", "film-21"])
    scenes = {"now": {"sources": {"session": {}}}}
    (answer,) = await system.pipeline(scenes=scenes).run([ask("guest", scene="now", k=20)])
    liked = {"film-1", "film-2", "film-20", "film-21"}
    expected = [i for i in system.nearest(system.liked_vector("film-20", "film-21")) if i not in liked]
    assert answer.item_ids == expected[:20]


async def test_a_source_that_has_nothing_to_go_by_brings_nothing(system: System) -> None:
    scenes = {"now": {"sources": {"session": {}}}, "mixed": MIXED}
    pipeline = system.pipeline(scenes=scenes)
    alone, mixed = await pipeline.run([ask("nobody", scene="now"), ask("nobody", scene="mixed")])
    assert (alone.status, alone.reasons, alone.item_ids) == ("ok", ["cold_start", "short_list"], [])
    assert (mixed.status, len(mixed.item_ids)) == ("ok", 10)
    assert not any("session" in source for source in mixed.sources)


async def test_unknown_anchors_bring_nothing_but_what_the_scene_has(system: System) -> None:
    (answer,) = await system.pipeline().run([ask("nobody", anchor_items=["no-such-film"])])
    assert (answer.status, set(answer.sources)) == ("ok", {"tower"})


async def test_a_merged_list_says_where_each_came_from(system: System) -> None:
    (answer,) = await system.pipeline(scenes={"mixed": MIXED}).run([ask(scene="mixed", k=20)])
    assert answer.status == "ok"
    assert len(answer.item_ids) == len(set(answer.item_ids)) == 20
    assert (np.diff(answer.scores) <= 0).all()
    assert "film-3" not in answer.item_ids
    popular = [i for i, source in zip(answer.item_ids, answer.sources, strict=True) if "popular" in source]
    assert {"film-5", "film-10", "film-11"} <= set(popular)
    assert answer.removed.duplicate > 0
    assert any("+" in source for source in answer.sources)


async def test_the_filter_of_the_scene_holds_for_every_source(system: System) -> None:
    scenes = {"mixed": MIXED | {"filter": [{"field": "year", "op": "ge", "value": 1980}]}}
    (answer,) = await system.pipeline(scenes=scenes).run([ask("nobody", scene="mixed", k=20)])
    years = dict(zip(system.dataset.item_ids, (each["year"] for each in system.dataset.attributes), strict=True))
    assert answer.item_ids
    assert min(years[item_id] for item_id in answer.item_ids) >= 1980


@pytest.mark.parametrize("sources", [{"tower": {}}, MIXED["sources"]], ids=["one", "three"])
async def test_caps_hold_and_the_list_keeps_its_k(system: System, sources: dict[str, object]) -> None:
    scenes = {"varied": {"sources": sources, "at_most": {"genres": 4}}}
    genres = {i: each["genres"] for i, each in zip(system.dataset.item_ids, system.dataset.attributes, strict=True)}
    (answer,) = await system.pipeline(scenes=scenes).run([ask("nobody", scene="varied", k=12)])
    counts = Counter(genre for item_id in answer.item_ids for genre in genres[item_id])
    assert max(counts.values()) <= 4
    assert len(answer.item_ids) == 12


async def test_caps_that_cannot_be_known_do_not_cost_the_list(system: System) -> None:
    scenes = {"varied": {"at_most": {"genres": 1}}}
    (answer,) = await system.pipeline(scenes=scenes, facts=Broken()).run([ask("nobody", scene="varied")])
    assert (answer.status, answer.reasons, len(answer.item_ids)) == ("degraded", ["features_unavailable"], 10)


async def test_a_scene_may_show_what_was_seen_or_only_what_was_seen_long_ago(system: System) -> None:
    await system.like("back", ["film-30"], ago_ms=100_000)
    await system.like("back", ["film-31"], ago_ms=1000)
    scenes = {"again": {"exclude_seen": False}, "later": {"seen_window_ms": 50_000}}
    pipeline = system.pipeline(scenes=scenes)
    fields = {"k": ITEMS}
    default, again, later = await pipeline.run([ask("back", scene=s, **fields) for s in ("default", *scenes)])
    assert {"film-30", "film-31"}.isdisjoint(default.item_ids)
    assert {"film-30", "film-31"} <= set(again.item_ids)
    assert "film-30" in later.item_ids
    assert "film-31" not in later.item_ids
    (refused,) = await pipeline.run([ask("back", scene="again", exclude_seen=True, **fields)])
    assert {"film-30", "film-31"}.isdisjoint(refused.item_ids)


async def test_a_list_that_would_be_short_is_searched_again_deeper(system: System) -> None:
    """What the user has seen is just what is best: more than the first search allows for."""
    (before,) = await system.pipeline().run([ask("fan", k=ITEMS)])
    await system.like("fan", before.item_ids[:50])
    index = Counting(system)
    await system.index.upsert(_copies(system))
    (answer,) = await system.pipeline(index=index).run([ask("fan", k=60)])
    assert len(index.depths) == 2
    assert index.depths[1] > index.depths[0]
    assert (answer.status, answer.reasons, len(answer.item_ids)) == ("ok", [], 60)


def _copies(system: System) -> IndexRows:
    """As many items again, with poor vectors, so that there is enough for a list."""
    rows = [f"more-{n}" for n in range(100)]
    return IndexRows(rows, np.zeros((100, system.bundle.dim), dtype=np.float32), [{}] * 100)


async def test_a_list_is_short_only_when_there_is_no_more(system: System) -> None:
    index = Counting(system)
    (answer,) = await system.pipeline(index=index).run([ask("nobody", k=ITEMS + 1)])
    assert (answer.reasons, len(answer.item_ids)) == (["cold_start", "short_list"], ITEMS)
    assert len(index.depths) == 1  # the first search has already said that there is no more


async def test_an_equal_question_a_moment_later_is_not_searched_again(system: System) -> None:
    index = Counting(system)
    pipeline = system.pipeline(index=index, reuse_ms=REUSE_MS)
    (first,) = await pipeline.run([ask()])
    (second,) = await pipeline.run([ask(request_id="other", timeout_ms=9000)])
    assert len(index.depths) == 1
    assert second.item_ids == first.item_ids
    assert (first.timings_ms.reused, second.request_id, second.status) == (None, "other", "ok")
    assert second.timings_ms.reused is not None
    assert 0 <= second.timings_ms.reused <= REUSE_MS
    assert second.feature_age_ms is not None
    await pipeline.run([ask(k=5)])
    await pipeline.run([ask("nobody")])
    (stranger,) = await pipeline.run([ask("nobody either")])  # of both nothing is known: the same question
    assert len(index.depths) == 3
    assert stranger.reasons == ["cold_start"]


async def test_an_event_or_a_deletion_is_seen_at_once_all_the_same(system: System) -> None:
    index = Counting(system)
    pipeline = system.pipeline(index=index, reuse_ms=REUSE_MS)
    (first,) = await pipeline.run([ask()])
    await system.delete(first.item_ids[0])
    (second,) = await pipeline.run([ask()])
    assert second.timings_ms.reused is not None
    assert second.item_ids[:9] == first.item_ids[1:]
    await system.like("known", [first.item_ids[1]])
    (third,) = await pipeline.run([ask()])
    assert third.timings_ms.reused is None
    assert first.item_ids[1] not in third.item_ids


async def test_a_request_that_waits_for_an_event_does_not_take_over_what_lacks_it(system: System) -> None:
    pipeline = system.pipeline(reuse_ms=REUSE_MS)
    await pipeline.run([ask("nobody")])
    (late,) = await pipeline.run([ask("nobody", after_event_id="never-sent")])
    assert (late.status, late.reasons, late.timings_ms.reused) == ("degraded", ["features_stale"], None)


async def test_answers_that_lack_something_are_not_reused(system: System) -> None:
    pipeline = system.pipeline(tower=Broken(), reuse_ms=REUSE_MS)
    answers = [(await pipeline.run([ask()]))[0] for _ in range(2)]
    assert [answer.timings_ms.reused for answer in answers] == [None, None]


async def test_without_the_index_a_user_gets_the_last_list_without_what_changed_since(system: System) -> None:
    last = LastLists(10, 60_000)
    (before,) = await system.pipeline(last=last).run([ask(k=20)])
    gone, liked = before.item_ids[2], before.item_ids[4]
    await system.delete(gone)
    await system.like("known", [liked])
    broken = system.pipeline(last=last, index=Broken())
    cached, other, filtered = await broken.run([ask(k=20), ask("nobody"), ask(filter=YEAR)])
    assert (cached.status, cached.reasons) == ("degraded", ["index_unavailable"])
    assert cached.item_ids == newcomers(before, gone, liked)
    assert set(cached.sources) == {"cached"}
    assert (other.status, set(other.sources)) == ("degraded", {"popular"})
    assert set(filtered.sources) == {"popular"}  # another question than the one that was answered


async def test_a_last_list_is_looked_through_for_deletions_that_nobody_told_of(system: System) -> None:
    """The worker has forgotten of old deletions, or missed them."""
    last = LastLists(10, 60_000)
    (before,) = await system.pipeline(last=last).run([ask(k=20)])
    gone = before.item_ids[0]
    (stored,) = await system.table.read(hash64_each([gone]))
    system.table._records.pop(int(hash64_each([gone])[0]))
    system.facts._facts.clear()
    (cached,) = await system.pipeline(last=last, index=Broken()).run([ask(k=20)])
    assert stored is not None
    assert cached.item_ids == newcomers(before, gone)
    (unread,) = await system.pipeline(last=last, index=Broken(), facts=Broken()).run([ask(k=20)])
    assert set(unread.sources) == {"popular"}


async def test_what_other_sources_found_is_kept_when_one_fails(system: System) -> None:
    pipeline = system.pipeline(scenes={"mixed": MIXED}, tower=Broken())
    (answer,) = await pipeline.run([ask(scene="mixed")])
    assert (answer.status, answer.reasons, len(answer.item_ids)) == ("degraded", ["model_unavailable"], 10)
    found = {name for source in answer.sources for name in source.split("+")}
    assert found == {"session", "popular"}


async def test_a_scene_without_the_tower_does_not_need_it(system: System) -> None:
    scenes = {"hits": {"sources": {"popular": {}}}}
    (answer,) = await system.pipeline(scenes=scenes, tower=Broken()).run([ask(scene="hits")])
    assert (answer.status, set(answer.sources)) == ("ok", {"popular"})
    assert answer.item_ids[0] == "film-5"


async def test_a_last_list_is_held_against_what_its_items_are_now(system: System) -> None:
    last = LastLists(10, 60_000)
    (before,) = await system.pipeline(last=last).run([ask(filter=YEAR)])
    changed = before.item_ids[0]
    (stored,) = await system.table.read(hash64_each([changed]))
    assert stored is not None
    update = ItemUpdate(item_id=changed, op="upsert", timestamp_ms=1, attributes={"year": 1950})
    record = ItemRecord(changed, 0, 2000, history_vector=stored.history_vector, update=codec.encode_event(update))
    await system.table.write([record], [stored])
    await system.follower.refresh()
    (cached,) = await system.pipeline(last=last, index=Broken()).run([ask(filter=YEAR)])
    assert set(cached.sources) == {"cached"}
    assert cached.item_ids == newcomers(before, changed)


async def test_a_list_from_before_a_user_was_forgotten_is_nobodys(system: System) -> None:
    last = LastLists(10, 60_000)
    await system.pipeline(last=last).run([ask()])
    (stored,) = await system.users.records(["known"])
    assert stored is not None
    record = UserRecord.decode(stored)
    forgotten = forget(record, SystemClock().now_ms() - 500)
    change = UserChange("known", record.token, forgotten.with_token(b"forgotte").encode(), b"", replace_seen=True)
    await system.users.write([change])
    await system.like("known", ["film-9"], ago_ms=100)
    (answer,) = await system.pipeline(last=last, index=Broken()).run([ask()])
    assert (answer.reasons, set(answer.sources)) == (["index_unavailable"], {"popular"})


async def test_a_list_as_of_another_time_is_not_the_last_one(system: System) -> None:
    last = LastLists(10, 60_000)
    await system.pipeline(last=last).run([ask(timestamp_ms=SystemClock().now_ms())])
    (answer,) = await system.pipeline(last=last, index=Broken()).run([ask()])
    assert set(answer.sources) == {"popular"}


async def test_a_last_list_needs_to_know_what_was_seen_since(system: System) -> None:
    last = LastLists(10, 60_000)
    await system.pipeline(last=last).run([ask()])
    (answer,) = await system.pipeline(last=last, index=Broken(), users=Broken()).run([ask(anchor_items=["film-7"])])
    assert (answer.reasons, set(answer.sources)) == (["features_unavailable", "index_unavailable"], {"popular"})


@pytest.mark.parametrize(
    ("broken", "reasons"),
    [
        (("items",), ["features_unavailable"]),
        (("index",), ["index_unavailable"]),
        (("users", "items"), ["features_unavailable"]),
        (("users", "index"), ["features_unavailable", "index_unavailable"]),
    ],
)
async def test_a_list_by_anchors_says_which_backend_it_lacks(
    system: System, broken: tuple[str, ...], reasons: list[str]
) -> None:
    parts: dict[str, object] = {part: Broken(name="milvus" if part == "index" else "redis") for part in broken}
    if "items" in broken:
        parts["items"] = VectorCache(Broken(name="redis"), system.bundle.dim)
    (answer,) = await system.pipeline(scenes=MORE, **parts).run([ask("nobody", scene="more", anchor_items=["film-7"])])
    assert (answer.status, answer.reasons, set(answer.sources)) == ("degraded", reasons, {"popular"})


async def test_a_redis_that_hangs_is_not_held_against_the_index(system: System) -> None:
    dependencies, hangs = Dependencies("recall", Metrics()), Broken(name="redis", hangs=True)
    parts = {"users": hangs, "items": VectorCache(hangs, system.bundle.dim), "dependencies": dependencies}
    pipeline = system.pipeline(scenes=MORE, timeouts=short("users"), **parts)
    for _ in range(STRIKES):
        (answer,) = await pipeline.run([ask(scene="more", anchor_items=["film-7"])])
        assert answer.reasons == ["features_unavailable"]
    assert dependencies.breaker("milvus").open_since_s is None
    assert dependencies.breaker("redis").open_since_s is not None
    dependencies.breaker("redis").probed(answered=False)
    asked = hangs.asked
    (answer,) = await pipeline.run([ask(scene="more", anchor_items=["film-7"])])
    assert hangs.asked == asked, "nobody waits for it any more"
    assert answer.reasons == ["features_unavailable"]


async def test_anchors_in_memory_are_used_without_redis_and_do_not_speak_for_it(system: System) -> None:
    asked = ask(scene="more", anchor_items=["film-7"])
    await system.pipeline(scenes=MORE).run([asked])
    dependencies = Dependencies("recall", Metrics())
    pipeline = system.pipeline(scenes=MORE, users=Broken(name="redis"), dependencies=dependencies)
    for _ in range(STRIKES + 1):
        (answer,) = await pipeline.run([asked])
        assert (answer.reasons, set(answer.sources)) == (["features_unavailable"], {"similar"})
    assert dependencies.breaker("redis").open_since_s is not None


async def test_of_anchors_that_are_in_memory_in_part_these_are_used(system: System) -> None:
    await system.pipeline(scenes=MORE).run([ask(scene="more", anchor_items=["film-7"])])
    anchors = ["film-7", "film-9"]
    system.table.vectors = Broken(name="redis").vectors
    (answer,) = await system.pipeline(scenes=MORE).run([ask("nobody", scene="more", anchor_items=anchors)])
    expected = [i for i in system.nearest(system.liked_vector("film-7")) if i not in anchors]
    assert (answer.reasons, answer.item_ids) == (["features_unavailable"], expected[:10])


async def test_a_list_that_there_was_no_time_to_fill_is_not_said_to_be_all_there_is(system: System) -> None:
    (before,) = await system.pipeline().run([ask("fan", k=ITEMS)])
    await system.like("fan", before.item_ids[:50])
    await system.index.upsert(_copies(system))

    class Slow(Counting):
        async def search(self, vectors, k, where=()) -> Hits:
            hits = await super().search(vectors, k, where)
            if len(self.depths) == 2:
                await asyncio.Event().wait()
            return hits

    (answer,) = await system.pipeline(index=Slow(system), timeouts=short("index")).run([ask("fan", k=60)])
    assert (answer.status, answer.reasons) == ("degraded", ["index_unavailable"])
    assert 0 < len(answer.item_ids) < 60, "what the first search has found is kept"


async def test_a_whole_batch_steps_down_at_once(system: System) -> None:
    """What each would read alone is read for all."""

    class Reads:
        def __init__(self) -> None:
            self.count = 0

        def at_hand(self, hashes):
            return [None] * len(hashes)

        async def read(self, hashes):
            self.count += 1
            return await system.facts.read(hashes)

    last, reads = LastLists(100, 60_000), Reads()
    users = [f"reader-{n}" for n in range(40)]
    for user in users:
        await system.like(user, ["film-3"])
    await system.pipeline(last=last).run([ask(user) for user in users])
    answers = await system.pipeline(last=last, index=Broken(), facts=reads).run([ask(user) for user in users])
    assert {source for answer in answers for source in answer.sources} == {"cached"}
    assert reads.count == 1
