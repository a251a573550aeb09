"""Which event of each item counts: the order of item updates, decided purely.

The later offset wins. An item lives in the partition of its first accepted update, but moves to the one that the usual
partitioner gives its key, should an update come through that: which update of several partitions is read first depends
on chance when a topic is read from its beginning. Two ids with one hash cannot both be stored, and a version may not go
down. Versions are compared with the last accepted update and not with the highest ever
seen, and a tombstone carries none: so a rebuild from the compacted topic, where only the last update of each key is
left, decides the same.

An update that is refused for its version is the last of its key all the same, and compaction would leave nothing else.
So what stands is produced again behind it, as a winner's copy, which says after which offset it was looked up. What was
accepted between that offset and the copy's own makes the copy outdated: it changes nothing, and what stands is produced
again behind it in turn. A copy that has the bytes of what stands counts in any case, since compaction may leave nothing
else. With no more than one copy of an item for a batch this ends with the last write to the item.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from schemas import codec
from schemas.codec import ErrorCode
from schemas.items import ItemUpdate, copy_after
from schemas.records import ItemRecord, hash64
from workers.errors import InvalidInput
from workers.partitioner import partition_of


@dataclass(frozen=True, slots=True)
class ItemEvent:
    """One readable record of the topic: an update, or None for a tombstone. `raw` is its value as it came.

    `after` is that of a winner's copy: what of the item stood up to this offset was known when it was produced.
    """

    item_id: str
    update: ItemUpdate | None
    raw: bytes
    partition: int
    offset: int
    after: int | None = None

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
    after = copy_after(record.headers)
    return ItemEvent(item_id, update, record.value or b"", record.partition, record.offset, after)


def standing(record: ItemRecord) -> ItemEvent:
    """The event that a stored record was made from. Raises DecodeError."""
    update = codec.decode_item(record.update) if record.update else None
    return ItemEvent(record.item_id, update, record.update, record.partition, record.offset)


@dataclass(frozen=True, slots=True)
class Order:
    """Positions of the events that count, one per item, and why others can never count. The rest is superseded.

    `again`: items whose winner must be produced again, by hash: after which offset it stands.
    """

    winners: list[int]
    errors: dict[int, InvalidInput]
    again: dict[int, int] = field(default_factory=dict)


def decide(
    batch: Sequence[ItemEvent],
    stored: Mapping[int, ItemRecord],
    refused: Mapping[int, InvalidInput],
    partitions: int | None = None,
) -> Order:
    """Order a batch on top of the stored records, by item hash; `refused` events are as if they had not come.

    An event at the stored offset is that same event again, and counts again. The topic has so many `partitions`; where
    that is not known, items never move.
    """
    groups: dict[int, list[int]] = {}
    for position, event in enumerate(batch):
        if position not in refused:
            groups.setdefault(hash64(event.item_id), []).append(position)
    order = Order([], dict(refused))
    for item_hash, positions in groups.items():
        _decide_item(batch, positions, stored.get(item_hash), order, partitions)
    return order


def _decide_item(
    batch: Sequence[ItemEvent],
    positions: Sequence[int],
    record: ItemRecord | None,
    order: Order,
    partitions: int | None,
) -> None:
    """Add one item's winner and errors to `order`."""
    home = _home([batch[position] for position in positions], record, partitions)
    if record is not None and record.partition != home.partition:
        record = None  # it moves
    stands: ItemEvent | ItemRecord | None = record
    passed: list[ItemEvent] = []  # of the item, and of its partition, and without effect
    winner: int | None = None
    for position in sorted(positions, key=lambda position: batch[position].offset):
        event = batch[position]
        error = _conflict(event, home)
        if error is not None:
            order.errors[position] = error
        elif (record is not None and event.offset < record.offset) or _is_outdated(event, stands):
            passed.append(event)
        elif stands is not None and event.after is None and _is_lower(event.version, stands.version):
            line = f"version {event.version} is lower than {stands.version}, which stands"
            order.errors[position] = InvalidInput(ErrorCode.STALE_VERSION, line, "version")
            passed.append(event)
        else:
            winner, stands = position, event
    if winner is not None:
        order.winners.append(winner)
    if stands is not None and any(_misleads(event, stands) for event in passed):
        order.again[hash64(home.item_id)] = max(stands.offset, *(event.offset for event in passed))


def _home(events: Sequence[ItemEvent], record: ItemRecord | None, partitions: int | None) -> ItemEvent | ItemRecord:
    """Whose id and partition the item has: the first one's, or that of one through the usual partition."""
    first = events[0] if record is None else record
    moved = [event for event in events if event.item_id == first.item_id and event.partition != first.partition]
    if not moved or partitions is None:
        return first
    usual = partition_of(first.item_id.encode(), partitions)
    return first if first.partition == usual else next((event for event in moved if event.partition == usual), first)


def _is_outdated(event: ItemEvent, stands: ItemEvent | ItemRecord | None) -> bool:
    """Whether an event is the copy of a winner that another one has followed, before the copy was there.

    One of the same bytes says what stands, and its offset is the one that compaction leaves.
    """
    if event.after is None or stands is None:
        return False
    return event.after < stands.offset != event.offset and event.raw != _raw(stands)


def _misleads(event: ItemEvent, stands: ItemEvent | ItemRecord) -> bool:
    """Whether who reads an event that had no effect, and nothing before it, may take it for the winner in the end.

    It is for what stands behind it to correct that. A copy does not when it was under way by then, nor does an update
    of a lower version than an outdated copy's. A copy of the same bytes says what stands: one that was followed by
    another is not answered either.
    """
    if event.after is not None and event.raw == _raw(stands):
        return False
    known = stands.after if isinstance(stands, ItemEvent) and stands.after is not None else stands.offset
    return event.offset > known or (event.after is not None and _is_lower(stands.version, event.version))


def _raw(stands: ItemEvent | ItemRecord) -> bytes:
    return stands.raw if isinstance(stands, ItemEvent) else stands.update


def _is_lower(version: int | None, than: int | None) -> bool:
    return version is not None and than is not None and version < than


def _conflict(event: ItemEvent, home: ItemEvent | ItemRecord) -> InvalidInput | None:
    """Why an event cannot follow the one at home under its hash, whatever their offsets."""
    if event.item_id != home.item_id:
        line = f"another item stands under the hash of this id: {home.item_id!r}"
        return InvalidInput(ErrorCode.HASH_COLLISION, line, "item_id")
    if event.partition != home.partition:
        line = f"the item lives in partition {home.partition}, this update came through {event.partition}"
        return InvalidInput(ErrorCode.WRONG_PARTITION, line)
    return None
