"""Activities through the pipeline into real Redis: whatever is delivered twice, late or beside others counts once."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import numpy as np
import pytest

from schemas.activity import UserActivity
from schemas.codec import ErrorCode
from schemas.records import (
    MAX_HISTORY_ROWS,
    MAX_SEEN_ITEMS,
    SEEN_ENTRY,
    TOKEN_BYTES,
    UserRecord,
    compact_seen,
    hash64,
    seen_items,
)
from tests.conftest import PATIENT_MS, Stack
from workers.errors import DependencyError, DependencyUnavailable
from workers.local.redis import Redis
from workers.pipelines.activity import COMPACT_ABOVE_BYTES, MAX_TRIES, ActivityEvent, ActivityPipeline
from workers.ports import Applied, StoredUser, UserChange, UserTable
from workers.settings import Settings, load_settings
from workers.stores import keys
from workers.stores.connect import connect
from workers.stores.user_memory import MemoryUserTable
from workers.stores.user_redis import RedisUserTable

ALL = frozenset[str]()
KNOWN = frozenset({"view", "buy"})
TAKEN_MS = 1_000_000


@pytest.fixture
def settings(stack: Stack, namespace: str) -> Settings:
    """A table that is waited for: an answer that comes too late is a write that is made, and counted, again."""
    return stack.settings(namespace=namespace, store_timeout_ms=PATIENT_MS)


@pytest.fixture
async def table(settings: Settings) -> AsyncIterator[RedisUserTable]:
    table = RedisUserTable(connect(settings), settings)
    yield table
    await table.close()


def pipeline_on(table: UserTable) -> ActivityPipeline:
    return ActivityPipeline(table, ALL, KNOWN)


def did(user: str, n: int, timestamp_ms: int, **fields: Any) -> ActivityEvent:
    activity = UserActivity(
        event_id=f"event {n}",
        user_id=user,
        timestamp_ms=timestamp_ms,
        **{"action": "view", "item_id": f"item {n}"} | fields,
    )
    return ActivityEvent(user, activity, TAKEN_MS)


def forgotten(user: str, taken_ms: int) -> ActivityEvent:
    return ActivityEvent(user, None, taken_ms)


def made_up(rng: random.Random, users: int, most: int) -> list[ActivityEvent]:
    """Up to `most` events of each user, many at the same time, with repeated items and changing profiles."""
    events = []
    for user in range(users):
        for n in range(rng.randint(1, most)):
            attributes = {"age": rng.randint(1, 3), "city": rng.choice(["Bonn", None, ["a"]])} if n % 3 else None
            item = rng.choice([None, f"item {rng.randint(1, 20)}"])
            value, action = rng.choice([None, 4.5]), rng.choice(["view", "buy"])
            fields = {"item_id": item, "attributes": attributes, "value": value, "action": action}
            events.append(did(f"user {user} 🎬{{}}", n, rng.randint(1, 30), **fields))
    return events


async def run_all(pipeline: ActivityPipeline, events: Sequence[ActivityEvent], rng: random.Random) -> None:
    """In batches of random sizes, none of which may fail."""
    start = 0
    while start < len(events):
        size = rng.choice([1, 7, 64, 1024])
        result = await pipeline.run(events[start : start + size])
        assert result.errors == [None] * len(events[start : start + size])
        start += size


async def facts(table: UserTable, users: Sequence[str]) -> list[tuple[bytes, bytes]]:
    """What is stored of each user, but for the random token: record and compacted seen set."""
    stored = await table.read(users)
    return [
        (UserRecord.decode(user.record or b"").with_token(bytes(TOKEN_BYTES)).encode(), compact_seen(user.seen))
        for user in stored
    ]


def users_of(events: Sequence[ActivityEvent]) -> list[str]:
    return sorted({event.user_id for event in events})


@pytest.mark.parametrize("seed", range(3))
async def test_everything_twice_in_any_order_equals_once(table: RedisUserTable, seed: int) -> None:
    rng = random.Random(seed)
    events = made_up(rng, users=60, most=MAX_HISTORY_ROWS)
    expected = MemoryUserTable()
    await pipeline_on(expected).run(events)
    twice = events * 2
    rng.shuffle(twice)
    await run_all(pipeline_on(table), twice, rng)
    users = users_of(events)
    assert await facts(table, users) == await facts(expected, users)


async def test_long_histories_in_order_with_batches_delivered_again(table: RedisUserTable) -> None:
    rng = random.Random(7)
    events = [did(f"user {rng.randint(0, 9)}", n, n // 3) for n in range(2_000)]
    expected = MemoryUserTable()
    await pipeline_on(expected).run(events)
    outcomes: dict[str, int] = {}
    for start in range(0, len(events), 100):
        back = rng.choice([0, 50, 1200])  # a worker that died before its commit: these come again
        result = await pipeline_on(table).run(events[max(0, start - back) : start + 100])
        for outcome, count in result.outcomes.items():
            outcomes[outcome] = outcomes.get(outcome, 0) + count
    users = users_of(events)
    assert await facts(table, users) == await facts(expected, users)
    assert outcomes["accepted"] == len(events)
    assert outcomes["too_late"] > 0
    assert outcomes["duplicate"] > 0


async def test_two_workers_with_the_same_events_at_once(table: RedisUserTable, settings: Settings) -> None:
    rng = random.Random(3)
    events = made_up(rng, users=5, most=MAX_HISTORY_ROWS)
    expected = MemoryUserTable()
    await pipeline_on(expected).run(events)
    other = RedisUserTable(connect(settings), settings)
    shuffled = rng.sample(events, len(events))
    workers = ((table, events), (other, shuffled), (other, events[::-1]))
    await asyncio.gather(*(run_all(pipeline_on(users), mine, random.Random(1)) for users, mine in workers))
    await other.close()
    users = users_of(events)
    assert await facts(table, users) == await facts(expected, users)


async def test_outcomes_are_counted(table: RedisUserTable) -> None:
    pipeline = pipeline_on(table)
    assert (await pipeline.run([])).outcomes == {}
    assert (await pipeline.run([did("a", n, 100 + n) for n in range(MAX_HISTORY_ROWS + 1)])).outcomes == {
        "accepted": MAX_HISTORY_ROWS + 1
    }
    batch = [
        did("a", 3, 103),
        did("a", 900, 5),
        did("b", 1, 1, action="stare"),
        forgotten("c", 50),
        did("c", 1, 50),
        did("c", 2, 51),
        forgotten("c", 50),
    ]
    assert (await pipeline.run(batch)).outcomes == {
        "duplicate": 2,
        "too_late": 1,
        "accepted": 2,
        "unknown_action": 1,
        "forgotten": 2,
    }
    stored = UserRecord.decode((await table.records(["b"]))[0] or b"")
    assert stored.rows()["action"].tolist() == [hash64("stare")]
    assert stored.count == 1


async def test_a_forgotten_user_leaves_nothing_and_late_copies_stay_out(table: RedisUserTable) -> None:
    pipeline = pipeline_on(table)
    before = [did("a", n, 10 + n, attributes={"age": n}) for n in range(20)]
    await pipeline.run([*before, did("other", 1, 1)])
    untouched = await facts(table, ["other"])
    await pipeline.run([forgotten("a", 25)])
    [user] = await table.read(["a"])
    empty = UserRecord(forgotten_ms=29, forget_taken_ms=25)  # the newest event was dated after the tombstone
    assert UserRecord.decode(user.record or b"").with_token(bytes(TOKEN_BYTES)) == empty
    assert user.seen == b""
    assert (await pipeline.run(before)).outcomes == {"forgotten": 20}
    await pipeline.run([did("a", 50, 60)])
    again = await facts(table, ["a"])
    result = await pipeline.run([*before, forgotten("a", 25), did("a", 50, 60)])  # the topic read from its start
    assert result.outcomes == {"forgotten": 20, "duplicate": 2}
    assert await facts(table, ["a"]) == again
    assert seen_items((await table.read(["a"]))[0].seen).tolist() == [hash64("item 50")]
    assert await facts(table, ["other"]) == untouched


@pytest.mark.parametrize("sizes", [[5], [1, 1, 1, 1, 1], [2, 3], [3, 2]])
async def test_a_tombstone_ends_what_came_before_it_in_any_batches(table: RedisUserTable, sizes: list[int]) -> None:
    events = [did("a", 1, 10), forgotten("a", 20), did("a", 1, 10), did("a", 2, 30), did("a", 3, 15)]
    for size in sizes:
        batch, events = events[:size], events[size:]
        assert (await pipeline_on(table).run(batch)).errors == [None] * size
    [user] = await table.read(["a"])
    assert UserRecord.decode(user.record or b"").rows()["event"].tolist() == [hash64("event 2")]
    assert seen_items(user.seen).tolist() == [hash64("item 2")]


async def test_a_user_nobody_knows_can_be_forgotten(table: RedisUserTable) -> None:
    await pipeline_on(table).run([forgotten("nobody", 20)])
    assert (await pipeline_on(table).run([did("nobody", 1, 20)])).outcomes == {"forgotten": 1}


async def test_a_marker_expires_as_a_record_does(settings: Settings) -> None:
    table = RedisUserTable(connect(settings), settings.model_copy(update={"user_ttl_ms": 200}))
    await pipeline_on(table).run([did("a", 1, 1), forgotten("a", 20)])
    async with asyncio.timeout(20):
        while (await table.read(["a"])) != [StoredUser(None, b"", uncertain=True)]:
            await asyncio.sleep(0.02)
    assert (await pipeline_on(table).run([did("a", 1, 1)])).outcomes == {"accepted": 1}
    await table.close()


async def test_an_unreadable_record_is_kept_and_stops_nobody_else(table: RedisUserTable) -> None:
    odd = b"\x02" + b"tokentok" + b"of a version to come"
    await table.write([UserChange("odd", b"", odd, b"x" * 16)])
    result = await pipeline_on(table).run([did("odd", 1, 1), did("a", 1, 1), forgotten("odd", 5), did("b", 1, 1)])
    assert [error and error.code for error in result.errors] == [
        ErrorCode.RECORD_UNREADABLE,
        None,
        ErrorCode.RECORD_UNREADABLE,
        None,
    ]
    assert result.outcomes == {"accepted": 2}
    assert await table.read(["odd"]) == [StoredUser(odd, b"x" * 16)]
    assert None not in await table.records(["a", "b"])


async def test_a_seen_set_is_compacted_when_it_has_grown(table: RedisUserTable) -> None:
    pipeline, entry = pipeline_on(table), SEEN_ENTRY.itemsize
    events = [did("a", n, 1 + n) for n in range(COMPACT_ABOVE_BYTES // entry + 1)]
    await pipeline.run(events[:-1])
    [full] = await table.read(["a"])
    assert len(full.seen) == COMPACT_ABOVE_BYTES
    await pipeline.run(events[-1:])
    [user] = await table.read(["a"])
    assert len(user.seen) == MAX_SEEN_ITEMS * entry
    assert user.seen == compact_seen(user.seen)
    assert np.frombuffer(user.seen, dtype=SEEN_ENTRY)["timestamp_ms"].tolist() == list(
        range(len(events) - MAX_SEEN_ITEMS + 1, len(events) + 1)
    )
    assert UserRecord.decode(user.record or b"").count == len(events)


class Overtaken:
    """A user table on which somebody else takes in an event of every user between each of the first reads and writes.

    `first` = on how many reads; their events are numbered from 1000.
    """

    def __init__(self, table: UserTable, first: int) -> None:
        self._table = table
        self._left = first
        self._n = 1000

    async def records(self, user_ids: Sequence[str]) -> list[bytes | None]:
        stored = await self._table.records(user_ids)
        if self._left > 0:
            self._left -= 1
            self._n += 1
            await pipeline_on(self._table).run([did(user_id, self._n, self._n) for user_id in user_ids])
        return stored

    async def read(self, user_ids: Sequence[str]) -> list[StoredUser]:
        return await self._table.read(user_ids)

    async def write(self, changes: Sequence[UserChange]) -> list[Applied]:
        return await self._table.write(changes)

    async def close(self) -> None:
        await self._table.close()


async def test_who_was_overtaken_reads_and_merges_again(table: RedisUserTable) -> None:
    batch = [did("a", 1, 1), did("b", 2, 2), did("a", 3, 3)]
    result = await pipeline_on(Overtaken(table, first=3)).run(batch)
    assert result.outcomes == {"accepted": 3}
    a, b = (UserRecord.decode(data or b"") for data in await table.records(["a", "b"]))
    assert a.rows()["timestamp_ms"].tolist() == [1, 3, 1001, 1002, 1003]
    assert b.rows()["timestamp_ms"].tolist() == [2, 1001, 1002, 1003]


async def test_the_last_try_counts_and_then_it_is_a_dependency_error(table: RedisUserTable) -> None:
    assert (await pipeline_on(Overtaken(table, first=MAX_TRIES - 1)).run([did("a", 1, 1)])).outcomes == {"accepted": 1}
    with pytest.raises(DependencyUnavailable, match="1 users"):
        await pipeline_on(Overtaken(table, first=MAX_TRIES)).run([did("b", 1, 1)])


async def test_a_killed_server_is_waited_for_and_nothing_is_lost(own_redis: Redis, namespace: str) -> None:
    settings = load_settings(redis_url=own_redis.address, namespace=namespace, store_timeout_ms=PATIENT_MS)
    table = RedisUserTable(connect(settings), settings)
    rng = random.Random(5)
    events = made_up(rng, users=20, most=MAX_HISTORY_ROWS)
    expected = MemoryUserTable()
    await pipeline_on(expected).run(events)
    half = len(events) // 2
    await run_all(pipeline_on(table), events[:half], rng)
    own_redis.kill()
    async with asyncio.timeout(20):
        with pytest.raises(DependencyError):
            await pipeline_on(table).run(events[half:])
    own_redis.start()
    own_redis.wait_ready()
    await run_all(pipeline_on(table), events[half - 50 :], rng)
    assert await facts(table, users_of(events)) == await facts(expected, users_of(events))
    await table.close()


async def test_a_full_server_is_a_dependency_error_until_it_has_room(own_redis: Redis, namespace: str) -> None:
    settings = load_settings(redis_url=own_redis.address, namespace=namespace, store_timeout_ms=PATIENT_MS)
    client = connect(settings)
    table = RedisUserTable(client, settings)
    events = [did("a", 1, 1), did("b", 1, 1)]
    await client.config_set("maxmemory", 1)
    with pytest.raises(DependencyUnavailable, match="command not allowed when used memory > 'maxmemory'"):
        await pipeline_on(table).run(events)
    await client.config_set("maxmemory", 0)
    assert (await pipeline_on(table).run(events)).outcomes == {"accepted": 2}
    await table.close()


@pytest.mark.parametrize("key", [keys.user_record, keys.user_seen])
async def test_a_key_of_another_type_is_left_alone_and_stops_nobody_else(
    table: RedisUserTable, settings: Settings, key: Callable[[Settings, str], bytes]
) -> None:
    client = connect(settings)
    await client.rpush(key(settings, "odd"), "not ours")
    result = await pipeline_on(table).run([did("a", 1, 1), did("odd", 1, 1), did("b", 1, 1)])
    assert [error and error.code for error in result.errors] == [None, ErrorCode.RECORD_UNREADABLE, None]
    assert result.outcomes == {"accepted": 2}
    assert await client.lrange(key(settings, "odd"), 0, -1) == [b"not ours"]
    assert [data is None for data in await table.records(["a", "odd", "b"])] == [False, True, False]
    await client.aclose()
