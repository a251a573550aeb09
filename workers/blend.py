"""Several sources' lists into one, with weights, quotas and caps, in an order that depends on nothing else. Pure.

Scores of different sources cannot be compared, ranks can: an item's score is the sum over the sources of
weight / (60 + rank), rank 1 for a source's best (reciprocal rank fusion; Cormack, Clarke and Buettcher, SIGIR 2009).
The list of a single source keeps that source's own scores.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workers.plans import SourceShare
from workers.ports import Float32

RANK_OFFSET = 60

Caps = Sequence[tuple[str, int]]
"""Pairs of a field, and how many items of a list may have one value of it."""

Capped = tuple[str, Any]
"""A field, and one value of it."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """What one source brings: items that may be shown, best first, none twice."""

    share: SourceShare
    item_ids: Sequence[str]
    scores: Float32


@dataclass(frozen=True, slots=True)
class Blended:
    """At most k items in descending score, equal scores by item id. `sources` of an item found by several: `a+b`, the
    one that contributed most first. `duplicates`: how many repeats of items were merged."""

    item_ids: list[str]
    scores: Float32
    sources: list[str]
    duplicates: int = 0


@dataclass(slots=True)
class _Candidate:
    """An item, and what each source that found it contributes, in the order of the scene."""

    item_id: str
    contributions: list[tuple[float, str]] = field(default_factory=list)
    score: float = 0.0
    primary: str = ""  # the source that contributed most; of equals the first of the scene

    def settle(self) -> None:
        """All contributions are there. Scores are rounded as answers carry them, so that equal ones are equal."""
        self.score = float(np.float32(sum(score for score, _ in self.contributions)))
        self.primary = max(self.contributions, key=lambda contribution: contribution[0])[1]

    @property
    def sources(self) -> str:
        return "+".join(name for _, name in sorted(self.contributions, key=lambda each: -each[0]))


def blend(
    lists: Sequence[Ranked], k: int, caps: Caps = (), attributes: Mapping[str, Mapping[str, Any]] | None = None
) -> Blended:
    """The k best. `attributes` by item id tell what is capped; an item that lacks the field is not.

    First every source's best `at_least` items take their places; then the best of all, as long as their main source has
    places left; then, rather than a short list, those that were over a quota. Caps hold always.
    """
    filled = [ranked for ranked in lists if ranked.item_ids]
    if len(filled) <= 1 and not caps:
        return _first(filled, k)
    room = _Room(k, caps, attributes or {})
    if len(filled) <= 1:
        return _single(filled, room)
    candidates = _fused(filled)
    order = sorted(candidates.values(), key=lambda candidate: (-candidate.score, candidate.item_id))
    for ranked in filled:
        for item_id in _best(ranked, room):
            room.take(item_id)
    places = Counter(candidates[item_id].primary for item_id in room.taken)
    limits = {ranked.share.name: ranked.share.at_most for ranked in filled}
    for candidate in order:
        if room.full:
            break
        if candidate.item_id not in room.taken and places[candidate.primary] < limits[candidate.primary]:
            places[candidate.primary] += room.take(candidate.item_id)
    for candidate in order:
        if room.full:
            break
        room.take(candidate.item_id)
    chosen = [candidate for candidate in order if candidate.item_id in room.taken]
    scores = np.array([candidate.score for candidate in chosen], dtype=np.float32)
    repeats = sum(len(ranked.item_ids) for ranked in filled) - len(candidates)
    return Blended([c.item_id for c in chosen], scores, [c.sources for c in chosen], repeats)


def capped_values(attributes: Mapping[str, Any], caps: Caps) -> Iterator[tuple[Capped, int]]:
    """The capped values of one item, each with its limit, in the order of the caps."""
    for name, limit in caps:
        value = attributes.get(name)
        for each in dict.fromkeys(value if isinstance(value, list) else [value]):
            if each is not None:
                yield (name, each), limit


def _first(lists: Sequence[Ranked], k: int) -> Blended:
    """The first k of one source, with its own scores."""
    if not lists:
        return Blended([], np.zeros(0, dtype=np.float32), [])
    (ranked,) = lists
    item_ids = list(ranked.item_ids[:k])
    return Blended(item_ids, ranked.scores[:k], [ranked.share.name] * len(item_ids))


def _single(lists: Sequence[Ranked], room: "_Room") -> Blended:
    """The best of one source that fit under the caps, with its own scores."""
    if not lists:
        return _first(lists, 0)
    (ranked,) = lists
    kept: list[int] = []
    for position, item_id in enumerate(ranked.item_ids):
        if room.full:
            break
        if room.take(item_id):
            kept.append(position)
    return Blended([ranked.item_ids[n] for n in kept], ranked.scores[kept], [ranked.share.name] * len(kept))


def _fused(lists: Sequence[Ranked]) -> dict[str, _Candidate]:
    """Candidates by id."""
    found: dict[str, _Candidate] = {}
    for ranked in lists:
        name, weight = ranked.share.name, ranked.share.weight
        for rank, item_id in enumerate(ranked.item_ids, 1):
            candidate = found.get(item_id)
            if candidate is None:
                candidate = found[item_id] = _Candidate(item_id)
            candidate.contributions.append((weight / (RANK_OFFSET + rank), name))
    for candidate in found.values():
        candidate.settle()
    return found


def _best(ranked: Ranked, room: "_Room") -> Iterator[str]:
    """A source's best items that fit under the caps, as many as it has places for certain."""
    wanted = ranked.share.at_least
    for item_id in ranked.item_ids:
        if wanted <= 0:
            return
        if item_id in room.taken or room.fits(item_id):
            wanted -= 1
            yield item_id


class _Room:
    """The places of a list, and what the caps leave of them."""

    def __init__(self, places: int, caps: Caps, attributes: Mapping[str, Mapping[str, Any]]) -> None:
        self.places = places
        self.taken: set[str] = set()
        self._caps = caps
        self._attributes = attributes
        self._counts: Counter[Capped] = Counter()

    @property
    def full(self) -> bool:
        """Whether no place is left."""
        return len(self.taken) >= self.places

    def fits(self, item_id: str) -> bool:
        """Whether the item's values are below their caps."""
        return all(self._counts[value] < limit for value, limit in self._values(item_id))

    def take(self, item_id: str) -> bool:
        """Give the item a place, when there is one for it."""
        if self.full or item_id in self.taken:
            return False
        if self._caps:
            values = list(self._values(item_id))
            if any(self._counts[value] >= limit for value, limit in values):
                return False
            self._counts.update(value for value, _ in values)
        self.taken.add(item_id)
        return True

    def _values(self, item_id: str) -> Iterator[tuple[Capped, int]]:
        return capped_values(self._attributes.get(item_id, {}), self._caps)
