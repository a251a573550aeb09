"""Produces what stands of an item again, behind an update that was refused for its version: see `item_order`.

`item-updates` is compacted: the last record of a key is what is left in the end, whether it was accepted or not.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence

from schemas.items import AFTER
from workers.pipelines.items import Standing
from workers.publisher import Outgoing

OUTCOME = "produced_again"


class WinnersAgain:
    """`publish` must send for sure; `count` takes events by outcome. `ends`: partition -> where history ends.

    What is refused in a view's history was refused before, and whoever fed the active view then has answered it: so a
    view that reads from the beginning writes nothing.
    """

    def __init__(
        self,
        publish: Callable[[Sequence[Outgoing]], Awaitable[object]],
        count: Callable[[dict[str, int]], None],
        ends: Mapping[int, int],
    ) -> None:
        self._publish = publish
        self._count = count
        self._ends = ends

    async def produce(self, winners: Sequence[Standing]) -> None:
        """Produce those that stand behind the history; they are acknowledged when it returns."""
        copies = [copy(each) for each in winners if each.after >= self._ends.get(each.record.partition, 0)]
        if copies:
            await self._publish(copies)
            self._count({OUTCOME: len(copies)})


def copy(winner: Standing) -> Outgoing:
    """The message: the winner's bytes, a null for a tombstone, in the item's partition."""
    record = winner.record
    headers = ((AFTER, str(winner.after).encode()),)
    return Outgoing(record.item_id.encode(), record.update or None, headers, record.partition)
