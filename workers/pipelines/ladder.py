"""What a request gets when the sources of its scene gave nothing because something is down: the next best thing.

index unavailable        the user's last list of the same question, else what is popular
features or tower        what is popular
nothing is held          an empty list

Everything here is held in memory and never waits.
"""

from collections.abc import Iterator
from typing import Protocol

from schemas.recall import Reason
from workers.filters import Filter
from workers.pipelines.rows import Found, Row
from workers.ports import Float32
from workers.remembered import LastLists, list_key

POPULAR = "popular"
CACHED = "cached"


class Popular(Protocol):
    """What is popular, held in memory."""

    def best(self, segment: str | None, where: Filter) -> tuple[list[str], Float32]:
        """Item ids and float32[n] scores, best first."""
        ...


class Ladder:
    """The rungs below a scene's own sources."""

    def __init__(self, popular: Popular, last: LastLists) -> None:
        self._popular = popular
        self._last = last

    def rungs(self, row: Row) -> Iterator[dict[str, Found]]:
        """What to try in turn, in place of `found`, until something is left of it."""
        asked, lost = row.asked, row.failures
        if Reason.INDEX_UNAVAILABLE in lost and Reason.COLD_START not in row.reasons:  # nor after forgetting the user
            yield {CACHED: Found(*self._last.get(list_key(asked)))}
        if lost and lost != [Reason.FEATURES_STALE]:
            yield {POPULAR: Found(*self._popular.best(row.query.segment, asked.where))}

    def remember(self, row: Row, item_ids: list[str], scores: Float32) -> None:
        """A good list of a known user, for the first rung."""
        if Reason.COLD_START not in row.reasons:
            self._last.put(list_key(row.asked), item_ids, scores)
