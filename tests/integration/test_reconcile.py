"""A reconciliation of what a pipeline has made of a real topic: what it finds, what is no finding, and how it mends.

Table and index are the ones in memory; the same beside a running worker, on real servers, is in tests/e2e.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest

from schemas import codec
from schemas.items import ItemUpdate
from schemas.records import ItemRecord, hash64, hash64_each
from tests.integration.reconciled import View, examples, fill, found, view
from tests.unit.test_items_in_memory import DIM
from workers.errors import RecallError
from workers.partitioner import partition_of
from workers.pipelines.items import ItemEvent
from workers.ports import ItemHeads
from workers.reconcile.examine import KINDS
from workers.reconcile.topic import ItemTopic
from workers.stores.item_memory import MemoryItemTable

__all__ = ["view"]  # a fixture

KEPT_MS = 7 * 86_400_000


async def test_a_clean_view_has_no_findings(view: View) -> None:
    await fill(view)
    report = await view.assert_clean()
    assert (report.items, report.table, report.collection, report.lag, report.compared) == (28, 28, 28, 0, 28)
    assert (await view.assert_clean(sample=10)).compared == 10
    assert (await view.assert_clean(passes=3)).items == 28


async def break_everything(view: View) -> dict[str, float]:
    """One item for each way to differ; what the index should hold."""
    before = await view.values()
    await view.index.delete(["item 5"])  # a row is gone
    view.put(None, "item 6")  # a record is gone
    await view.index.delete(["item 7"])  # both
    view.put(None, "item 7")
    await view.row("nobody's", 9)  # a row that nobody knows
    await view.row("item 2", 3)  # a row of a deleted item, by tombstone
    deleted = await view.record("item 3")
    assert deleted is not None
    older = ItemRecord("item 3", 1, 2, history_vector=deleted.history_vector, update=b"{}")
    view.put(older, "item 3")  # a record of a deleted item
    unknown = ItemUpdate(item_id="unknown", op="upsert", timestamp_ms=1, attributes={"value": 7})
    view.put(ItemRecord("unknown", 0, 3, update=codec.encode_event(unknown)), "unknown")  # a record of no event
    first = await view.record("item 0")
    assert first is not None
    view.put(ItemRecord("item 0", 0, 0, history_vector=first.history_vector), "item 0")  # an older record
    await view.row("item 1", 500)  # an older vector
    tenth = await view.record("item 10")
    assert tenth is not None
    history = np.full(DIM, 3, dtype="<f4").tobytes()  # a vector of another model
    view.put(ItemRecord("item 10", 0, tenth.offset, history_vector=history, update=tenth.update), "item 10")
    return before


@pytest.mark.parametrize("passes", [1, 3])
async def test_every_kind_is_found_and_mended(view: View, passes: int) -> None:
    await fill(view)
    records = {item_id: await view.record(item_id) for item_id in [f"item {n}" for n in range(30)]}
    before = await break_everything(view)
    report = await view.reconcile(examples=10, passes=passes)
    assert found(report) == {"missing": 3, "orphaned": 4, "stale": 1, "wrong_model": 2}
    assert {name: sorted(each[:2] for each in kind) for name, kind in examples(report).items()} == {
        "missing": [("item 5", ["collection"]), ("item 6", ["table"]), ("item 7", ["collection", "table"])],
        "orphaned": [
            ("item 2", ["collection"]), ("item 3", ["table"]), ("nobody's", ["collection"]), ("unknown", ["table"])
        ],
        "stale": [("item 0", ["table"])],
        "wrong_model": [("item 1", ["collection"]), ("item 10", ["table"])],
    }  # fmt: skip
    assert examples(report)["stale"] == [("item 0", ["table"], "0:1", "0:0")]
    assert (report.repaired, report.left) == (0, 10)
    assert await view.values() != before
    mended = await view.reconcile(repair=True, passes=passes)
    assert found(mended) == found(report)
    assert all(len(kind.examples) <= 3 for kind in mended.kinds.values())
    assert (mended.repaired, mended.left) == (10, 0)
    assert await view.values() == before
    assert {item_id: await view.record(item_id) for item_id in records} == records
    gone = await view.record("unknown")
    assert gone is not None
    assert (gone.deleted, gone.partition, gone.offset) == (True, 0, 3)
    await view.assert_clean(passes=passes)


async def test_the_record_of_a_deleted_item_may_outlive_its_tombstone_or_expire_before_it(view: View) -> None:
    await fill(view)
    view.put(ItemRecord("long gone", 0, 1, deleted=True), "long gone")
    view.put(None, "item 2")
    view.put(None, "item 3")
    await view.assert_clean()


async def test_what_is_still_to_be_taken_in_is_no_finding(view: View) -> None:
    await fill(view)
    await view.send("item 8", 99)
    await view.send("new", 1, partition=1)
    await view.send("item 9", partition=1)
    await view.index.delete(["item 8"])  # its update brings it back
    report = await view.assert_clean(repair=True)
    assert (report.lag, report.repaired) == (3, 0)
    await view.take()
    assert (await view.assert_clean()).lag == 0


async def test_a_view_that_nobody_has_ever_fed_only_lags(view: View) -> None:
    await view.send("a", 1)
    report = await view.assert_clean()
    assert (report.lag, report.items) == (1, 1)


async def test_updates_that_were_refused_are_as_if_they_had_not_come(view: View) -> None:
    """What compaction leaves of each: the refused update alone, and the record of the one before it."""
    await view.send("first", 1)
    await view.send("older", 3, version=3)
    await view.send("not finite", -1)
    await view.send("other partition", 4, partition=1)
    await view.send("never stored", -1)
    await view.send_bytes(b"garbage", b"{")
    await view.take()
    for name, version in (("older", 5), ("not finite", None), ("other partition", None)):
        update = ItemUpdate(item_id=name, op="upsert", timestamp_ms=1, attributes={"value": 8}, version=version)
        earlier = ItemEvent(name, update, codec.encode_event(update), 0, 0)
        fresh = MemoryItemTable(DIM)
        await view.pipeline(fresh).run([earlier])
        view.put((await fresh.read(hash64_each([name])))[0], name)
    garbage = ItemUpdate(item_id="garbage", op="upsert", timestamp_ms=1, attributes={"value": 8})
    view.put(ItemRecord("garbage", 0, 0, update=codec.encode_event(garbage)), "garbage")
    await view.row("garbage", 8)
    await view.row("never stored", 8)  # maybe of an update before: the topic cannot tell
    kept = {"first": 1, "never stored": 8, "older": 8, "not finite": 8, "other partition": 8, "garbage": 8}
    assert await view.values() == kept
    report = await view.assert_clean(repair=True)
    assert report.refused == 5
    await view.index.delete(["older", "garbage"])  # what stands in the table counts, and can be made anew
    report = await view.reconcile(repair=True)
    assert (found(report), report.repaired, report.left) == ({"missing": 2}, 2, 0)
    assert await view.values() == kept


@pytest.mark.parametrize("usual", [0, 1])
async def test_of_an_item_in_both_partitions_without_a_record_the_usual_one_counts(view: View, usual: int) -> None:
    """Its deletion, though an update that was refused stands in the other one; and the other way round."""
    view.partitions = 2
    names = [name for name in "abcdefgh" if partition_of(name.encode(), 2) == usual]
    gone, alive, moved = names[:3]
    for name in names[:2]:
        await view.send(name, 5, partition=usual)
    await view.send(moved, 7, partition=1 - usual)
    await view.take()
    await view.send(gone, 9, partition=1 - usual)
    await view.send(alive, op="delete", value=0, partition=1 - usual)
    await view.send(gone, op="delete", value=0, partition=usual)
    await view.send(moved, 8, partition=usual)
    await view.take()
    assert await view.values() == {alive: 5, moved: 8}
    for name in (gone, alive, moved):
        view.put(None, name)
    await view.index.delete([alive, moved])
    report = await view.reconcile(repair=True)
    assert (found(report), report.left) == ({"missing": 2}, 0)
    assert await view.values() == {alive: 5, moved: 8}
    records = [await view.record(name) for name in (alive, moved)]
    assert [record and record.partition for record in records] == [usual, usual]
    await view.row(gone, 9)
    assert found(await view.reconcile(repair=True)) == {"orphaned": 1}
    assert await view.values() == {alive: 5, moved: 8}


async def test_an_item_of_which_an_update_is_still_to_be_taken_in_is_no_finding_in_any_partition(view: View) -> None:
    await view.send("a", 1)
    await view.take()
    view.put(None, "a")
    await view.send("a", 2, partition=1)
    await view.index.delete(["a"])
    await view.assert_clean(repair=True)


async def test_records_that_cannot_be_read_are_left_alone(view: View) -> None:
    await fill(view)
    view.table._records[hash64("item 4")] = b"\x09" + bytes(80)
    report = await view.reconcile(repair=True)
    assert report.refused == 1
    assert view.table._records[hash64("item 4")] == b"\x09" + bytes(80)


async def test_what_is_no_record_at_all_is_left_alone_too(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read as a record it is none; only the walk through the table, and a write, tell."""
    await fill(view)
    del view.table._records[hash64("item 4")]
    heads = view.table.heads

    async def with_another() -> AsyncIterator[ItemHeads]:
        async for page in heads():
            yield page
        none = np.zeros(1, dtype=np.uint64)
        number = np.array([hash64("item 4")], dtype=np.uint64)
        yield ItemHeads(number, none.astype(np.int64), none, none.astype(np.bool_), none.astype(np.bool_))

    monkeypatch.setattr(view.table, "heads", with_another)
    report = await view.reconcile(repair=True)
    assert (report.refused, report.left, found(report)) == (1, 0, {})


