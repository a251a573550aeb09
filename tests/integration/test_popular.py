"""Popular counts and user records on real Redis: whatever is delivered again, in whatever batches, counts once."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

import pytest

from models.spec import parse_spec
from models.tensors import Encoding, Vocabularies
from schemas.activity import UserActivity
from schemas.records import MAX_HISTORY_ROWS, TOKEN_BYTES, UserRecord, compact_seen, hash64
from tests.conftest import PATIENT
from workers.errors import DependencyError, DependencyUnavailable, StoreLost
from workers.pipelines.activity import ActivityEvent, ActivityPipeline
from workers.pipelines.popular_counts import PopularCounts
from workers.popularity import EPOCH_HALF_LIVES, EPOCHS_KEPT, EVERYBODY, UNIT, Popularity, forward_weight
from workers.ports import Applied, StoredUser, UserChange, UserTable
from workers.settings import Settings
from workers.stores import keys
from workers.stores.connect import Client, connect
from workers.stores.popular_redis import RedisPopularTable
from workers.stores.user_redis import RedisUserTable

SEEDS = range(4)
PARTITIONS = 3
USERS = 40
HALF_LIFE_MS = 60_000
EPOCH_MS = EPOCH_HALF_LIVES * HALF_LIFE_MS
START_MS = 1_700_000_000_000
SPEC = f"""
name = "films"
[history]
length = 10
[[history.codes]]
action = "rate"
[target]
action = "rate"
at_least = 4.0
[profile]
gender = {{ kind = "category" }}
[popular]
half_life_ms = {HALF_LIFE_MS}
segment = "gender"
"""
POPULARITY = Popularity(Encoding(parse_spec(SPEC), Vocabularies({"profile.gender": ["F", "M"]}, [])))

Log = dict[int, list[ActivityEvent]]
"""partition -> its events, at their offsets"""
Stored = tuple[list[tuple[bytes, bytes]], dict[bytes, list[tuple[bytes, float]]]]
"""(record without its token and compacted seen set of each user, sorted set of each popular key)"""


@dataclass(frozen=True)
class Place:
    """A namespace of the test's own, and what activities are taken into there."""

    settings: Settings
    client: Client
    users: RedisUserTable
    popular: RedisPopularTable

    def pipeline(self, users: UserTable | None = None) -> ActivityPipeline:
        """A worker's pipeline; on a user table of its own if need be."""
        counts = PopularCounts(self.popular, POPULARITY)
        return ActivityPipeline(users or self.users, frozenset({"rate"}), frozenset({"rate"}), popular=counts)


@pytest.fixture
async def places(settings: Settings) -> AsyncIterator[list[Place]]:
    """Two of them."""
    found = []
    for letter in "ab":
        own = settings.model_copy(update=PATIENT | {"namespace": settings.namespace + letter})
        client = connect(own)
        found.append(
            Place(own, client, RedisUserTable(client, own), RedisPopularTable(client, own, POPULARITY.definition))
        )
    yield found
    for place in found:
        await place.client.aclose()


def made_up(rng: random.Random) -> list[list[UserActivity]]:
    """Per partition, events of its users in log order: at most as many of each as a history holds, over four epochs."""
    partitions: list[list[UserActivity]] = [[] for _ in range(PARTITIONS)]
    for user in range(USERS):
        for n in range(rng.randint(1, MAX_HISTORY_ROWS)):
            partitions[user % PARTITIONS].append(
                UserActivity(
                    event_id=f"event {n}",
                    user_id=f"user {user}",
                    action=rng.choice(["rate", "rate", "view"]),
                    timestamp_ms=START_MS + rng.randint(0, 4 * EPOCH_MS),
                    item_id=rng.choice([None, *(f"item {rng.randint(0, 30)}" for _ in range(5))]),
                    value=rng.choice([None, 3.0, 4.0, 5.0]),
                    attributes={"gender": rng.choice(["F", "M", "X", None])} if rng.random() < 0.2 else None,
                )
            )
    for events in partitions:
        rng.shuffle(events)
    return partitions


def log_of(partitions: Sequence[Sequence[UserActivity]]) -> Log:
    return {
        partition: [
            ActivityEvent(each.user_id, each, START_MS, partition, offset) for offset, each in enumerate(events)
        ]
        for partition, events in enumerate(partitions)
    }


