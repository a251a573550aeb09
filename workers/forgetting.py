"""Forget users: a null on `user-activity` under each one's key, and the proof in the user table that it came in."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

from schemas import codec
from schemas.records import RecordFormatError, UserRecord
from workers.errors import RecallError
from workers.kafka_client import Message, produce
from workers.ports import UserTable
from workers.settings import Settings

READ_AT_ONCE = 1000
LOOK_EVERY_S = 0.1
PATIENCE_S = 20.0


async def forget(settings: Settings, user_ids: Sequence[str]) -> dict[str, int]:
    """Send a tombstone for each user, once; when all replicas have them, user id -> the broker's time of it, epoch ms.

    Routed by key as every Kafka client does, so that it stands behind the user's activities. Idempotent in its effect:
    another one forgets what the user did in between. Raises DecodeError for an id that is none, before anything is
    sent; and what `produce` raises.
    """
    distinct = list(dict.fromkeys(user_ids))
    taken_ms: list[int] = []
    await produce(settings, settings.topic("user-activity"), list(_tombstones(distinct)), taken_ms.append)
    return dict(zip(distinct, taken_ms, strict=True))


def _tombstones(user_ids: Iterable[str]) -> Iterator[Message]:
    for user_id in user_ids:
        key = user_id.encode()
        codec.decode_key(key)
        yield key, None, ()


async def wait_forgotten(
    users: UserTable,
    taken_ms: Mapping[str, int],
    waiting: Callable[[int], None] = lambda _: None,
    patience_s: float = PATIENCE_S,
) -> None:
    """Wait until the record of each user says that the tombstone of this time, or a later one, was taken in.

    `waiting` is told how many are left. Raises RecallError when for `patience_s` none of them was; DependencyError.
    """
    left = dict(taken_ms)
    end_s = time.monotonic() + patience_s
    while left:
        before = len(left)
        left = await _not_yet(users, left)
        waiting(len(left))
        if len(left) < before:
            end_s = time.monotonic() + patience_s
        elif time.monotonic() > end_s:
            line = f"{len(left)} of {len(taken_ms)} users are not forgotten yet, {next(iter(left))!r} is one"
            raise RecallError(f"{line}; does an activity worker run? (`recall status`, `recall dead-letters list`)")
        if left:
            await asyncio.sleep(LOOK_EVERY_S)


async def _not_yet(users: UserTable, taken_ms: Mapping[str, int]) -> dict[str, int]:
    """Those whose record does not say so."""
    left: dict[str, int] = {}
    entries = iter(taken_ms.items())
    while some := dict(islice(entries, READ_AT_ONCE)):
        for user_id, stored in zip(some, await users.records(list(some)), strict=True):
            if _forget_taken_ms(stored) < some[user_id]:
                left[user_id] = some[user_id]
    return left


def _forget_taken_ms(stored: bytes | None) -> int:
    """The time of the newest tombstone in a record; 0 without one, and where it cannot be read."""
    try:
        return 0 if stored is None else UserRecord.decode(stored).forget_taken_ms
    except RecordFormatError:
        return 0
