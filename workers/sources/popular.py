"""Popular items, held in memory: what can be recommended when nothing is known, or nothing answers."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

import numpy as np

from schemas.records import hash64
from workers.digest import digest
from workers.filters import Filter, which
from workers.popularity import EVERYBODY
from workers.ports import Float32, Hits, ItemChanges, PopularItems, PopularTable, Query
from workers.stores.item_facts import ItemFact, ItemFacts

DEPTH = 1000  # items of a list
SEGMENTS_AT_ONCE = 8  # of a refresh, in turn: so a field with a thousand values costs no more than one with eight
MAX_FILTERED = 256
LEAST = 2.0**-60
"""Beside the best of its list: what counts for less is left out, so that there is room below the last one."""

Best = tuple[list[str], Float32]
"""Item ids, best first, equal scores by id, no item twice, and float32[N] scores: parts of the most popular item's.

Nobody may change them: they are remembered.
"""


@dataclass(frozen=True, slots=True)
class _List:
    facts: Sequence[ItemFact]
    scores: Float32


NOTHING = _List((), np.zeros(0, dtype=np.float32))


class PopularLists:
    """The most popular items of everybody and of each segment. `refresh` is to be called whenever `due` returns.

    Refreshing reads everybody's list and those of the next SEGMENTS_AT_ONCE segments; where it fails, the last lists
    stay. An ItemFollower tells of deletions.
    """

    def __init__(self, table: PopularTable, facts: ItemFacts, segments: Sequence[str]) -> None:
        """`segments`: the values that are counted apart (Popularity.segments)."""
        self._table = table
        self._facts = facts
        self._segments = segments
        self._next = 0
        self._lists: dict[str, _List] = {}
        self._filtered: dict[tuple[str, bytes], Best] = {}  # by segment and filter
        self._refreshing = asyncio.Lock()
        self._missed = asyncio.Event()  # changes of items, since the last refresh began
        self._gone: set[int] = set()  # hashes of items deleted since then, while it lasts

    async def due(self, every_s: float) -> None:
        """Wait so long, or until changes were missed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(every_s):
                await self._missed.wait()

    async def refresh(self) -> None:
        """Read lists anew. Raises DependencyError of the popular or the item table; the lists stay as they are then.

        What was read while changes were missed is not kept: the next refresh is due at once, and reads the same lists.
        Two at once take turns.
        """
        async with self._refreshing:
            self._missed.clear()
            self._gone.clear()
            end = self._next + SEGMENTS_AT_ONCE
            wanted = [EVERYBODY, *islice(self._segments, self._next, end)]
            tops = await self._table.top(wanted, DEPTH)
            read = {segment: await self._list(top) for segment, top in zip(wanted, tops, strict=True)}
            if not self._missed.is_set():
                self._lists |= {segment: _without(items, self._gone) for segment, items in read.items()}
                self._filtered.clear()
                self._next = end if end < len(self._segments) else 0

    async def refresh_all(self) -> None:
        """Read every list anew. Raises as `refresh` does."""
        for _ in range(0, max(1, len(self._segments)), SEGMENTS_AT_ONCE):
            await self.refresh()

    def apply(self, changes: ItemChanges) -> None:
        """Take out what was deleted; all lists when changes were missed: a refresh is due then."""
        if not changes.complete:
            self._missed.set()
            self._lists.clear()
            self._filtered.clear()
        elif changes.deleted.any():
            gone = set(changes.hashes[changes.deleted].tolist())
            if self._refreshing.locked():
                self._gone |= gone  # what is being read may have them still
            self._lists = {segment: _without(held, gone) for segment, held in self._lists.items()}
            self._filtered.clear()

    def best(self, segment: str | None, where: Filter) -> Best:
        """The popular items of a segment (None = everybody) for which a filter holds. From memory; never waits.

        Behind the segment's own items stand everybody's, with lower scores. Empty before the first refresh. A filter
        that is new takes milliseconds.
        """
        place = _place(segment, where)
        found = self._filtered.get(place)
        if found is None:
            if len(self._filtered) >= MAX_FILTERED:
                del self._filtered[next(iter(self._filtered))]
            found = self._filtered[place] = self._select(place[0], where)
        return found

    def at_hand(self, segment: str | None, where: Filter) -> Best | None:
        """What `best` gives, without a filter or with one that has been looked through already; None where not."""
        return self._filtered.get(_place(segment, where)) if where else self.best(segment, where)

    async def _list(self, top: PopularItems) -> _List:
        await asyncio.sleep(0)  # between lists others have their turn on the event loop
        facts = await self._facts.read(top.hashes)
        pairs = zip(facts, top.scores.tolist(), strict=True)
        there = [(fact, score) for fact, score in pairs if fact is not None and score > 0]
        scores = np.array([score for _, score in there])
        scores = (scores / scores[:1]).astype(np.float32)  # beside the best that there is
        live = [(fact, score) for (fact, _), score in zip(there, scores.tolist(), strict=True) if score >= LEAST]
        live.sort(key=lambda item: (-item[1], item[0].item_id))
        return _List([fact for fact, _ in live], np.array([score for _, score in live], dtype=np.float32))

    def _select(self, segment: str, where: Filter) -> Best:
        ids, scores = _held(self._lists.get(segment, NOTHING), where)
        if segment == EVERYBODY:
            return ids, scores
        known = set(ids)
        others, others_scores = _held(self._lists.get(EVERYBODY, NOTHING), where)
        new = [n for n, item_id in enumerate(others) if item_id not in known]
        # At most half of the segment's last score: a power of two, because it makes no scores equal that were not.
        below = np.exp2(np.floor(np.log2(scores[-1])) - 1) if len(scores) else np.float32(1)
        return ids + [others[n] for n in new], np.concatenate([scores, others_scores[new] * below])


def _place(segment: str | None, where: Filter) -> tuple[str, bytes]:
    return segment or EVERYBODY, digest(where) if where else b""


def _without(items: _List, gone: set[int]) -> _List:
    if not gone:
        return items
    kept = [n for n, fact in enumerate(items.facts) if hash64(fact.item_id) not in gone]
    return items if len(kept) == len(items.facts) else _List([items.facts[n] for n in kept], items.scores[kept])


def _held(items: _List, where: Filter) -> Best:
    if not where:
        return [fact.item_id for fact in items.facts], items.scores
    held = which(where, [fact.attributes for fact in items.facts])
    return [items.facts[n].item_id for n in held], items.scores[held]


class PopularSource:
    """What is popular in the user's segment. It never fails, and waits for nothing but its turns on the event loop."""

    dependency = None

    def __init__(self, lists: PopularLists) -> None:
        self._lists = lists

    def answers(self, _: Query) -> bool:
        """Every one: of a user without segment, what is popular with everybody."""
        return True

    async def candidates(self, queries: Sequence[Query], depth: int, where: Filter) -> Hits:
        """The same for every query of a segment."""
        found = []
        for query in queries:
            found.append(self._lists.best(query.segment, where))
            await asyncio.sleep(0)  # a filter that is new takes milliseconds
        return Hits([ids[:depth] for ids, _ in found], [scores[:depth] for _, scores in found])
