"""`users load` on real Redis: the same records as by the stream, whoever else writes, and whatever is in the file."""

import asyncio
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from schemas import codec
from schemas.records import MAX_HISTORY_ROWS
from tests.conftest import PATIENT_MS, Stack
from tests.integration.test_activity_pipeline import (
    ALL,
    KNOWN,
    did,
    facts,
    forgotten,
    made_up,
    pipeline_on,
    users_of,
)
from workers.activity_files import open_activities
from workers.clock import SystemClock
from workers.errors import DependencyUnavailable, RecallError
from workers.loading import SHOWN_BAD, WINDOW_EVENTS, DistinctUsers, UserLoad
from workers.local.redis import Redis
from workers.pipelines.activity import ActivityEvent, ActivityPipeline
from workers.ports import UserChange
from workers.settings import Settings, load_settings
from workers.stores.connect import connect
from workers.stores.user_memory import MemoryUserTable
from workers.stores.user_redis import RedisUserTable


@pytest.fixture
def settings(stack: Stack, namespace: str) -> Settings:
    """A table that is waited for: on a busy machine an answer that comes too late is a write that is counted twice."""
    return stack.settings(namespace=namespace, store_timeout_ms=30_000)


@contextmanager
def table_of(settings: Settings) -> Iterator[tuple[asyncio.Runner, RedisUserTable]]:
    """The table, and the loop that its client belongs to."""
    with asyncio.Runner() as runner:
        table = RedisUserTable(connect(settings), settings)
        try:
            yield runner, table
        finally:
            runner.run(table.close())


def load(
    settings: Settings, path: Path, *, skip_bad: bool = False, said: list[str] | None = None, patience_s: float = 30.0
) -> UserLoad:
    """As the command does it."""
    say = (said if said is not None else []).append
    with table_of(settings) as (runner, table), open_activities(path, SystemClock()) as file:
        load = UserLoad(ActivityPipeline(table, ALL, KNOWN), file, skip_bad, say, patience_s)
        for window in load.windows():
            runner.run(load.take(window))
        return load


def stored(settings: Settings, users: Sequence[str]) -> list[tuple[bytes, bytes]]:
    with table_of(settings) as (runner, table):
        return runner.run(facts(table, users))


def replayed(events: Sequence[ActivityEvent]) -> list[tuple[bytes, bytes]]:
    """The facts after the stream alone, in the events' order."""

    async def run() -> list[tuple[bytes, bytes]]:
        table = MemoryUserTable()
        await pipeline_on(table).run(events)
        return await facts(table, users_of(events))

    return asyncio.run(run())


def written(path: Path, events: Sequence[ActivityEvent]) -> Path:
    lines = [codec.encode_event(event.activity) for event in events if event.activity is not None]
    path.write_bytes(b"\n".join(lines))
    return path


def test_the_records_are_those_of_the_stream_in_any_order_and_however_often(settings: Settings, tmp_path: Path) -> None:
    rng = random.Random(1)
    events = made_up(rng, users=300, most=MAX_HISTORY_ROWS)
    shuffled = rng.sample(events, len(events))
    first = load(settings, written(tmp_path / "a", shuffled))
    assert first.loaded.outcomes == {"accepted": len(events)}
    assert (first.loaded.events, first.users.count()) == (len(events), 300)
    assert stored(settings, users_of(events)) == replayed(events)
    again = load(settings, written(tmp_path / "b", events + shuffled))
    assert again.loaded.outcomes == {"duplicate": 2 * len(events)}
    assert stored(settings, users_of(events)) == replayed(events)


def test_a_long_history_counts_whole_when_it_is_sorted_and_nothing_changes_after_that(
    settings: Settings, tmp_path: Path
) -> None:
    """More than a window, so that users go on in the next one."""
    events = [did(f"user {n % 7}", n, n) for n in range(WINDOW_EVENTS + 5000)]
    path = written(tmp_path / "a", events)
    assert load(settings, path).loaded.outcomes == {"accepted": len(events)}
    users = users_of(events)
    expected = replayed(events)
    assert stored(settings, users) == expected
    again = load(settings, path).loaded
    assert again.outcomes == {"duplicate": 7 * MAX_HISTORY_ROWS, "too_late": len(events) - 7 * MAX_HISTORY_ROWS}
    assert stored(settings, users) == expected