async def test_an_empty_topic_takes_nothing_away(view: View) -> None:
    await view.row("a", 1)
    with pytest.raises(RecallError, match="item-updates holds no item"):
        await view.reconcile(repair=True)
    assert await view.values() == {"a": 1}


async def test_many_items_are_mended_in_one_walk_through_the_topic(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their hashes, items are looked at in the order of their events."""
    batch = [(f"item {n}", float(n % 7 + 1)) for n in range(3000)]
    await asyncio.gather(*(view.send(item_id, value, partition=n % 2) for n, (item_id, value) in enumerate(batch)))
    await view.take()
    gone = [f"item {n}" for n in range(0, 3000, 3)]
    await view.index.delete(gone)
    for item_id in gone[:200]:
        view.put(None, item_id)
    places: list[list[int]] = []
    events = ItemTopic.events

    async def noted(topic: ItemTopic, wanted: Sequence[int]) -> dict[int, ItemEvent]:
        places.append(sorted(wanted))
        return await events(topic, wanted)

    monkeypatch.setattr(ItemTopic, "events", noted)
    report = await view.reconcile(repair=True, sample=0, examples=2)
    assert found(report) == {"missing": 1000}
    first_look = [each for batch in places[:2] for each in batch]
    assert len(first_look) == 200
    assert first_look == sorted(first_look)
    assert (report.repaired, report.left, report.compared) == (1000, 0, 0)
    assert await view.values() == dict(batch)
    assert set(KINDS) == set(report.as_dict()) & set(KINDS)


async def missed(view: View) -> int:
    """Nobody fed the view for longer than its topic keeps deletions; a worker that starts has marked that."""
    await view.markers.open(2)
    assert await view.markers.stand(KEPT_MS)
    await view.redis.hincrby(view.markers.key, "fed_ms", -2 * KEPT_MS)
    noticed_ms = await view.markers.look(KEPT_MS)
    assert noticed_ms is not None
    return noticed_ms


async def test_missed_deletions_are_marked_until_all_is_mended(view: View) -> None:
    await fill(view)
    noticed_ms = await missed(view)
    assert (await view.assert_clean()).missed_deletions, "it was to look only"
    assert await view.markers.look() == noticed_ms
    await view.row("nobody's", 9)
    report = await view.reconcile()
    assert (report.left, report.missed_deletions, await view.markers.look()) == (1, True, noticed_ms)
    report = await view.reconcile(repair=True)
    assert (report.repaired, report.left, report.missed_deletions) == (1, 0, False)
    assert await view.markers.look() is None
    await missed(view)
    assert not (await view.assert_clean(repair=True)).missed_deletions
    assert await view.markers.look() is None, "nothing was wrong, and nothing is"


async def test_missed_deletions_stay_marked_while_something_is_left(
    view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(view)
    noticed_ms = await missed(view)
    await view.row("nobody's", 9)

    async def deletes_nothing(item_ids: Sequence[str]) -> None:
        pass

    monkeypatch.setattr(view.index, "delete", deletes_nothing)
    report = await view.reconcile(repair=True)
    assert (report.repaired, report.left, report.missed_deletions) == (0, 1, True)
    assert await view.markers.look() == noticed_ms


async def test_missed_deletions_stay_marked_where_there_is_nothing_to_mend_from(view: View) -> None:
    noticed_ms = await missed(view)
    await view.row("nobody's", 9)
    with pytest.raises(RecallError):
        await view.reconcile(repair=True)
    assert await view.markers.look() == noticed_ms


async def test_deletions_that_are_missed_while_it_reads_stay_marked(
    view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(view)
    noticed_ms = await missed(view)
    count = view.index.count

    async def missed_again() -> int:
        await view.redis.hset(view.markers.key, "missed_ms", noticed_ms + 1000)
        return await count()

    monkeypatch.setattr(view.index, "count", missed_again)
    report = await view.reconcile(repair=True)
    assert (report.left, report.missed_deletions) == (0, True)
    assert await view.markers.look() == noticed_ms + 1000
