"""`recall users forget` and `recall users load` against a live worker: what is gone, what stays out, what adds up."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from schemas import codec
from schemas.activity import UserActivity
from schemas.records import UserRecord, compact_seen, hash64, seen_items
from tests.e2e.cli import Done, Place
from tests.e2e.conftest import Live
from tests.e2e.test_live import click, known, new, now_ms, request, until
from workers import forgetting
from workers.client import RecallClient
from workers.errors import RecallError
from workers.live.sender import Sender
from workers.local.workers import environment
from workers.merge import merge
from workers.ports import UserChange
from workers.settings import Settings
from workers.stores import keys
from workers.stores.connect import connect
from workers.stores.user_redis import RedisUserTable


@pytest.fixture
def place(live: Live, tmp_path: Path) -> Place:
    """A folder in which commands use the live system."""
    variables = {name: value for name, value in environment(live.settings).items() if name != "RECALL_DATA_DIR"}
    return Place(tmp_path, variables)


@pytest.fixture
async def table(live: Live) -> AsyncIterator[RedisUserTable]:
    """The live system's users."""
    table = RedisUserTable(connect(live.settings), live.settings)
    yield table
    await table.close()


async def run(place: Place, *arguments: str) -> dict[str, Any]:
    """The JSON that a command prints."""
    done: Done = await asyncio.to_thread(place.recall, *arguments, "--json")
    assert done.code == 0, done
    found: dict[str, Any] = orjson.loads(done.out)
    return found


async def read(table: RedisUserTable, user: str) -> tuple[UserRecord, bytes]:
    (stored,) = await table.read([user])
    assert stored.record is not None
    return UserRecord.decode(stored.record), stored.seen


def ids(record: UserRecord) -> set[int]:
    return set(record.rows()["event"].tolist())


async def test_forgetting_empties_all_and_keeps_out_what_was_before_for_as_long_as_a_record_lives(
    live: Live, place: Place, client: RecallClient, sender: Sender, table: RedisUserTable
) -> None:
    user, other = new("ü 🎬"), new("u")
    before = [click(user, f"film-{n}", attributes={"age": n}) for n in range(5)]
    await sender.activities([*before, click(other, "film-1")])
    await known(client, user, before[-1].event_id)

    assert (await run(place, "users", "forget", user, user, "--wait"))["forgotten"] == 1
    record, seen = await read(table, user)
    empty = UserRecord(token=record.token, forgotten_ms=record.forgotten_ms, forget_taken_ms=record.forget_taken_ms)
    assert record == empty
    assert record.forgotten_ms >= before[-1].timestamp_ms
    assert seen == b""
    redis = connect(live.settings)
    left_ms = await redis.pttl(keys.user_record(live.settings, user))
    assert 0 < left_ms <= live.settings.user_ttl_ms  # the marker goes as a record does
    assert await redis.exists(keys.user_seen(live.settings, user)) == 0
    await redis.aclose()
    assert "cold_start" in (await client.ask(request(user))).reasons

    after = click(user, "film-9", timestamp_ms=record.forgotten_ms + 1)
    await sender.activities([*before, after, *before])  # late copies, before and after what is new
    await until_holds(table, user, after)
    record, seen = await read(table, user)
    assert (ids(record), record.count, record.profile) == ({hash64(after.event_id)}, 1, ())
    assert seen_items(seen).tolist() == [hash64("film-9")]
    assert len((await read(table, other))[0].rows()) == 1


async def until_holds(table: RedisUserTable, user: str, event: UserActivity) -> None:
    """Wait until the record holds an event, and every other that was sent before it or with it."""

    async def look() -> bool:
        return hash64(event.event_id) in ids((await read(table, user))[0])

    await until(look)


async def test_forgetting_again_forgets_again(
    place: Place, client: RecallClient, sender: Sender, table: RedisUserTable
) -> None:
    user = new("u")
    assert (await run(place, "users", "forget", user, "--wait"))["forgotten"] == 1  # whom nobody knows
    event = click(user, "film-1", timestamp_ms=now_ms() + 1000)
    await sender.activities([event])
    await known(client, user, event.event_id)
    assert (await run(place, "users", "forget", user, "--wait"))["forgotten"] == 1
    assert (await read(table, user))[0].history == b""


async def test_a_file_of_ids_and_standard_input(place: Place, table: RedisUserTable) -> None:
    users = [new("u") for _ in range(2500)]
    (place.folder / "ids").write_text("\n".join(users[:2000]) + "\r\n\n")
    assert (await run(place, "users", "forget", users[0], "--file", "ids", "--wait"))["forgotten"] == 2000

    def piped() -> Done:
        running = place.start("users", "forget", "--file", "-", "--wait", "--json")
        assert running.process.stdin is not None
        running.process.stdin.write("\n".join(users[2000:]))
        return running.done()

    done = await asyncio.to_thread(piped)
    assert (done.code, orjson.loads(done.out)["forgotten"]) == (0, 500), done
    assert all(UserRecord.decode(each or b"").forget_taken_ms for each in await table.records(users))


async def test_waiting_ends_with_a_word_when_nothing_comes_of_it(settings: Settings) -> None:
    table = RedisUserTable(connect(settings), settings)
    marked = UserRecord(token=b"tokentok", forgotten_ms=7, forget_taken_ms=7).encode()
    await table.write([UserChange("done", b"", marked), UserChange("odd", b"", b"\x02tokentok and more")])
    left: list[int] = []
    await forgetting.wait_forgotten(table, {"done": 7}, left.append)
    with pytest.raises(RecallError, match=r"2 of 3 users are not forgotten yet, 'odd' is one; does an activity worker"):
        await forgetting.wait_forgotten(table, {"done": 7, "odd": 7, "nobody": 7}, left.append, patience_s=0.0)
    with pytest.raises(RecallError, match="1 of 1 users"):
        await forgetting.wait_forgotten(table, {"done": 8}, left.append, patience_s=0.0)
    assert left[0] == 0
    assert set(left) == {0, 1, 2}
    await table.close()


async def test_a_load_beside_the_live_stream_adds_up(
    live: Live, place: Place, sender: Sender, table: RedisUserTable
) -> None:
    users, rng = [new("u") for _ in range(30)], random.Random(6)
    events = {
        user: [
            click(user, f"film-{rng.randint(0, 9)}", timestamp_ms=now_ms() - rng.randint(0, 10**9)) for _ in range(60)
        ]
        for user in users
    }
    history = [event for user in users for event in events[user][:40]]
    rng.shuffle(history)
    (place.folder / "history.jsonl").write_bytes(b"\n".join(map(codec.encode_event, history)))
    stream = [events[user][n] for n in range(20, 60) for user in users]  # half of it is in the file as well

    async def live_stream() -> None:
        for start in range(0, len(stream), 50):
            await sender.activities(stream[start : start + 50])
            await asyncio.sleep(0.02)

    loaded, _ = await asyncio.gather(run(place, "users", "load", "history.jsonl"), live_stream())
    assert (loaded["users"], loaded["events"], loaded["skipped"]) == (30, len(history), 0)
    assert loaded["accepted"] + loaded["duplicate"] == len(history)

    async def complete() -> bool:
        return all([len((await read(table, user))[0].rows()) == 60 for user in users])

    await until(complete)
    for user in users:
        expected = merge(UserRecord(), events[user], live.bundle.spec.seen_actions)
        record, seen = await read(table, user)
        assert record == UserRecord(
            token=record.token, count=60, history=expected.record.history, profile=expected.record.profile
        )
        assert compact_seen(seen) == compact_seen(expected.seen)
