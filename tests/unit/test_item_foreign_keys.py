"""A key in an item's place that is no record: it reads as nothing, and only a write tells."""

from collections.abc import Sequence

from schemas.records import ItemRecord, hash64_each
from tests.unit.test_items_in_memory import DIM, MODEL, View, inputs, tombstone, upsert
from workers.errors import RowRefused
from workers.pipelines.items import ItemsPipeline, ItemsView
from workers.stores.item_memory import MemoryItemTable


class ForeignTable(MemoryItemTable):
    """Something stands in an item's place that reads as nothing and cannot be written over."""

    async def write(
        self, records: Sequence[ItemRecord], expected: Sequence[ItemRecord | None], intent: str | None = None
    ) -> list[bool]:
        refused = [row for row, record in enumerate(records) if record.item_id == "b"]
        written = [row for row in range(len(records)) if row not in refused]
        done = await super().write([records[row] for row in written], [expected[row] for row in written], intent)
        if refused:
            raise RowRefused("redis", "it holds something else", refused)
        return done


async def test_what_is_no_record_is_told_by_the_write_and_refused_alone() -> None:
    view = View()
    view.table = ForeignTable(DIM)
    fields = ItemsView(DIM, MODEL, ("value",))
    view.pipeline = ItemsPipeline(fields, view.table, view.index, view.tower, inputs)
    result = await view.run(upsert("a", 1, 0), upsert("b", 2, 1), upsert("b", 3, 2), tombstone("c", 3))
    assert [error and str(error.code) for error in result.errors] == [
        None,
        "record_unreadable",
        "record_unreadable",
        None,
    ]
    assert result.outcomes == {"upserted": 1, "refused": 2, "deleted": 1}
    assert (await view.record("a")).offset == 0
    assert await view.table.read(hash64_each(["b"])) == [None]
    assert await view.table.intents() == {}


async def test_what_was_refused_beside_it_stays_refused() -> None:
    """By the time the others are run again their records have passed it."""
    view = View()
    view.table = ForeignTable(DIM)
    view.pipeline = ItemsPipeline(ItemsView(DIM, MODEL, ("value",)), view.table, view.index, view.tower, inputs)
    events = upsert("a", 1, 0, version=7), upsert("a", 2, 1, version=3), tombstone("a", 2), upsert("b", 1, 3)
    result = await view.run(*events)
    codes = [error and str(error.code) for error in result.errors]
    assert codes == [None, "stale_version", None, "record_unreadable"]
    assert (await view.record("a")).offset == 2
