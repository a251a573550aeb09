"""A data set in columns, from which our events are made: all at once as a log, or one by one for a replay."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.event_log import Catalogue, EventLog, ProfileChange
from schemas.activity import UserActivity
from schemas.items import ItemUpdate
from schemas.records import hash64

PROFILE_ACTION = "profile"


class DatasetError(ValueError):
    """Data that cannot be had or read; one line."""


@dataclass(frozen=True)
class Dataset:
    """Items, users and what they did, in log order. `spec` names a builtin feature spec."""

    name: str
    spec: str
    item_ids: Sequence[str]
    attributes: Sequence[dict[str, Any]]
    item_added_ms: NDArray[np.int64]  # int64[M], when each item appeared
    user_ids: Sequence[str]
    profiles: Sequence[ProfileChange]
    actions: Sequence[str]
    user: NDArray[np.int32]  # int32[N], index into user_ids
    item: NDArray[np.int32]  # int32[N], index into item_ids
    action: NDArray[np.int8]  # int8[N], index into actions
    value: NDArray[np.float32]  # float32[N], NaN = none
    timestamp_ms: NDArray[np.int64]  # int64[N], rising
    validation_ms: int  # fit on what is before, tune on [validation_ms, test_ms), report on what is later
    test_ms: int
    contexts: Sequence[Mapping[str, Any] | None] = ()

    @cached_property
    def number(self) -> NDArray[np.int64]:
        """int64[N]: how many events of the same user stand before each."""
        order = np.argsort(self.user, kind="stable")
        starts = np.searchsorted(self.user[order], np.arange(len(self.user_ids)))
        numbers = np.empty(len(order), dtype=np.int64)
        numbers[order] = np.arange(len(order)) - starts[self.user[order]]
        return numbers

    @cached_property
    def log(self) -> EventLog:
        """All activities in columns."""
        items = np.array([hash64(item_id) for item_id in self.item_ids], dtype=np.uint64)
        actions = np.array([hash64(action) for action in self.actions], dtype=np.uint64)
        names = [self.user_ids[user] for user in self.user.tolist()]
        events = (hash64(event_id(name, n)) for name, n in zip(names, self.number.tolist(), strict=True))
        return EventLog(
            user_ids=self.user_ids,
            user=self.user,
            event=np.fromiter(events, dtype=np.uint64, count=len(names)),
            item=items[self.item],
            action=actions[self.action],
            value=self.value,
            timestamp_ms=self.timestamp_ms,
            profiles=self.profiles,
            contexts=self.contexts,
        )

    def items(self, until_ms: int | None = None) -> Iterator[ItemUpdate]:
        """The catalogue as upserts; with `until_ms`, only what had appeared by then."""
        for item_id, attributes, added_ms in zip(
            self.item_ids, self.attributes, self.item_added_ms.tolist(), strict=True
        ):
            if until_ms is None or added_ms < until_ms:
                yield ItemUpdate(item_id=item_id, op="upsert", timestamp_ms=added_ms, attributes=attributes)

    def catalogue(self, until_ms: int | None = None) -> Catalogue:
        """The catalogue in columns."""
        return Catalogue.from_updates(self.items(until_ms))

    def activities(self, rows: Iterable[int]) -> Iterator[UserActivity]:
        """Some rows as events."""
        for row in rows:
            name, value = self.user_ids[self.user[row]], float(self.value[row])
            yield UserActivity(
                event_id=event_id(name, int(self.number[row])),
                user_id=name,
                action=self.actions[self.action[row]],
                timestamp_ms=int(self.timestamp_ms[row]),
                item_id=self.item_ids[self.item[row]],
                value=None if np.isnan(value) else value,
                context=dict(self.contexts[row] or {}) or None if self.contexts else None,
            )

    def profile_activities(self) -> Iterator[UserActivity]:
        """Profile changes as events, which name no item."""
        for n, (user, timestamp_ms, attributes) in enumerate(self.profiles):
            name = self.user_ids[user]
            yield UserActivity(
                event_id=f"{name}-profile-{n}",
                user_id=name,
                action=PROFILE_ACTION,
                timestamp_ms=timestamp_ms,
                attributes=attributes,
            )


def event_id(user_id: str, number: int) -> str:
    """The id of a user's n-th event."""
    return f"{user_id}-{number}"
