"""Step 6: from what the sources found to the list of a request: drop, blend, cut to k."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from schemas.recall import Reason, Removed
from schemas.records import hash64_each
from workers.blend import Blended, Ranked, blend
from workers.filters import Filter, holds
from workers.pipelines.attempts import Attempts
from workers.pipelines.ladder import CACHED
from workers.pipelines.rows import Found, Row
from workers.plans import SourceShare
from workers.ports import UInt64
from workers.select import DeletedItems, candidates
from workers.stores.item_facts import ItemFact


class Facts(Protocol):
    """What is known of items, near at hand."""

    def at_hand(self, hashes: UInt64) -> list[ItemFact | None]:
        """By item hash, without waiting; None for those that `read` would ask for."""
        ...

    async def read(self, hashes: UInt64) -> list[ItemFact | None]:
        """By item hash; None for unknown and deleted items."""
        ...


@dataclass(frozen=True, slots=True)
class Shortlist:
    """The list of one request, and what was taken out on the way."""

    chosen: Blended
    removed: Removed


Known = Mapping[str, Mapping[str, Any]]
"""Attributes of the items that are there, by item id."""


class Shortlisting:
    """Makes lists of whole batches. Items are looked up only for caps and for old lists, for at most `limit_ms`."""

    def __init__(self, deleted: DeletedItems, facts: Facts, limit_ms: int) -> None:
        self._deleted = deleted
        self._facts = facts
        self._limit_ms = limit_ms

    async def run(self, rows: Sequence[Row], attempt: Attempts) -> list[Shortlist]:
        """One list per row. Where what caps need cannot be read, they do not hold, and the reason is added."""
        known: Known | None = {}
        asking = [row for row in rows if row.asked.plan.caps or CACHED in row.found]
        if asking:
            item_ids = {item_id for row in asking for found in row.found.values() for item_id in found.item_ids}
            known = await self._look_up(sorted(item_ids), attempt)
            for row in asking if known is None else ():
                row.fail(Reason.FEATURES_UNAVAILABLE)
        lists = []
        for row in rows:
            if row.asked.plan.caps:
                await asyncio.sleep(0)  # what caps look at may be thousands of items: others have their turn in between
            lists.append(_shortlist(row, self._ranked(row, known or {}), known or {}))
        return lists

    async def _look_up(self, item_ids: Sequence[str], attempt: Attempts) -> Known | None:
        """None where Redis does not tell. What is in memory is no answer of Redis: it does not close its breaker."""
        hashes = hash64_each(item_ids)
        facts = self._facts.at_hand(hashes)
        missing = [n for n, fact in enumerate(facts) if fact is None]
        if missing:
            read = await attempt("redis", self._facts.read(hashes[missing]), self._limit_ms)
            if read is None:
                return None
            facts += read
        return {fact.item_id: fact.attributes for fact in facts if fact is not None}

    def _ranked(self, row: Row, known: Known) -> list[tuple[Ranked, Removed]]:
        """Each source's items that may be shown, in the order of the scene; all of them where caps may take some."""
        shares = {share.name: share for share in row.asked.sources}
        names = [name for name in shares if name in row.found] or list(row.found)
        lists = []
        for name in names:
            found = row.found[name]
            if name == CACHED:
                found = _still_there(found, known, row.asked.where)
            selection = candidates(
                found.item_ids,
                found.scores,
                k=len(found.item_ids) if row.asked.plan.caps else row.asked.k,
                seen=row.seen,
                excluded=row.excluded,
                deleted=self._deleted,
            )
            share = shares.get(name) or SourceShare(name)
            lists.append((Ranked(share, selection.item_ids, selection.scores), selection.removed))
        return lists


def _still_there(found: Found, known: Known, where: Filter) -> Found:
    """An old list without what has been deleted since, or no longer fits the filter."""
    kept = [n for n, item_id in enumerate(found.item_ids) if item_id in known and holds(where, known[item_id])]
    return Found([found.item_ids[position] for position in kept], found.scores[kept])


def _shortlist(row: Row, lists: Sequence[tuple[Ranked, Removed]], known: Known) -> Shortlist:
    chosen = blend([ranked for ranked, _ in lists], row.asked.k, row.asked.plan.caps, known)
    if len(lists) == 1:
        return Shortlist(chosen, lists[0][1])
    removed = Removed(
        seen=sum(each.seen for _, each in lists),
        excluded=sum(each.excluded for _, each in lists),
        deleted=sum(each.deleted for _, each in lists),
        duplicate=sum(each.duplicate for _, each in lists) + chosen.duplicates,
    )
    return Shortlist(chosen, removed)