def twice(partitions: Sequence[Sequence[UserActivity]], rng: random.Random) -> list[list[UserActivity]]:
    """The same events, of each a second copy somewhere behind it."""
    copied = []
    for events in partitions:
        places = [(float(n), each) for n, each in enumerate(events)]
        places += [(rng.uniform(n, len(events)), each) for n, each in enumerate(events)]
        copied.append([each for _, each in sorted(places, key=lambda place: place[0])])
    return copied


async def deliver(place: Place, log: Log, rng: random.Random, rewinds: int) -> Counter[str]:
    """Batches over all partitions, cut at random; now and then a partition is read again from an earlier offset."""
    at = dict.fromkeys(log, 0)
    outcomes: Counter[str] = Counter()
    while any(at[partition] < len(log[partition]) for partition in log):
        batch: list[ActivityEvent] = []
        for partition, events in log.items():
            size = rng.choice([0, 1, 5, 40, 200])
            batch += events[at[partition] : at[partition] + size]
            at[partition] = min(at[partition] + size, len(events))
        outcomes.update((await place.pipeline().run(batch)).outcomes)
        if rewinds and rng.random() < 0.5:
            rewinds -= 1
            partition = rng.choice(list(log))
            at[partition] = rng.randint(0, at[partition])
    return outcomes


async def stored(place: Place) -> Stored:
    """All that is stored, but for what tells of deliveries: tokens and offsets."""
    users = await place.users.read([f"user {n}" for n in range(USERS)])
    records = [
        (UserRecord.decode(user.record or b"").with_token(bytes(TOKEN_BYTES)).encode(), compact_seen(user.seen))
        for user in users
    ]
    counts = {}
    for partition in range(PARTITIONS):
        key = keys.popular_counts(place.settings, POPULARITY.definition, partition)
        async for name in place.client.scan_iter(match=key + b":*", count=1000):
            short = name.removeprefix(place.settings.namespace.encode())
            counts[short] = await place.client.zrange(name, 0, -1, withscores=True)
    return records, counts


def expected_of_everybody(events: Sequence[UserActivity]) -> dict[tuple[int, int], int]:
    """(epoch, item hash) -> amount, counted the simple way, of the epochs that are kept."""
    amounts: Counter[tuple[int, int]] = Counter()
    for each in events:
        if each.action == "rate" and each.item_id is not None and (each.value or 0) >= 4.0:
            epoch, amount = forward_weight(each.timestamp_ms, HALF_LIFE_MS)
            amounts[epoch, hash64(each.item_id)] += amount
    newest = max(epoch for epoch, _ in amounts)
    return {place: amount for place, amount in amounts.items() if place[0] > newest - EPOCHS_KEPT}


@pytest.mark.parametrize("seed", SEEDS)
async def test_everything_twice_in_random_batches_equals_a_clean_delivery(places: list[Place], seed: int) -> None:
    rng = random.Random(seed)
    clean, again = places
    events = made_up(rng)
    await deliver(clean, log_of(events), rng, rewinds=0)
    outcomes = await deliver(again, log_of(twice(events, rng)), rng, rewinds=40)
    assert await stored(again) == await stored(clean)
    assert outcomes["accepted"] == sum(map(len, events))
    assert outcomes["duplicate"] >= 2 * outcomes["accepted"]


async def test_a_clean_delivery_counts_what_a_simple_sum_does(places: list[Place]) -> None:
    rng, place = random.Random(9), places[0]
    events = made_up(rng)
    await deliver(place, log_of(events), rng, rewinds=0)
    _, counts = await stored(place)
    for partition in range(PARTITIONS):
        found: dict[tuple[int, int], int] = {}
        for name, rows in counts.items():
            _, _, number = name.partition(f":{partition}}}:".encode())
            epoch, _, segment = number.partition(b":")
            if number and segment == b"":
                found |= {(int(epoch), int.from_bytes(item, "big")): int(amount) for item, amount in rows}
        assert found == expected_of_everybody(events[partition])
    segments = {name.rpartition(b":")[2] for name in counts}
    assert segments == {b"", b"F", b"M"}
    [everybody, women, men] = await place.popular.top([EVERYBODY, "F", "M"], 100)
    totals = [dict(zip(top.hashes.tolist(), (top.scores * UNIT).tolist(), strict=True)) for top in (women, men)]
    for item, score in zip(everybody.hashes.tolist(), (everybody.scores * UNIT).tolist(), strict=True):
        assert sum(of_segment.get(item, 0) for of_segment in totals) <= score


