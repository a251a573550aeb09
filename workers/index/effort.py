"""How many candidates a graph search keeps (`ef`), or how many lists it reads, so that a filter costs no recall.

A graph is walked through items that the filter leaves out as well. With a share s of the items left, about s * ef of
those kept are worth something, so ef grows with 1 / s; measured (docs/storage.md), 1.5 / s keeps recall within .02 of
a search without filter. The share is counted by the server and remembered for a while. Milvus itself computes all
scores where fewer than about 7 % are left: from there on ef no longer matters.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from time import monotonic

from workers.digest import digest

EVERYTHING = ""  # the expression that holds for every item
REMEMBERED = 1000  # expressions
REMEMBERED_S = 60.0
MARGIN = 1.5
LEAST_SHARE = 0.05
MAX_EF = 32_768

Count = Callable[[str], Awaitable[int]]


class Shares:
    """What share of the items an expression holds for, counted at most once a minute."""

    def __init__(self, count: Count, clock: Callable[[], float] = monotonic) -> None:
        self._count = count
        self._clock = clock
        self._known: OrderedDict[bytes, tuple[float, int]] = OrderedDict()

    async def of(self, expression: str) -> float:
        """0 to 1; 1 while there are no items. Raises what counting raises."""
        everything = await self._counted(EVERYTHING)
        return min(1.0, await self._counted(expression) / everything) if everything else 1.0

    async def _counted(self, expression: str) -> int:
        key, now_s = digest(expression), self._clock()
        if key in self._known and now_s - self._known[key][0] < REMEMBERED_S:
            return self._known[key][1]
        number = await self._count(expression)
        self._known.pop(key, None)
        self._known[key] = now_s, number
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return number


def ef_for(depth: int, ef: int, share: float) -> int:
    """`ef` of a search `depth` deep, of which a filter leaves that share of the items."""
    wanted = max(ef, depth)
    return min(MAX_EF, wanted if share >= 1.0 else int(MARGIN * wanted / max(share, LEAST_SHARE)))


def probes_for(probes: int, lists: int, share: float) -> int:
    """How many lists (IVF_FLAT) are read: `probes`, and more as a filter leaves a smaller share of the items."""
    return min(lists, max(1, round(probes / max(share, LEAST_SHARE))))
