"""What a request gets when the sources of its scene gave nothing because something is down: the next best thing.

index unavailable        the user's last list of the same question, else what is popular
features or tower        what is popular
nothing is held          an empty list

Everything here is held in memory and never waits.
"""

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
        self.rungs = (self._cached, self._most_popular)

    def _cached(self, row: Row) -> dict[str, Found]:
        """The user's last list of the same question: for a known user, of whom it is known what was seen since."""
        lost = row.failures
        if Reason.INDEX_UNAVAILABLE not in lost or Reason.FEATURES_UNAVAILABLE in lost or not _is_kept(row):
            return {}
        return {CACHED: Found(*self._last.get(list_key(row.asked, row.record)))}

    def _most_popular(self, row: Row) -> dict[str, Found]:
        lost = row.failures
        if not lost or lost == [Reason.FEATURES_STALE]:
            return {}
        return {POPULAR: Found(*self._popular.best(row.query.segment, row.asked.where))}

    def remember(self, row: Row, item_ids: list[str], scores: Float32) -> None:
        """A good list, for the first rung."""
        if _is_kept(row):
            self._last.put(list_key(row.asked, row.record), item_ids, scores)

    def expire(self) -> None:
        """Let go of lists that are too old."""
        self._last.expire()


def _is_kept(row: Row) -> bool:
    """Lists of unknown users are no better than what is popular; those as of another time are nobody's last."""
    return Reason.COLD_START not in row.reasons and row.asked.request.timestamp_ms is None