def test_several_loads_and_a_live_worker_at_once_lose_nothing(settings: Settings, tmp_path: Path) -> None:
    rng = random.Random(2)
    events = made_up(rng, users=40, most=MAX_HISTORY_ROWS)
    paths = [written(tmp_path / str(n), rng.sample(events, 2 * len(events) // 3)) for n in range(2)]
    paths.append(written(tmp_path / "all", events))

    async def work(table: RedisUserTable, batch: Sequence[ActivityEvent]) -> None:
        with suppress(DependencyUnavailable):  # who is overtaken all the time tries again, as a worker does
            await pipeline_on(table).run(batch)
            return
        await work(table, batch)

    def live() -> None:
        mine = rng.sample(events, 2 * len(events) // 3)
        with table_of(settings) as (runner, table):
            for start in range(0, len(mine), 16):
                runner.run(work(table, mine[start : start + 16]))

    with ThreadPoolExecutor() as pool:
        running = [pool.submit(live), *(pool.submit(load, settings, path) for path in paths)]
    assert [each.exception() for each in running] == [None] * 4
    assert stored(settings, users_of(events)) == replayed(events)


def test_what_a_forgotten_user_did_before_stays_out(settings: Settings, tmp_path: Path) -> None:
    before, after = [did("a", n, 10 + n) for n in range(20)], [did("a", 50, 60), did("b", 1, 1)]
    with table_of(settings) as (runner, table):
        runner.run(pipeline_on(table).run([*before, forgotten("a", 40)]))
    assert load(settings, written(tmp_path / "a", before + after)).loaded.outcomes == {"accepted": 2, "forgotten": 20}
    assert stored(settings, ["a", "b"]) == replayed([*before, forgotten("a", 40), *after])


def test_a_bad_line_stops_before_its_window_is_taken_in(settings: Settings, tmp_path: Path) -> None:
    events = [did("a", n, n) for n in range(WINDOW_EVENTS + 10)]
    path = written(tmp_path / "a.jsonl", events)
    with path.open("ab") as stream:
        stream.write(b'\nrubbish\n{"event_id":"e"}\n')
    line = rf"a\.jsonl:{len(events) + 1}: not_json: .*; {WINDOW_EVENTS:,} activities are taken in; --skip-bad goes on"
    with pytest.raises(RecallError, match=line):
        load(settings, path)
    assert stored(settings, ["a"]) == replayed(events[:WINDOW_EVENTS])


def test_bad_lines_are_counted_and_the_first_are_named(settings: Settings, tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [did("a", 1, 1)])
    path.write_bytes(b"rubbish\n" * 50 + path.read_bytes() + b"\n[]")
    said: list[str] = []
    loaded = load(settings, path, skip_bad=True, said=said).loaded
    assert (loaded.events, loaded.skipped, loaded.outcomes) == (1, 51, {"accepted": 1})
    assert len(said) == SHOWN_BAD + 1
    assert said[0].startswith(f"{path}:1: not_json: ")
    assert said[-1] == "more is skipped"


def test_a_user_whose_record_cannot_be_read_is_left_alone(settings: Settings, tmp_path: Path) -> None:
    odd = b"\x02" + b"tokentok" + b"of a version to come"
    with table_of(settings) as (runner, table):
        runner.run(table.write([UserChange("odd", b"", odd)]))
    path = written(tmp_path / "a", [did("odd", 1, 1), did("a", 1, 1), did("odd", 2, 2)])
    with pytest.raises(RecallError, match=r"user 'odd': record_unreadable: .*--skip-bad"):
        load(settings, path)
    said: list[str] = []
    loaded = load(settings, path, skip_bad=True, said=said).loaded
    assert (loaded.events, loaded.skipped) == (1, 2)
    assert len(said) == 1
    with table_of(settings) as (runner, table):
        assert runner.run(table.records(["odd"])) == [odd]


def test_a_server_that_comes_back_is_waited_for(own_redis: Redis, namespace: str, tmp_path: Path) -> None:
    settings = load_settings(redis_url=own_redis.address, namespace=namespace, store_timeout_ms=PATIENT_MS)
    events = made_up(random.Random(4), users=20, most=MAX_HISTORY_ROWS)
    path = written(tmp_path / "a", events)
    own_redis.kill()
    with ThreadPoolExecutor() as pool:
        loaded = pool.submit(load, settings, path)
        own_redis.start()
        own_redis.wait_ready()
        assert loaded.result().loaded.outcomes == {"accepted": len(events)}
    assert stored(settings, users_of(events)) == replayed(events)


def test_one_that_does_not_is_given_up(own_redis: Redis, namespace: str, tmp_path: Path) -> None:
    settings = load_settings(redis_url=own_redis.address, namespace=namespace)
    own_redis.kill()
    with pytest.raises(RecallError, match=r"redis: .*; 0 activities are taken in, and count once when loaded again"):
        load(settings, written(tmp_path / "a", [did("a", 1, 1)]), patience_s=0.0)


def test_users_are_counted_once() -> None:
    users = DistinctUsers()
    rng = random.Random(5)
    seen: set[str] = set()
    assert users.count() == 0
    for _ in range(200):
        some = [f"user {rng.randint(0, 3000)}" for _ in range(rng.randint(1, 50))]
        seen.update(some)
        users.add(some)
        assert rng.random() < 0.9 or users.count() == len(seen)
    assert users.count() == len(seen)
