"""Which event of each item counts: the order of item updates, decided purely.

The later offset wins. An item lives in the partition of its first accepted update, two ids with one hash cannot both be
stored, and a version may not go down. Versions are compared with the last accepted update and not with the highest ever
seen, and a tombstone carries none: so a rebuild from the compacted topic, where only the last update of each key is
left, decides the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from schemas import codec
from schemas.codec import ErrorCode
from schemas.items import ItemUpdate
from schemas.records import ItemRecord, hash64
from workers.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class ItemEvent:
    """One readable record of the topic: an update, or None for a tombstone. `raw` is its value as it came."""

    item_id: str
    update: ItemUpdate | None
    raw: bytes
    partition: int
    offset: int

    @property
    def deletes(self) -> bool:
        """Whether the item is gone after this event."""
        return self.update is None or self.update.op == "delete"

    @property
    def version(self) -> int | None:
        """The version that it carries."""
        return None if self.update is None else self.update.version


def decode_item(record: Any) -> ItemEvent:
    """One record of item-updates; a null value deletes the item named by the key. Raises DecodeError."""
    if record.value is None:
        item_id, update = codec.decode_key(record.key), None
    else:
        update = codec.decode_item(record.value, record.key or b"")
        item_id = update.item_id
    return ItemEvent(item_id, update, record.value or b"", record.partition, record.offset)


def standing(record: ItemRecord) -> ItemEvent:
    """The event that a stored record was made from. Raises DecodeError."""
    update = codec.decode_item(record.update) if record.update else None
    return ItemEvent(record.item_id, update, record.update, record.partition, record.offset)


@dataclass(frozen=True, slots=True)
class Order:
    """Positions of the events that count, one per item, and why others can never count. The rest is superseded."""

    winners: list[int]
    errors: dict[int, InvalidInput]


def decide(batch: Sequence[ItemEvent], stored: Mapping[int, ItemRecord], refused: Mapping[int, InvalidInput]) -> Order:
    """Order a batch on top of the stored records, by item hash; `refused` events are as if they had not come.

    An event at the stored offset is that same event again, and counts again.
    """
    groups: dict[int, list[int]] = {}
    for position, event in enumerate(batch):
        if position not in refused:
            groups.setdefault(hash64(event.item_id), []).append(position)
    order = Order([], dict(refused))
    for item_hash, positions in groups.items():
        _decide_item(batch, positions, stored.get(item_hash), order)
    return order


def _decide_item(batch: Sequence[ItemEvent], positions: Sequence[int], record: ItemRecord | None, order: Order) -> None:
    """Add one item's winner and errors to `order`."""
    home = batch[positions[0]] if record is None else record
    version = None if record is None else record.version
    winner: int | None = None
    for position in sorted(positions, key=lambda position: batch[position].offset):
        event = batch[position]
        error = _conflict(event, home)
        if error is not None:
            order.errors[position] = error
        elif record is not None and event.offset < record.offset:
            continue
        elif version is not None and event.version is not None and event.version < version:
            line = f"version {event.version} is lower than {version}, which stands"
            order.errors[position] = InvalidInput(ErrorCode.STALE_VERSION, line, "version")
        else:
            winner, version = position, event.version
    if winner is not None:
        order.winners.append(winner)


def _conflict(event: ItemEvent, home: ItemEvent | ItemRecord) -> InvalidInput | None:
    """Why an event cannot follow the one at home under its hash, whatever their offsets."""
    if event.item_id != home.item_id:
        line = f"another item stands under the hash of this id: {home.item_id!r}"
        return InvalidInput(ErrorCode.HASH_COLLISION, line, "item_id")
    if event.partition != home.partition:
        line = f"the item lives in partition {home.partition}, this update came through {event.partition}"
        return InvalidInput(ErrorCode.WRONG_PARTITION, line)
    return None
