"""A deleted item of which an update stands in another partition: what docs/operations.md says of `wrong_partition`."""

from itertools import permutations

import pytest

from tests.unit.test_items_in_memory import View, delete, tombstone, upsert
from workers.partitioner import partition_of

PARTITIONS = 4
USUAL = partition_of(b"a", PARTITIONS)
OTHER = (USUAL + 1) % PARTITIONS
MISROUTED = upsert("a", 9, 7, partition=OTHER)


async def test_a_delete_through_the_usual_partition_lasts_in_whatever_order_partitions_are_read() -> None:
    for events in permutations([delete("a", 8, partition=USUAL), MISROUTED]):
        for at_once in (True, False):
            view = View(PARTITIONS)
            for batch in [events] if at_once else [[event] for event in events]:
                await view.run(*batch)
            assert await view.values() == {}
            assert (await view.record("a")).partition == USUAL


@pytest.mark.parametrize("lives", [True, False])
async def test_a_null_into_the_wrong_partition_changes_nothing_and_lets_compaction_clear_it(lives: bool) -> None:
    home = upsert("a", 1, 8, partition=USUAL) if lives else tombstone("a", 8, partition=USUAL)
    null = tombstone("a", 9, partition=OTHER)
    view = View(PARTITIONS)
    assert await view.codes(upsert("a", 1, 5, partition=USUAL), MISROUTED, home, null) == [
        None, "wrong_partition", None, "wrong_partition"
    ]  # fmt: skip
    values = {"a": 1.0} if lives else {}
    assert await view.values() == values
    for events in permutations([home, null]):
        anew = View(PARTITIONS)
        await anew.run(events[0])
        await anew.run(events[1])
        assert await anew.values() == values
