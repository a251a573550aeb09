"""Who asks in `recall bench seen`: the busiest and the quietest users of a data set, and what they are to be shown."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from models.datasets import Dataset
from models.evaluation.protocol import Window
from models.event_log import EventLog
from models.samples import Requests, is_target
from models.tensors import Encoding
from schemas import codec
from workers.errors import RecallError
from workers.kafka_client import Message

LEAST_SEEN, MOST_SEEN = 500, 2000
HELD_OUT = 20


@dataclass(frozen=True)
class Reader:
    """One who asks: a user of the data set, or two under one id. Rows are positions in the data set, in log order."""

    user_id: str
    members: tuple[int, ...]  # indices into the data set's users
    known: NDArray[np.int64]  # rows of what the system is told
    held_out: NDArray[np.int64]  # rows of what came later, which it is to foretell

    def seen(self, dataset: Dataset) -> NDArray[np.int64]:
        """int64[n]: items of what is known, each once, sorted."""
        return np.unique(dataset.item[self.known]).astype(np.int64)

    def as_of_ms(self, dataset: Dataset, step_ms: int) -> int:
        """The first step of time in which everything known is visible."""
        return int(dataset.timestamp_ms[self.known].max()) // step_ms * step_ms + step_ms


def heavy_readers(dataset: Dataset, number: int) -> list[Reader]:
    """The busiest users without their newest HELD_OUT events; LEAST_SEEN to MOST_SEEN items are left of each.

    A data set may have too few of these (MovieLens-1M has fewer than 400): then pairs of the busiest of the others take
    part as one reader each, the way a household shares an account. Raises RecallError when that is not enough.
    """
    rows = _rows_of_users(dataset)
    alone: list[Reader] = []
    rest: list[int] = []
    for user in sorted(range(len(rows)), key=lambda user: -len(rows[user])):
        reader = _heavy(dataset, rows, (user,))
        if _fits(reader, dataset):
            alone.append(reader)
        elif len(reader.known) < LEAST_SEEN:
            rest.append(user)
    pairs = (_heavy(dataset, rows, members) for members in zip(rest[::2], rest[1::2], strict=False))
    found = alone[:number]
    while len(found) < number:
        pair = next(pairs, None)
        if pair is None:
            raise RecallError(f"{dataset.name} has {len(found)} readers of {LEAST_SEEN} to {MOST_SEEN} items")
        if _fits(pair, dataset):
            found.append(pair)
    return found


def light_readers(dataset: Dataset, number: int) -> list[Reader]:
    """The users with the fewest events, all of them known."""
    rows = _rows_of_users(dataset)
    users = sorted(range(len(rows)), key=lambda user: len(rows[user]))[:number]
    return [Reader(dataset.user_ids[user], (user,), rows[user], np.zeros(0, dtype=np.int64)) for user in users]


def fit_log(dataset: Dataset, readers: Sequence[Reader]) -> EventLog:
    """The data set's activities without what is held out."""
    kept = np.ones(len(dataset.user), dtype=np.bool_)
    for reader in readers:
        kept[reader.held_out] = False
    return dataset.log.where(kept)


def known_log(dataset: Dataset, readers: Sequence[Reader]) -> EventLog:
    """What is known of the readers, who are the users 0, 1, ... of it."""
    log = dataset.log
    rows = np.concatenate([reader.known for reader in readers])
    profiles = {user: (at_ms, attributes) for user, at_ms, attributes in dataset.profiles}
    return replace(
        log,
        user_ids=[reader.user_id for reader in readers],
        user=np.repeat(np.arange(len(readers), dtype=np.int32), [len(reader.known) for reader in readers]),
        **{name: getattr(log, name)[rows] for name in ("event", "item", "action", "value", "timestamp_ms")},
        profiles=[(n, *profiles[reader.members[0]]) for n, reader in enumerate(readers)],
        contexts=[log.contexts[row] for row in rows.tolist()] if log.contexts else (),
    )


def messages(dataset: Dataset, readers: Sequence[Reader]) -> Iterator[Message]:
    """The profile of each reader (of two the first one's) and what is known of it, as messages of `user-activity`."""
    users = [user for user, _, _ in dataset.profiles]
    profiles = dict(zip(users, dataset.profile_activities(), strict=True))
    for reader in readers:
        key = reader.user_id.encode()
        for activity in (profiles[reader.members[0]], *dataset.activities(reader.known.tolist())):
            yield key, codec.encode_event(structs.replace(activity, user_id=reader.user_id)), ()


def held_out_targets(dataset: Dataset, readers: Sequence[Reader], encoding: Encoding) -> list[list[int]]:
    """For each reader the items of held-out target events that it had not seen."""
    target = is_target(dataset.log, encoding)
    return [
        np.setdiff1d(dataset.item[reader.held_out[target[reader.held_out]]], reader.seen(dataset)).tolist()
        for reader in readers
    ]


def window(dataset: Dataset, readers: Sequence[Reader], items: Sequence[Sequence[int]], step_ms: int) -> Window:
    """One request of each reader, whose "targets" are any items whose exact rank is asked for, in order."""
    requests = Requests(
        np.arange(len(readers), dtype=np.int64),
        np.array([reader.as_of_ms(dataset, step_ms) for reader in readers], dtype=np.int64),
        [None] * len(readers),
    )
    events = np.array([len(reader.known) for reader in readers], dtype=np.int64)
    request = np.repeat(np.arange(len(readers), dtype=np.int64), [len(asked) for asked in items])
    return Window(requests, request, np.array([n for asked in items for n in asked], dtype=np.int64), events, events)


def _heavy(dataset: Dataset, rows: Sequence[NDArray[np.int64]], members: tuple[int, ...]) -> Reader:
    return Reader(
        user_id="+".join(dataset.user_ids[user] for user in members),
        members=members,
        known=np.sort(np.concatenate([rows[user][:-HELD_OUT] for user in members])),
        held_out=np.sort(np.concatenate([rows[user][-HELD_OUT:] for user in members])),
    )


def _fits(reader: Reader, dataset: Dataset) -> bool:
    return len(reader.known) >= LEAST_SEEN and LEAST_SEEN <= len(reader.seen(dataset)) <= MOST_SEEN


def _rows_of_users(dataset: Dataset) -> list[NDArray[np.int64]]:
    order = np.argsort(dataset.user, kind="stable")
    counts = np.bincount(dataset.user, minlength=len(dataset.user_ids))
    return np.split(order, np.cumsum(counts)[:-1])
