"""What counts as stuck: the same for so many looks in a row, whatever any clock says."""

import asyncio

import pytest

from workers.watchdog import TURN_S, Unchanged, Watchdog, Watched


def test_only_the_same_again_and_again_counts() -> None:
    unchanged = Unchanged()
    assert [unchanged.look(found) for found in (1, 1, 1, 2, 2, 1)] == [0, 1, 2, 0, 1, 0]


def test_nothing_to_be_stuck_with_begins_anew() -> None:
    unchanged = Unchanged()
    assert [unchanged.look(found) for found in (None, None, "b", "b", None, "b", "b")] == [0, 0, 0, 1, 0, 0, 1]


def test_it_is_told_with_its_limit() -> None:
    watched = Watched("nothing happened", 3 * TURN_S, lambda: "same")
    assert [watched.stuck() for _ in range(4)] == [None, None, None, f"nothing happened for {3 * TURN_S:g} s"]


async def test_what_is_stuck_ends_the_process_and_what_turns_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.watchdog.TURN_S", 0.01)
    ends: asyncio.Queue[str] = asyncio.Queue()
    monkeypatch.setattr("workers.watchdog.end_stuck", ends.put_nowait)
    looks = 0

    def look() -> int:
        nonlocal looks
        looks += 1
        return min(looks, 20)

    running = asyncio.create_task(Watchdog(1000.0, [Watched("no looks", 0.05, look)]).run())
    line = await asyncio.wait_for(ends.get(), 10.0)
    running.cancel()
    assert line == "no looks for 0.05 s"
    assert looks >= 25