async def test_a_key_of_another_type_in_the_place_of_counts_loses_nothing(places: list[Place]) -> None:
    spoiled, clean = places
    log = log_of(made_up(random.Random(5)))
    batch = [event for events in log.values() for event in events]
    key = keys.popular_counts(spoiled.settings, POPULARITY.definition, 1)
    await spoiled.client.rpush(key, "no counts")
    for _ in range(2):
        with pytest.raises(DependencyError, match="WRONGTYPE"):
            await spoiled.pipeline().run(batch)
    await spoiled.client.delete(key)
    assert (await spoiled.pipeline().run(batch)).errors == [None] * len(batch)
    await clean.pipeline().run(batch)
    assert await stored(spoiled) == await stored(clean)


class Dying:
    """A user table whose writer dies over some of its writes: a part of the changes is written, then no answer comes.

    Writes fail by turns: every other batch comes through.
    """

    def __init__(self, table: UserTable, rng: random.Random) -> None:
        self._table = table
        self._rng = rng
        self.died = 0
        self._dies = True

    async def records(self, user_ids: Sequence[str]) -> list[bytes | None]:
        return await self._table.records(user_ids)

    async def read(self, user_ids: Sequence[str]) -> list[StoredUser]:
        return await self._table.read(user_ids)

    async def write(self, changes: Sequence[UserChange]) -> list[Applied]:
        dies, self._dies = self._dies, not self._dies
        if not dies:
            return await self._table.write(changes)
        self.died += 1
        await self._table.write(self._rng.sample(changes, self._rng.randint(0, len(changes))))
        raise DependencyUnavailable("redis", "gone")

    async def close(self) -> None:
        await self._table.close()


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_worker_that_dies_between_counting_and_writing(places: list[Place], seed: int) -> None:
    rng = random.Random(seed)
    clean, hurt = places
    events = made_up(rng)
    await deliver(clean, log_of(events), rng, rewinds=0)
    log = log_of(twice(events, rng))
    dying = Dying(hurt.users, rng)
    for partition, delivered in log.items():
        at = 0
        while at < len(delivered):
            size = rng.choice([1, 7, 100])  # the batch that comes after a death is cut anew
            try:
                await hurt.pipeline(dying).run(delivered[at : at + size])
            except DependencyUnavailable:
                continue
            at += size
        assert dying.died > 0, partition
    assert await stored(hurt) == await stored(clean)


class Suspended:
    """A user table whose owner falls asleep after its first read, until it is woken."""

    def __init__(self, table: UserTable) -> None:
        self._table = table
        self.asleep = asyncio.Event()
        self.wake = asyncio.Event()

    async def records(self, user_ids: Sequence[str]) -> list[bytes | None]:
        stored = await self._table.records(user_ids)
        self.asleep.set()
        await self.wake.wait()
        return stored

    async def read(self, user_ids: Sequence[str]) -> list[StoredUser]:
        return await self._table.read(user_ids)

    async def write(self, changes: Sequence[UserChange]) -> list[Applied]:
        return await self._table.write(changes)

    async def close(self) -> None:
        await self._table.close()


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_zombie_that_goes_on_with_an_old_batch_counts_nothing(places: list[Place], seed: int) -> None:
    rng = random.Random(seed)
    clean, haunted = places
    log = log_of(made_up(rng))
    await deliver(clean, log, rng, rewinds=0)
    for delivered in log.values():
        suspended = Suspended(haunted.users)
        zombie = asyncio.create_task(haunted.pipeline(suspended).run(delivered[: rng.randint(1, len(delivered))]))
        await suspended.asleep.wait()
        await haunted.pipeline().run(delivered[: rng.randint(1, len(delivered))])
        suspended.wake.set()
        await zombie
        await haunted.pipeline().run(delivered)
    assert await stored(haunted) == await stored(clean)


