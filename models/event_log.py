"""Activity and catalogue in columns: what fitting and evaluation read."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.activity import UserActivity
from schemas.items import ItemUpdate
from schemas.records import hash64

ProfileChange = tuple[int, int, dict[str, Any]]
"""(user index, timestamp_ms, attributes)"""


@dataclass(frozen=True)
class EventLog:
    """Activities in log order, one row each, and their profile changes.

    Those that name no item take their place in a record's history, so they stand here as well.
    """

    user_ids: Sequence[str]
    user: NDArray[np.int32]  # int32[N], index into user_ids
    event: NDArray[np.uint64]  # uint64[N], hash64 of the event id
    item: NDArray[np.uint64]  # uint64[N], hash64 of the item id, 0 = none
    action: NDArray[np.uint64]  # uint64[N], hash64 of the action
    value: NDArray[np.float32]  # float32[N], NaN = none
    timestamp_ms: NDArray[np.int64]  # int64[N]
    profiles: Sequence[ProfileChange] = ()
    contexts: Sequence[Mapping[str, Any] | None] = ()  # one per row, or none at all

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.user)

    @classmethod
    def from_activities(cls, activities: Iterable[UserActivity]) -> "EventLog":
        """Columns from events. Repeated event ids of a user are taken once."""
        users: dict[str, int] = {}
        rows: dict[tuple[int, int], tuple[int, int, int, int, float, int]] = {}
        profiles: list[ProfileChange] = []
        contexts: list[Mapping[str, Any] | None] = []
        for activity in activities:
            user = users.setdefault(activity.user_id, len(users))
            if activity.attributes:
                profiles.append((user, activity.timestamp_ms, activity.attributes))
            item = 0 if activity.item_id is None else hash64(activity.item_id)
            event, action = hash64(activity.event_id), hash64(activity.action)
            value = np.nan if activity.value is None else activity.value
            if (user, event) not in rows:
                rows[user, event] = (user, event, item, action, value, activity.timestamp_ms)
                contexts.append(activity.context)
        columns = list(zip(*rows.values(), strict=True)) if rows else [()] * 6
        types = (np.int32, np.uint64, np.uint64, np.uint64, np.float32, np.int64)
        user_, event_, item_, action_, value_, time_ = (
            np.array(column, dtype=kind) for column, kind in zip(columns, types, strict=True)
        )
        return cls(
            list(users), user_, event_, item_, action_, value_, time_, profiles, contexts if any(contexts) else ()
        )

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """int64[N]: rows by (user, timestamp_ms, event hash), the order of a user record's history."""
        return np.lexsort((self.event, self.timestamp_ms, self.user))

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """int64[U + 1]: where each user's rows begin in `order`."""
        return np.searchsorted(self.user[self.order], np.arange(len(self.user_ids) + 1))

    def before(self, until_ms: int) -> "EventLog":
        """The rows and profile changes before a time."""
        return self.where(self.timestamp_ms < until_ms, [change for change in self.profiles if change[1] < until_ms])

    def where(self, rows: NDArray[np.bool_], profiles: Sequence[ProfileChange] | None = None) -> "EventLog":
        """Some of the rows; all profile changes unless others are given."""
        return EventLog(
            self.user_ids,
            self.user[rows],
            self.event[rows],
            self.item[rows],
            self.action[rows],
            self.value[rows],
            self.timestamp_ms[rows],
            self.profiles if profiles is None else profiles,
            [self.contexts[row] for row in np.flatnonzero(rows).tolist()] if self.contexts else (),
        )


@dataclass(frozen=True)
class Catalogue:
    """Items as they are at one time: ids, hash64 of each, attributes."""

    item_ids: Sequence[str]
    hashes: NDArray[np.uint64]  # uint64[M]
    attributes: Sequence[dict[str, Any]]

    def __len__(self) -> int:
        """Number of items."""
        return len(self.item_ids)

    @classmethod
    def from_updates(cls, updates: Iterable[ItemUpdate]) -> "Catalogue":
        """The state after these updates: the later one wins, a delete removes."""
        items: dict[str, dict[str, Any]] = {}
        for update in updates:
            items.pop(update.item_id, None)
            if update.op == "upsert":
                items[update.item_id] = update.attributes or {}
        hashes = np.fromiter((hash64(item_id) for item_id in items), dtype=np.uint64, count=len(items))
        return cls(list(items), hashes, list(items.values()))

    def index_of(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """int64 of the same shape: position of each item in the catalogue, -1 for those that are not in it."""
        if len(self) == 0:
            return np.full(hashes.shape, -1, dtype=np.int64)
        order = np.argsort(self.hashes)
        place = np.searchsorted(self.hashes[order], hashes).clip(max=len(self) - 1)
        found = order[place]
        return np.where(self.hashes[found] == hashes, found, -1)
