"""What recall knows of items besides their vectors: a process-local cache in front of an item table, by item hash."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from schemas import codec
from schemas.codec import DecodeError
from schemas.records import ItemRecord
from workers.errors import RowRefused
from workers.index.schema import kept_attributes
from workers.ports import ItemChanges, ItemTable, UInt64

MAX_FACTS = 65_536
READ_AT_ONCE = 256  # whoever else is on the event loop waits for the decoding of so many: 1 to 2 ms


@dataclass(frozen=True, slots=True)
class ItemFact:
    """A live item: its id, and those of its attributes that can be filtered on, as the index holds them."""

    item_id: str
    attributes: Mapping[str, Any]


class ItemFacts:
    """Answers by item hash. Kept fresh by an ItemFollower, without whose first refresh nothing is kept.

    Of a full cache the facts that were read first are forgotten. Unknown and deleted items are asked for each time.
    """

    def __init__(self, table: ItemTable, fields: Sequence[str], max_facts: int = MAX_FACTS) -> None:
        """`fields`: names of the filterable attributes."""
        self._table = table
        self._fields = fields
        self._max_facts = max_facts
        self._facts: dict[int, ItemFact] = {}
        self._following = False
        self._generation = 0  # of what is cached: a read that overlaps a change is not kept

    def at_hand(self, hashes: UInt64) -> list[ItemFact | None]:
        """Facts in the order asked, without waiting; None for an item that `read` would ask the item table for."""
        return [self._facts.get(item) for item in hashes.tolist()]

    async def read(self, hashes: UInt64) -> list[ItemFact | None]:
        """Facts in the order asked; None for an item that is unknown, deleted or stored in an unreadable form.

        Does not wait when all are cached, else for reads of the item table, whose DependencyError it raises.
        """
        wanted: list[int] = hashes.tolist()
        found = {item: fact for item in wanted if (fact := self._facts.get(item)) is not None}
        missing = hashes[[item not in found for item in wanted]]
        for start in range(0, len(missing), READ_AT_ONCE):
            piece, generation = missing[start : start + READ_AT_ONCE], self._generation
            records = await self._records(piece)
            facts = {item: self._fact(record) for item, record in records.items() if not record.deleted}
            new = {item: fact for item, fact in facts.items() if fact is not None}
            found |= new
            if self._following and generation == self._generation:
                self._keep(new)
        return [found.get(item) for item in wanted]

    def apply(self, changes: ItemChanges) -> None:
        """Forget what changed; all facts when changes were missed."""
        if not self._following:  # of what changes before this place in the feed nobody is told: keep no read of then
            self._following = True
            self._generation += 1
        if not changes.complete:
            self._generation += 1
            self._facts.clear()
        elif len(changes.hashes):
            self._generation += 1
            for item in changes.hashes.tolist():
                self._facts.pop(item, None)

    async def _records(self, hashes: UInt64) -> dict[int, ItemRecord]:
        """The records that are there, by hash; those that cannot be read are left out."""
        try:
            records = await self._table.read(hashes)
        except RowRefused as error:
            if error.rows is None:
                raise
            readable = [row for row in range(len(hashes)) if row not in error.rows]
            hashes = hashes[readable]
            records = await self._table.read(hashes)
        return {item: record for item, record in zip(hashes.tolist(), records, strict=True) if record is not None}

    def _fact(self, record: ItemRecord) -> ItemFact | None:
        """None where the update cannot be read by this version: the item is as good as unknown."""
        try:
            attributes = codec.decode_item(record.update).attributes or {}
        except DecodeError:
            return None
        return ItemFact(
            record.item_id, kept_attributes({name: attributes[name] for name in self._fields if name in attributes})
        )

    def _keep(self, facts: Mapping[int, ItemFact]) -> None:
        self._facts.update(facts)
        while len(self._facts) > self._max_facts:
            del self._facts[next(iter(self._facts))]