async def counted(place: Place, events: Sequence[ActivityEvent]) -> Mapping[str, int]:
    return (await place.pipeline().run(events)).outcomes


def did(offset: int, n: int, timestamp_ms: int, user: str = "user 1") -> ActivityEvent:
    activity = UserActivity(
        event_id=f"event {n}", user_id=user, action="rate", timestamp_ms=timestamp_ms, item_id=f"item {n}", value=5.0
    )
    return ActivityEvent(user, activity, START_MS, 0, offset)


async def test_what_a_record_does_not_accept_does_not_count(places: list[Place]) -> None:
    place = places[0]
    full = [did(n, n, 1000 + n) for n in range(MAX_HISTORY_ROWS + 1)]
    assert (await counted(place, full))["counted"] == len(full)
    end = len(full)
    assert await counted(place, [did(end, 3, 1003)]) == {"duplicate": 1}
    assert await counted(place, [did(end + 1, 999, 5)]) == {"too_late": 1}
    gone = ActivityEvent("user 1", None, 5000, 0, end + 2)
    assert await counted(place, [gone, did(end + 3, 1000, 4999)]) == {"forgotten": 2}
    await place.users.write([UserChange("odd", b"", b"\x02" + b"tokentok" + b"of a version to come", b"")])
    odd = await place.pipeline().run([did(end + 4, 1, 9000, "odd"), did(end + 5, 2, 9000, "user 2")])
    assert [error is None for error in odd.errors] == [False, True]
    assert odd.outcomes == {"accepted": 1, "counted": 1}


async def test_users_that_were_lost_and_read_again_from_the_log_are_not_counted_again(places: list[Place]) -> None:
    rng, place = random.Random(2), places[0]
    log = log_of(made_up(rng))
    await deliver(place, log, rng, rewinds=0)
    before = await stored(place)
    for user in range(USERS):
        await place.client.delete(
            keys.user_record(place.settings, f"user {user}"), keys.user_seen(place.settings, f"user {user}")
        )
    outcomes = await deliver(place, log, rng, rewinds=0)
    assert outcomes["counted"] == 0
    assert await stored(place) == before


async def test_a_batch_behind_writes_that_redis_has_lost_is_refused(places: list[Place]) -> None:
    rng = random.Random(5)
    clean, hurt = places
    log = log_of(made_up(rng))
    await deliver(clean, log, rng, rewinds=0)
    for partition, events in log.items():
        cut, lost = len(events) // 3, len(events) // 2
        await hurt.pipeline().run(events[:cut])
        before = await stored_now(hurt)
        with pytest.raises(StoreLost, match=f"partition {partition} end at {cut}, and not {lost}"):
            await hurt.pipeline().run(events[lost:])
        assert await stored_now(hurt) == before, "records are not written either"
        [stands] = await hurt.popular.expected([partition])
        await hurt.pipeline().run(events[stands:])
    assert await stored(hurt) == await stored(clean)


async def stored_now(place: Place) -> dict[bytes, object]:
    """Every key of a place, as it is."""
    found: dict[bytes, object] = {}
    async for key in place.client.scan_iter(match=place.settings.namespace + ":*", count=1000):
        found[key] = await place.client.dump(key)
    return found


async def test_offsets_of_no_event_are_no_gap(places: list[Place]) -> None:
    """What cannot be decoded, and what is no record at all, is within the span of its batch."""
    place = places[0]
    await place.pipeline().run([did(2, 1, 1000)], {0: (0, 5), 2: (0, 3)})
    assert await place.popular.expected([0, 1, 2]) == [5, 0, 3]
    await place.pipeline().run([], {0: (5, 9)})
    result = await place.pipeline().run([did(12, 2, 1001)], {0: (9, 13), 2: (3, 4)})
    assert result.outcomes == {"accepted": 1, "counted": 1}
    again = await place.pipeline().run([did(12, 2, 1001), did(14, 3, 1002)], {0: (9, 15)})
    assert again.outcomes == {"duplicate": 1, "accepted": 1, "counted": 1}
    assert await place.popular.expected([0, 2]) == [15, 4]
