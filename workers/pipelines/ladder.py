"""What a request gets when the sources of its scene gave nothing because something is down: the next best thing.

index unavailable        the user's last list of the same question, else what is popular
features or tower        what is popular
nothing is held          an empty list

Everything here is held in memory and never waits. But for a new filter all that is popular is looked through, which
takes milliseconds: that comes last, and only while there is time. A request for which there is none has an empty list.
"""

from collections.abc import Callable, Sequence
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

    def at_hand(self, segment: str | None, where: Filter) -> tuple[list[str], Float32] | None:
        """The same without work; None where the filter is new."""
        ...


class Ladder:
    """The rungs below a scene's own sources."""

    def __init__(self, popular: Popular, last: LastLists) -> None:
        self._popular = popular
        self._last = last

    def rungs(self, in_time: Callable[[], bool]) -> Sequence[Callable[[Row], dict[str, Found]]]:
        """The best comes first. New filters are looked through while `in_time` says that there is time."""
        return self._cached, self._at_hand, lambda row: self._most_popular(row) if in_time() else self._at_hand(row)

    def _cached(self, row: Row) -> dict[str, Found]:
        """The user's last list of the same question: for a known user, of whom it is known what was seen since."""
        lost = row.failures
        if Reason.INDEX_UNAVAILABLE not in lost or Reason.FEATURES_UNAVAILABLE in lost or not _is_kept(row):
            return {}
        return {CACHED: Found(*self._last.get(list_key(row.asked, row.record)))}

    def _at_hand(self, row: Row) -> dict[str, Found]:
        best = self._popular.at_hand(row.query.segment, row.asked.where) if _may_step_down(row) else None
        return {} if best is None else {POPULAR: Found(*best)}

    def _most_popular(self, row: Row) -> dict[str, Found]:
        if not _may_step_down(row):
            return {}
        return {POPULAR: Found(*self._popular.best(row.query.segment, row.asked.where))}

    def remember(self, row: Row, item_ids: list[str], scores: Float32) -> None:
        """A good list, for the first rung."""
        if _is_kept(row):
            self._last.put(list_key(row.asked, row.record), item_ids, scores)

    def expire(self) -> None:
        """Let go of lists that are too old."""
        self._last.expire()


def _may_step_down(row: Row) -> bool:
    """Whether more failed than to see the newest activity."""
    return bool(set(row.failures) - {Reason.FEATURES_STALE})


def _is_kept(row: Row) -> bool:
    """Lists of unknown users are no better than what is popular; those as of another time are nobody's last."""
    return Reason.COLD_START not in row.reasons and row.asked.request.timestamp_ms is None
